"""Who our descendants are, what they wait for, and how they are ended.

The test process makes itself a *child subreaper*: a process whose parent dies
becomes our child, however many sessions it has opened.  So "descendant of
ours" is a question that /proc answers exactly, and a pager that outlives its
client is never lost from sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Collection, Iterable

__all__ = [
    "Process",
    "become_subreaper",
    "descendants",
    "describe",
    "kill",
    "process",
    "reap",
    "wait_until_gone",
]

PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat; `started` tells a reused pid from the old one."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    started: int

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.started

    @property
    def zombie(self) -> bool:
        return self.state in "ZX"


def become_subreaper() -> None:
    """Have orphaned descendants become our children, not those of init."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def process(pid: int) -> Process | None:
    """Look `pid` up; None if there is no such process."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Process(
        pid=pid,
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
    )


def descendants(root: int | None = None) -> list[Process]:
    """All descendants of `root` (by default of this process), zombies too, eldest first."""
    found = {int(name): process(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    children: dict[int, list[Process]] = {}
    for one in found.values():
        if one is not None:
            children.setdefault(one.parent, []).append(one)
    result = []
    queue = [os.getpid() if root is None else root]
    while queue:
        for child in children.get(queue.pop(0), ()):
            result.append(child)
            queue.append(child.pid)
    return result


def describe(pid: int) -> str:
    """What the threads of `pid` do: state, wait channel, system call, kernel stack if readable."""
    command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or "(no command line)"
    lines = [f"process {pid}: {command[:300]}"]
    tasks = pathlib.Path(f"/proc/{pid}/task")
    try:
        tids = sorted(int(name) for name in os.listdir(tasks))
    except OSError:
        return lines[0] + " (gone)"
    for tid in tids:
        task = tasks / str(tid)
        head, _, tail = _read(task / "stat").rpartition(")")
        state = tail.split()[0] if tail else "?"
        lines.append(
            f"  thread {tid} ({head.partition('(')[2]}) state {state},"
            f" wchan {_read(task / 'wchan').strip() or '?'},"
            f" syscall {_read(task / 'syscall').strip() or '?'}"
        )
        lines += [f"    {line}" for line in _read(task / "stack").splitlines()]
    return "\n".join(lines)


def kill(victims: Iterable[Process], number: int = signal.SIGKILL) -> None:
    """Send a signal to exactly these processes, and to no later owner of a pid."""
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(victim.pid)
            try:
                now = process(victim.pid)
                if now is not None and now.key == victim.key:
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)


def reap(candidates: Iterable[Process]) -> None:
    """Take the exit status of those who are zombies and our children."""
    for one in candidates:
        now = process(one.pid)
        if now is not None and now.key == one.key and now.zombie and now.parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one.pid, os.WNOHANG)


def wait_until_gone(known: Collection[tuple[int, int]], seconds: float) -> list[Process]:
    """Wait until no descendant but the `known` ones lives; return those that still do.

    Orphans that end meanwhile are reaped.  The caller has no other children
    that begin at the same time.
    """
    deadline = time.monotonic() + seconds
    while True:
        reap([one for one in descendants() if one.key not in known])
        # A zombie of ours that could not be reaped has threads that are still ending.
        alive = [
            one
            for one in descendants()
            if one.key not in known and not (one.zombie and one.parent != os.getpid())
        ]
        if not alive or time.monotonic() >= deadline:
            return alive
        time.sleep(0.01)


def _read(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

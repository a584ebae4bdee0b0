"""Nothing is left behind: no process, no memfd, no mapping, no file, no descriptor."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import socket
import tempfile
import time
from collections.abc import Iterator

import pytest

from helpers import processes

__all__ = ["connections", "leftovers", "open_files"]

MARK = "refault"


@dataclasses.dataclass(frozen=True, slots=True)
class _Inventory:
    """What there is at one moment; of each kind a set of lines that name it."""

    processes: frozenset[str]
    memfds: frozenset[str]
    mappings: frozenset[str]
    files: frozenset[str]
    descriptors: frozenset[str]

    def beyond(self, before: _Inventory) -> list[str]:
        lines: list[str] = []
        for field in dataclasses.fields(self):
            more = getattr(self, field.name) - getattr(before, field.name)
            lines += [f"{field.name}: {line}" for line in sorted(more)]
        return lines


@contextlib.contextmanager
def leftovers(seconds: float = 5.0) -> Iterator[None]:
    """Fail if after the block there is more than before it.

    Looked for: descendant processes (zombies count: somebody forgot to wait),
    ``memfd:refault*`` descriptors of ours or of a descendant, mappings of such
    a memfd in this process, ``refault*`` in the temporary directory, and open
    descriptors of this process.

    Parameters
    ----------
    seconds
        How long processes may take to end.
    """
    before = _take()
    yield
    deadline = time.monotonic() + seconds
    while more := _take().beyond(before):
        if time.monotonic() >= deadline:
            pytest.fail("left behind:\n  " + "\n  ".join(more), pytrace=False)
        time.sleep(0.02)


def open_files() -> set[str]:
    """What this process has open.

    Sockets are not counted: a thread of a server or of a client's library closes its own when it
    gets to it, perhaps after the test that used it.
    """
    gc.collect()
    return {line for line in _descriptors(os.getpid()) if " -> socket:" not in line}


def connections(port: int) -> int:
    """How many sockets of this process are connected to a port."""
    gc.collect()
    found = 0
    for line in _descriptors(os.getpid()):
        number, _, link = line.partition(" -> ")
        if link.startswith("socket:"):
            # It may be another thread's, and closed meanwhile; or not be connected.
            with contextlib.suppress(OSError):
                with socket.socket(fileno=os.dup(int(number))) as one:
                    found += one.family == socket.AF_INET and one.getpeername()[1] == port
    return found


def _take() -> _Inventory:
    gc.collect()
    below = processes.descendants()
    return _Inventory(
        processes=frozenset(f"{one.pid} {one.name} (started {one.started})" for one in below),
        memfds=frozenset(
            f"{link} in process {pid}"
            for pid in (os.getpid(), *(one.pid for one in below))
            for link in _descriptors(pid)
            if _is_ours(link)
        ),
        mappings=frozenset(_own_mappings()),
        files=frozenset(
            entry.path for entry in os.scandir(tempfile.gettempdir()) if entry.name.startswith(MARK)
        ),
        descriptors=frozenset(_descriptors(os.getpid())),
    )


def _is_ours(link: str) -> bool:
    return f"/memfd:{MARK}" in link


def _descriptors(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    lines = []
    # A process may end, or be somebody else's, while it is looked at.
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                lines.append(f"{name} -> {os.readlink(f'{folder}/{name}')}")
    return lines


def _own_mappings() -> Iterator[str]:
    with open("/proc/self/maps") as maps:
        for line in maps:
            if _is_ours(line):
                yield line.split()[0] + " " + line.split(maxsplit=5)[-1].strip()

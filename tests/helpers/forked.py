"""Run a function in a forked child, with a limit enforced from outside.

Cheaper than `helpers.child` (milliseconds, not a fifth of a second), for tests on the kernel
that need many small processes; the child has no pager and no numpy.  When the time is up, the
report says where every thread stands, in the kernel and in Python, and exactly the processes
that came of it are killed.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import IO, Any, NamedTuple, NoReturn

from helpers import processes

__all__ = ["Ended", "run_forked"]

PR_SET_PDEATHSIG = 1
STACKS = signal.SIGUSR2
EXIT_SECONDS = 5.0
NOBODY_HOME = "the child ended without an answer"


class Ended(NamedTuple):
    """How the child ended.

    Attributes
    ----------
    value
        What the function returned.
    error
        "" or what went wrong: its traceback, how it died, or where it was stuck.
    status
        As of `os.waitstatus_to_exitcode`.
    """

    value: Any
    error: str
    status: int


def run_forked(
    work: Callable[[], object], *, limit: float, user: int | None = None, said: bool = True
) -> Ended:
    """Run `work` in a forked child.

    Parameters
    ----------
    work
        Returns something that can be pickled.
    limit
        Seconds until the child and all that it started are killed.
    user
        Become this user first (root only), without any capability.
    said
        Whether to add to an error what the child wrote to stderr.
    """
    known = {one.key for one in processes.descendants()}
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with tempfile.TemporaryFile() as stderr, os.fdopen(reading, "rb", buffering=0) as answers:
        pid = _fork()
        if pid == 0:
            _child(work, writing, stderr, user)
        os.close(writing)
        try:
            answer, report = _listen(answers, pid, limit)
        finally:
            _end(pid, known)
        _, status = os.waitpid(pid, 0)
        processes.wait_until_gone(known, 5.0)
        size = os.fstat(stderr.fileno()).st_size
        words = os.pread(stderr.fileno(), size, 0).decode(errors="replace") if said else ""
    code = os.waitstatus_to_exitcode(status)
    if answer is None:
        how = report or f"{NOBODY_HOME}, status {code}"
        return Ended(None, f"{how}\n{words}".rstrip(), code)
    value, error = answer
    return Ended(value, f"{error}\n{words}".rstrip() if error else "", code)


def _fork() -> int:
    with warnings.catch_warnings():
        # From 3.12 on a fork warns if there is another thread; a watchdog of faulthandler is one.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _child(
    work: Callable[[], object], writing: int, stderr: IO[bytes], user: int | None
) -> NoReturn:
    try:
        os.setsid()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(stderr.fileno(), 2)
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Not `dump_traceback_later`: pytest has armed it, and the child would wait for a thread
        # that fork has not brought along.
        faulthandler.enable(2)
        faulthandler.register(STACKS, 2, all_threads=True)
        try:
            answer: tuple[object, str] = (work(), "")
        except BaseException:
            answer = (None, traceback.format_exc())
        data = pickle.dumps(answer)
        with os.fdopen(writing, "wb") as out:
            out.write(len(data).to_bytes(8, "little") + data)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _listen(answers: IO[bytes], pid: int, limit: float) -> tuple[Any, str]:
    """The answer, if it comes: its length, and then itself.  Grandchildren may hold the pipe."""
    data = b""
    deadline = time.monotonic() + limit
    pipe, pidfd = answers.fileno(), os.pidfd_open(pid)
    try:
        while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
            left = deadline - time.monotonic()
            ready = select.select([pipe, pidfd], [], [], max(left, 0))[0]
            if left <= 0 or not ready:
                return None, f"not done after {limit} s\n{_stacks(pid)}"
            if pipe not in ready and not select.select([pipe], [], [], 0)[0]:
                return None, ""
            piece = answers.read(1 << 16)
            if not piece:
                return None, ""
            data += piece
        # It has said all it has to say, and is about to end: that is not to be killed.
        select.select([pidfd], [], [], EXIT_SECONDS)
    finally:
        os.close(pidfd)
    return pickle.loads(data[8:]), ""


def _stacks(pid: int) -> str:
    """Where all threads stand in the kernel; those of Python follow, in what the child said."""
    below = processes.descendants(pid)
    lines = [processes.describe(one) for one in (pid, *(one.pid for one in below))]
    os.kill(pid, STACKS)
    time.sleep(0.2)
    return "\n".join(lines)


def _end(pid: int, known: set[tuple[int, int]]) -> None:
    """Kill what the child left, and the child if it lives."""
    for _ in range(100):
        victims = [one for one in processes.descendants() if one.key not in known]
        if all(one.zombie for one in victims):
            return
        processes.kill(one for one in victims if not one.zombie)
        processes.reap(one for one in victims if one.pid != pid)
        time.sleep(0.01)

"""For the code in child processes: stores that misbehave on demand, and signals from outside.

With ``run_child(env=ENVIRONMENT)`` a child can import `helpers`, and the pager of the child can
as well.

A thread that is stuck in a page fault holds the GIL, so the child cannot send
itself a signal then.  `Signals` is another process that does.
"""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

__all__ = [
    "ENVIRONMENT",
    "Blocking",
    "Counting",
    "Failing",
    "Flaky",
    "Hanging",
    "HangingWrites",
    "Keeping",
    "Plain",
    "Signals",
    "content",
]

TESTS = str(pathlib.Path(__file__).parents[1])
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])
}

PERIOD = 251
_TABLE = bytes(1 + i % PERIOD for i in range((2 << 20) + PERIOD))


def content(offset: int, length: int) -> bytes:
    """What all stores here hold: never 0, never 0xFF, and no two pages alike."""
    parts = []
    while length > 0:
        start = offset % PERIOD
        parts.append(_TABLE[start : start + min(length, 2 << 20)])
        offset += len(parts[-1])
        length -= len(parts[-1])
    return b"".join(parts)


class Plain:
    """Answers at once.

    Parameters
    ----------
    size
        Bytes in the store.
    """

    name = "plain"

    def __init__(self, size: int) -> None:
        self.size = size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = content(offset, len(buffer))


class Counting(Plain):
    """Takes its time, and writes down what it is asked for."""

    name = "counting"

    def __init__(self, size: int, log: str, seconds: float = 0.002, version: str = "") -> None:
        super().__init__(size)
        self.log = log
        self.seconds = seconds
        self.version = version

    def read_into(self, offset: int, buffer: memoryview) -> None:
        time.sleep(self.seconds)
        super().read_into(offset, buffer)
        with open(self.log, "a") as file:
            file.write(f"{offset} {len(buffer)}\n")

    def asked(self) -> list[tuple[int, int]]:
        """Offset and length of every read since the last call."""
        with open(self.log) as file:
            found = [tuple(map(int, line.split())) for line in file]
        os.truncate(self.log, 0)
        return found  # type: ignore[return-value]


class Flaky(Plain):
    """Fails a number of times for each place, then answers."""

    name = "flaky"

    def __init__(self, size: int, failures: int) -> None:
        super().__init__(size)
        self.failures = failures
        self.asked: dict[int, int] = {}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        asked = self.asked[offset] = self.asked.get(offset, 0) + 1
        if asked <= self.failures:
            buffer[:] = b"\0" * len(buffer)
            raise OSError(errno.EIO, f"no answer {asked}")
        super().read_into(offset, buffer)


class NeverAnswers(Exception):
    """With `permanent` as its instance says."""

    def __init__(self, permanent: bool) -> None:
        super().__init__("the disk is on fire")
        self.permanent = permanent


class Failing(Plain):
    """Fails for ever from some place on."""

    name = "failing"

    def __init__(self, size: int, *, permanent: bool, good: int = 0) -> None:
        super().__init__(size)
        self.permanent = permanent
        self.good = good

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.good:
            buffer[:] = b"\0" * len(buffer)
            raise NeverAnswers(self.permanent)
        super().read_into(offset, buffer)


class Blocking(Plain):
    """Answers as long as a file exists; the first `free` bytes always."""

    name = "blocking"

    def __init__(self, size: int, gate: str, free: int = 0) -> None:
        super().__init__(size)
        self.gate = gate
        self.free = free

    def read_into(self, offset: int, buffer: memoryview) -> None:
        while offset >= self.free and not os.path.exists(self.gate):
            time.sleep(0.002)
        super().read_into(offset, buffer)


class Hanging(Plain):
    """Never answers behind the first `free` bytes."""

    name = "hanging"

    def __init__(self, size: int, free: int = 0) -> None:
        super().__init__(size)
        self.free = free

    def read_into(self, offset: int, buffer: memoryview) -> None:
        while offset >= self.free:
            time.sleep(3600)
        super().read_into(offset, buffer)


class HangingWrites(Plain):
    """Takes no change, and does not say so."""

    name = "hanging"

    def write_from(self, offset: int, buffer: memoryview) -> None:
        while True:
            time.sleep(3600)


class Keeping(Blocking):
    """A `Blocking` that can be written to, as long as it lives."""

    name = "keeping"

    def __init__(self, size: int, gate: str, free: int = 0) -> None:
        super().__init__(size, gate, free)
        self.written: dict[int, bytes] = {}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        if offset in self.written:
            buffer[:] = self.written[offset]

    def write_from(self, offset: int, buffer: memoryview) -> None:
        step = 4096
        for at in range(0, len(buffer), step):
            self.written[offset + at] = bytes(buffer[at : at + step])


class Signals:
    """A process that sends signals to this one, while this one may be stuck."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.order(0, 0)
        self.sent()

    def order(self, delay: float, number: int, *, times: int = 1) -> None:
        """Send signal `number` in `delay` seconds, some times; 0: only say when that was."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay} {int(number)}\n" * times)

    def touch(self, delay: float, path: str) -> None:
        """Make the file `path` in `delay` seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay} {path}\n")

    def sent(self) -> float:
        """Time (`time.monotonic`) just before the oldest order was carried out."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()


def _serve(pid: int) -> None:
    for line in sys.stdin:
        delay, what = line.split()
        time.sleep(float(delay))
        print(time.monotonic(), flush=True)
        if not what.isdigit():
            with open(what, "x"):
                pass
        elif int(what):
            os.kill(pid, int(what))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

"""Ways to save an array as it was at one instant: a snapshot, a fork, stop and copy, torch.

What is saved goes to one file or folder.  Nobody waits for the disk (``fsync``).
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.machine import resident_kib
from benchmarks.model import Missing
from benchmarks.pagers import pager_processes
from benchmarks.peaks import Peaks
from benchmarks.writer import PIECE, Writer

__all__ = ["WAYS", "Way", "make"]

WORDS = PIECE // 8
BLOCK = 4 << 20
SPARE = 64 << 20
"""How much more than the array may be resident: nothing is evicted."""


class Way(Protocol):
    """How an instant of an array is taken, and saved.

    Attributes
    ----------
    array
        Words of 8 bytes, all 0; everything has to be written before it is there.
    """

    array: npt.NDArray[np.uint64]

    def clean(self) -> None:
        """Everything was just saved: what is written from now on is dirty."""

    def settle(self) -> None:
        """What is there now is not extra memory."""

    def take(self, writer: Writer, path: pathlib.Path) -> float:
        """Take the instant, which is to be saved there; what the program was stopped for, in ms.

        From the return on the writer may go on.
        """

    def save(self) -> int:
        """Save what was there at the instant, until it is done; how many bytes were written."""

    def extra(self) -> int:
        """Bytes of memory that were needed since `settle`; the writer has been stopped."""

    def saved(self) -> npt.NDArray[np.uint64]:
        """The number at the beginning of each piece, from what was saved."""

    def close(self) -> None:
        """Let the instant go."""


class Snapshot:
    """`refault.snapshot`; its pages are read by turns, and pinned while they are written.

    Parameters
    ----------
    changed
        Save what has changed since `clean`, and nothing else.
    first
        There was none before, so `clean` does nothing.
    """

    def __init__(self, size: int, *, changed: bool = False, first: bool = False) -> None:
        import refault

        self.array = refault.zeros(size // 8, "u8", resident=size + SPARE, page_size=PIECE)
        self._changed = changed
        self._first = first

    def clean(self) -> None:
        import refault

        if self._first:
            return
        with refault.snapshot(self.array) as snap:
            self._mark = snap.mark(self.array)
        self._numbers = np.array(self.array[::WORDS])

    def settle(self) -> None:
        self._peaks = Peaks([os.getpid(), *pager_processes()])

    def take(self, writer: Writer, path: pathlib.Path) -> float:
        import refault

        self._path = path
        self._snap = refault.snapshot(self.array)
        return self._snap.pause * 1e3

    def save(self) -> int:
        import refault

        self._ranges = [(0, self.array.nbytes)]
        if self._changed:
            self._ranges = self._snap.changed(self.array, self._mark)
        then = self._snap[self.array]
        region = refault.region(then)
        written = 0
        with self._path.open("wb", buffering=0) as file:
            for begin, end in self._ranges:
                for at in range(begin, end, BLOCK):
                    part = slice(at // 8, min(at + BLOCK, end) // 8)
                    with region.pin(part):
                        written += file.write(then[part].data)
        return written

    def extra(self) -> int:
        return self._peaks.more()

    def saved(self) -> npt.NDArray[np.uint64]:
        file = np.memmap(self._path, "u8", "r")
        if not self._changed:
            return np.array(file[::WORDS])
        at = 0
        for begin, end in self._ranges:
            words = file[at // 8 : (at + end - begin) // 8 : WORDS]
            self._numbers[begin // PIECE : end // PIECE] = words
            at += end - begin
        return self._numbers

    def close(self) -> None:
        self._snap.close()


class Fork:
    """`os.fork` of a program with private memory in pages of 4 KiB; the child saves."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(memory, np.uint64)

    def clean(self) -> None:
        """A fork does not know."""

    def settle(self) -> None:
        self._before = resident_kib(os.getpid())["pss"]

    def take(self, writer: Writer, path: pathlib.Path) -> float:
        self._path = path
        (there, self._ask), (self._answer, back) = os.pipe(), os.pipe()
        begin = time.perf_counter_ns()
        self._child = os.fork()
        if not self._child:
            self._serve(there, back)
        ns = time.perf_counter_ns() - begin
        os.close(there)
        os.close(back)
        return ns / 1e6

    def _serve(self, there: int, back: int) -> None:
        """In the child: save when asked to, and end when nobody can ask any more."""
        status = 1
        try:
            os.close(self._ask)
            while os.read(there, 1):
                written = 0
                with self._path.open("wb", buffering=0) as file:
                    for at in range(0, len(self.array), BLOCK // 8):
                        written += file.write(self.array[at : at + BLOCK // 8].data)
                os.write(back, written.to_bytes(8, sys.byteorder))
            status = 0
        finally:
            os._exit(status)

    def save(self) -> int:
        os.write(self._ask, b"!")
        return int.from_bytes(os.read(self._answer, 8), sys.byteorder)

    def extra(self) -> int:
        both = [resident_kib(pid)["pss"] for pid in (os.getpid(), self._child)]
        return int(sum(both) - self._before) << 10

    def saved(self) -> npt.NDArray[np.uint64]:
        return np.array(np.memmap(self._path, "u8", "r")[::WORDS])

    def close(self) -> None:
        os.close(self._ask)
        os.close(self._answer)
        os.waitpid(self._child, 0)


class Stopped:
    """`numpy.save` while the writer stands still."""

    def __init__(self, size: int) -> None:
        self.array = np.zeros(size // 8, np.uint64)

    def clean(self) -> None:
        """`numpy.save` does not know."""

    def settle(self) -> None:
        self._peaks = Peaks([os.getpid()])

    def take(self, writer: Writer, path: pathlib.Path) -> float:
        self._path = path
        begin = time.perf_counter_ns()
        with writer.held(), path.open("wb") as file:
            np.save(file, self.array)
        return (time.perf_counter_ns() - begin) / 1e6

    def save(self) -> int:
        return self._path.stat().st_size

    def extra(self) -> int:
        return self._peaks.more()

    def saved(self) -> npt.NDArray[np.uint64]:
        file = np.lib.format.open_memmap(self._path, mode="r")
        return np.array(file[::WORDS])

    def close(self) -> None:
        """There is nothing."""


class Torch:
    """`torch.distributed.checkpoint.async_save`: the writer stands still until it returns."""

    def __init__(self, size: int) -> None:
        try:
            self._torch: Any = importlib.import_module("torch")
            self._checkpoint: Any = importlib.import_module("torch.distributed.checkpoint")
        except ImportError as error:
            raise Missing(f"not measured: {error}") from error
        self._tensor = self._torch.zeros(size // 8, dtype=self._torch.int64)
        self.array = self._tensor.numpy().view(np.uint64)

    def clean(self) -> None:
        """It does not know."""

    def settle(self) -> None:
        self._peaks = Peaks([os.getpid()])

    def take(self, writer: Writer, path: pathlib.Path) -> float:
        self._path = path
        begin = time.perf_counter_ns()
        with writer.held():
            self._future = self._checkpoint.async_save(
                {"array": self._tensor}, checkpoint_id=path, no_dist=True
            )
        return (time.perf_counter_ns() - begin) / 1e6

    def save(self) -> int:
        self._future.result()
        return sum(file.stat().st_size for file in self._path.iterdir())

    def extra(self) -> int:
        return self._peaks.more()

    def saved(self) -> npt.NDArray[np.uint64]:
        (file,) = self._path.glob("*.distcp")
        tensor = self._torch.load(file, mmap=True)
        return np.array(tensor.numpy().view(np.uint64)[::WORDS])

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._future.result()


WAYS: dict[str, Callable[[int], Way]] = {
    "refault": Snapshot,
    "refault, first": lambda size: Snapshot(size, first=True),
    "refault, changes": lambda size: Snapshot(size, changed=True),
    "fork": Fork,
    "np.save": Stopped,
    "torch": Torch,
}


def make(name: str, size: int) -> Way:
    """Make the array of one way; `size` is in bytes."""
    return WAYS[name](size)

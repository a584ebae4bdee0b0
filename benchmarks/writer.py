"""A thread that writes pieces of an array without the GIL, and notes how long each took.

Every piece begins with a number, one more than that of the piece before.  So what was saved of the
array can be held against what was written: `Writer.check_instant`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.compiler import build
from benchmarks.touch import Offsets

__all__ = ["PIECE", "Writer", "Writing"]

PIECE = 64 << 10
STOP, HOLD, HELD = range(3)


@dataclasses.dataclass(frozen=True)
class Writing:
    """What a writer did between `Writer.start` and `Writer.stop`; valid until it starts again.

    Attributes
    ----------
    offsets, begins, ns
        Of each piece: where it is, when its writing began (`time.monotonic_ns`), how long it took.
    """

    offsets: Offsets
    begins: Offsets
    ns: Offsets

    def longest(self, begin: int, end: int) -> float:
        """How long the slowest piece took, in ms, of those that were written at that time."""
        return float(self.ns[self._during(begin, end)].max(initial=0)) / 1e6

    def rate(self, begin: int, end: int) -> float:
        """Bytes per second of that time."""
        return int(self._during(begin, end).sum()) * PIECE / (end - begin) * 1e9

    def dirtied(self, begin: int, end: int) -> int:
        """Bytes of the pieces that were written at that time, each counted once."""
        return len(np.unique(self.offsets[self._during(begin, end)])) * PIECE

    def _during(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        return np.asarray((self.begins < end) & (self.begins + self.ns > begin))


@functools.cache
def _library() -> Callable[..., int]:
    function = ctypes.CDLL(str(build("touch.c"))).write_pieces
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    function.argtypes = [
        *(pointer, pointer, word, pointer, word),
        *(word, word, pointer, pointer, pointer),
    ]
    function.restype = word
    return function


class Writer:
    """Writes pieces of an array, in a thread.

    Parameters
    ----------
    array
        Contiguous, of whole pieces.
    most
        How many pieces there will be between `start` and `stop`, at most.

    Raises
    ------
    Missing
        There is no C compiler: a thread of Python would measure the GIL.
    """

    def __init__(self, array: npt.NDArray[Any], most: int) -> None:
        self._array = array
        # Written once, so that noting times faults nowhere.
        self._begins, self._ns = (np.ones(most, np.uint64) for _ in range(2))
        # What no compression makes smaller.
        self._content = np.random.default_rng(9).bytes(PIECE)
        self._function = _library()
        self._flags = np.zeros(3, np.intc)
        self._offsets: list[Offsets] = []
        self._number = 1
        self._thread: threading.Thread | None = None
        self._written = 0

    @property
    def pieces(self) -> int:
        """How many there are in the array."""
        return self._array.nbytes // PIECE

    def write(self, offsets: Offsets) -> None:
        """Write these pieces without a break, and wait for that."""
        self._begin(offsets, 0)
        self._end()

    def start(self, offsets: Offsets, rate: float | None = None) -> None:
        """Write pieces in a thread, so many bytes per second, until `stop`.

        Parameters
        ----------
        offsets
            There must be enough.
        rate
            None: as fast as it goes.
        """
        self._begin(offsets, 0 if rate is None else int(PIECE / rate * 1e9))

    def stop(self) -> Writing:
        """End the thread.

        Raises
        ------
        RuntimeError
            It had nothing left to write.
        """
        self._flags[STOP] = 1
        planned = len(self._offsets[-1])
        written = self._end()
        if written == planned:
            raise RuntimeError("the writer had no pieces left before it was stopped")
        return Writing(self._offsets[-1], self._begins[:written], self._ns[:written])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is written meanwhile."""
        self._flags[HOLD] = 1
        while self._thread is not None and self._thread.is_alive() and not self._flags[HELD]:
            time.sleep(20e-6)
        try:
            yield
        finally:
            self._flags[HOLD] = 0

    def check_instant(self, saved: npt.NDArray[np.uint64]) -> None:
        """Check that an array has been saved as it was at one instant.

        Parameters
        ----------
        saved
            The number at the beginning of each piece.

        Raises
        ------
        RuntimeError
            A piece has not what was written to it last, before the newest that was saved.
        """
        offsets = np.concatenate(self._offsets)[: int(saved.max())]
        expected = np.zeros(self.pieces, np.uint64)
        # Of several at one place the last one counts.
        expected[offsets // np.uint64(PIECE)] = np.arange(1, len(offsets) + 1, dtype=np.uint64)
        wrong = int((saved != expected).sum())
        if wrong:
            raise RuntimeError(f"{wrong} of {self.pieces} pieces are not of one instant")

    def _begin(self, offsets: Offsets, interval: int) -> None:
        self._flags[:] = 0
        self._offsets.append(np.ascontiguousarray(offsets, np.uint64))
        first = self._number
        base, pieces = self._array.ctypes.data, self._offsets[-1]
        noted = [one.ctypes.data for one in (self._flags, self._begins, self._ns)]
        if len(pieces) > len(self._begins):
            raise ValueError(f"{len(pieces)} pieces, and times of {len(self._begins)} at most")

        def work() -> None:
            self._written = self._function(
                base,
                pieces.ctypes.data,
                len(pieces),
                self._content,
                PIECE,
                first,
                interval,
                *noted,
            )

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def _end(self) -> int:
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        self._number += self._written
        self._offsets[-1] = self._offsets[-1][: self._written]
        return self._written

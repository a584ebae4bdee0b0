"""Touching pages from several threads at once, at next to no cost.

`Toucher` calls ``touch.c`` through ctypes, which gives the GIL up: the threads fault at the same
time, and the time of every single touch is taken without Python.  Without a compiler numpy does it:
``take``, and indexing with an array, give the GIL up as well, but then there are no
times of single touches.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.compiler import build
from benchmarks.model import Missing

__all__ = [
    "OPERATIONS",
    "Offsets",
    "Touched",
    "Toucher",
    "scattered",
    "shuffled",
    "spread_offsets",
    "zipf",
]

OPERATIONS = {"read": 0, "write": 1, "read-modify-write": 2}

Offsets = npt.NDArray[np.uint64]


class Touched(NamedTuple):
    """What touching took.

    Attributes
    ----------
    ns
        From the first thread's begin to the last one's end.
    each
        The same for each thread.
    latencies
        Of every touch, thread after thread; None without a compiler.
    total
        Sum of all that was read, modulo 2**64.
    """

    ns: int
    each: list[int]
    latencies: npt.NDArray[np.uint32] | None
    total: int


def shuffled(count: int, step: int, seed: int = 5) -> Offsets:
    """Offsets 0, step, 2 * step, ... in random order."""
    return np.random.default_rng(seed).permutation(count).astype(np.uint64) * np.uint64(step)


def spread_offsets(units: int, step: int, count: int, seed: int = 5) -> Offsets:
    """Offsets of `count` units, spread evenly over `units`, in random order."""
    return shuffled(count, units // count * step, seed)


def scattered(units: int) -> npt.NDArray[np.int64]:
    """Which unit is the most popular, the second, ...; the same every time."""
    return np.random.default_rng(0).permutation(units)


def zipf(units: int, count: int, exponent: float, random: np.random.Generator) -> Offsets:
    """Numbers of units: which are popular, and how much, follows Zipf's law."""
    bounds = np.cumsum(np.arange(1, units + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(bounds, random.random(count) * bounds[-1])
    return np.asarray(scattered(units)[np.minimum(ranks, units - 1)], np.uint64)


@functools.cache
def _library() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(str(build("touch.c"))).touch
    except Missing:
        return None
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    function.argtypes = [pointer, pointer, word, ctypes.c_int, word, pointer]
    function.restype = word
    return function


class Toucher:
    """Touches places of one array.

    Parameters
    ----------
    array
        Contiguous.
    words
        How many words of 8 bytes are touched at each place.
    """

    def __init__(self, array: npt.NDArray[Any], words: int = 1) -> None:
        self.array = array.reshape(-1).view(np.uint64)
        self.words = words
        self.function = _library()

    def touch(self, offsets: Offsets, operation: str = "read", *, record: bool = True) -> Touched:
        """Touch in this thread."""
        return self.touch_in_threads([offsets], operation, record=record)

    def touch_in_threads(
        self, parts: Sequence[Offsets], operation: str = "read", *, record: bool = True
    ) -> Touched:
        """Touch in as many threads as there are parts; the first one is the caller."""
        parts = [np.ascontiguousarray(part) for part in parts]
        # Written once, so that storing times faults nowhere.
        latencies = [np.ones(len(part) if record else 0, np.uint32) for part in parts]
        times = [(0, 0)] * len(parts)
        sums = [0] * len(parts)
        barrier = threading.Barrier(len(parts))

        def work(number: int) -> None:
            barrier.wait()
            begin = time.perf_counter_ns()
            sums[number] = self._run(
                parts[number], operation, latencies[number] if record else None
            )
            times[number] = begin, time.perf_counter_ns()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(1, len(parts))]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        return Touched(
            max(end for _, end in times) - min(begin for begin, _ in times),
            [end - begin for begin, end in times],
            np.concatenate(latencies) if record and self.function is not None else None,
            sum(sums) % 2**64,
        )

    def _run(
        self, offsets: Offsets, operation: str, latencies: npt.NDArray[np.uint32] | None
    ) -> int:
        if self.function is None:
            return self._run_numpy(offsets, operation)
        return self.function(
            self.array.ctypes.data,
            offsets.ctypes.data,
            len(offsets),
            OPERATIONS[operation],
            self.words,
            None if latencies is None else latencies.ctypes.data,
        )

    def _run_numpy(self, offsets: Offsets, operation: str) -> int:
        places = (offsets >> np.uint64(3)).astype(np.intp)
        places = (places[:, None] + np.arange(self.words)).reshape(-1)
        if operation == "read":
            found = np.zeros(len(places), np.uint64)
            np.take(self.array, places, mode="clip", out=found)
            return int(found.sum())
        if operation == "write":
            self.array[places] = places.astype(np.uint64)
            return 0
        total = 0
        for place in places:
            value = int(self.array[place])
            total += value
            self.array[place] = value + 1
        return total

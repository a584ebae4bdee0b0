"""What a fault costs while four threads wait for a store that takes 100 ms, in another region.

Both regions belong to one process, and so to one pager.  Four threads touch a new unit of the slow
one all the time; each touch waits for 100 ms.  Meanwhile the main thread touches pages of a file in
the page cache, in the other region.  Compared with the same program in which the four
threads are not there (the slow region is, and is idle).

Fair: the same sizes, the same order, nothing pinned.  Every touch, and the taking of its time, is
in C: the threads do not wait for each other's GIL.  The fast thread touches so many pages that the
slow ones wait several times each meanwhile (see "waits").
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import numbers_file, warm
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Missing, Settings
from benchmarks.stats import latencies
from benchmarks.touch import Toucher, shuffled

__all__ = ["SlowStore", "comparisons", "fault"]

PAGE = 4096
SLOW_UNIT = 64 << 10
SLOW_UNITS = 1 << 14
WAITERS = 4
SECONDS = 0.1
NO_COMPILER = "not measured: no C compiler, and Python threads wait for each other's GIL"


class SlowStore:
    """Zeros, after a while."""

    name = "slow"

    def __init__(self, size: int) -> None:
        self.size = size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        time.sleep(SECONDS)
        buffer[:] = bytes(len(buffer))


def comparisons(settings: Settings) -> Iterator[Comparison]:
    touches = settings.size(65536, 8192)
    path = numbers_file(settings.data, touches * 9 // 8 * PAGE)
    warm(path)

    def ours(name: str, waiters: int) -> Contender:
        return contender(name, fault, path=str(path), touches=touches, waiters=waiters)

    together = f"with {WAITERS} threads waiting"
    yield Comparison(
        "isolation: a fault while others wait for a store that takes 100 ms",
        [ours("alone", 0), ours(together, WAITERS)],
        [Measure("p50", "us"), Measure("p99", "us"), Measure("max", "us"), Measure("waits", "", 0)],
        [
            Goal(together, "p50", "alone", at_most=1.5),
            Goal(together, "p99", "alone", at_most=3.0),
        ],
        baseline="alone",
    )


def fault(path: str, touches: int, waiters: int) -> dict[str, float]:
    """Touch pages of the fast region, while `waiters` threads wait in the slow one."""
    import refault

    warm_memory(4 * touches * PAGE)
    slow = refault.open(
        SlowStore(SLOW_UNITS * SLOW_UNIT), dtype="u8", page_size=SLOW_UNIT, readahead=False
    )
    array = refault.open(path, dtype="u8", page_size=PAGE)
    waiting, toucher = Toucher(slow), Toucher(array)
    if toucher.function is None:
        raise Missing(NO_COMPILER)
    stop = threading.Event()
    waits = [0] * waiters

    def wait(number: int) -> None:
        # Every second unit, so that no two reads become one.
        units = np.arange(2 * number, SLOW_UNITS, 2 * waiters, dtype=np.uint64)
        for unit in units * np.uint64(SLOW_UNIT):
            if stop.is_set():
                return
            waiting.touch(np.array([unit], np.uint64), record=False)
            waits[number] += 1

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(waiters)]
    before = touches // 8
    offsets = shuffled(touches + before, PAGE)
    toucher.touch(offsets[:before])
    for thread in threads:
        thread.start()
    time.sleep(SECONDS / 2)
    done = toucher.touch(offsets[before:])
    stop.set()
    for thread in threads:
        thread.join()
    if done.latencies is None:
        raise Missing(NO_COMPILER)
    return latencies(done.latencies) | {"waits": float(sum(waits))}

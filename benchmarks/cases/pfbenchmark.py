"""The access pattern of UMap's pfbenchmark: a quarter of the file fits, tmpfs, shuffled pages.

65,536 pages of 4 KiB in a file on tmpfs, 16,384 of them resident.  Each page is touched once, in a
random order, by 1, 2 or 4 threads that share the work: read, write, or read and then
write (two faults, for UMap as well).  So three quarters of the pages are evicted again within the
measured time; what is dirty at the end is written after it, by both.

Compared with UMap's own programs on the same file, if ``--umap`` says where they are; and with the
C loop of ``limit.c``, read only and without any eviction, as a yardstick for the machine.
There is no memory-mapped file here: on tmpfs its pages are the store itself.  Every contender
finds the file as it was at first: UMap's programs look at what they read.

There are two goals for each.  One is against UMap in the same run.  The other is against the
figures that UMap had on a machine where a fault that wakes another CPU took 70 us, with the pinned
C loop as the common yardstick (`PUBLISHED`): there the handler's place decided everything.

Fair: nothing is pinned, for any of them: UMap has a handler and 2 x CPUs workers, refault one
pager.  Our threads run C without the GIL, as UMap's do.  They get equal parts in advance, as there.
"refault, pinned" has its one thread bound to a CPU, as the pinned C loop has; the pager follows.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.child import contender
from benchmarks.files import numbers_file, restore_numbers
from benchmarks.limit import limit
from benchmarks.machine import pin, warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Sample, Settings
from benchmarks.stats import latencies
from benchmarks.touch import OPERATIONS, Toucher, shuffled
from benchmarks.umap import umap_faults

__all__ = ["comparisons", "fault"]

PAGE = 4096
YARDSTICK = "C copy, no file, pinned, 1 thread"
THREADS = {1: 4.0, 2: 2.0, 4: 1.5}
"""How many threads, and how many times as fast as UMap we must be."""

PUBLISHED_LIMIT = 10.6
PUBLISHED = {
    "read": {1: 71.975, 2: 33.673, 4: 21.744},
    "write": {1: 84.594, 2: 43.544, 4: 29.084},
    "read-modify-write": {1: 74.356, 2: 33.350, 4: 20.898},
}
"""UMap 2.1 on tmpfs, us per access by threads, and the pinned C loop (copy, no file) there."""


def comparisons(settings: Settings) -> Iterator[Comparison]:
    pages = settings.size(65536, 2048)
    buffer = pages // 4
    path = numbers_file(settings.tmpfs, pages * PAGE)
    for operation in OPERATIONS:
        for threads, times in THREADS.items():
            ours: dict[str, Any] = {
                "before": functools.partial(restore_numbers, path),
                "path": str(path),
                "operation": operation,
                "pages": pages,
                "buffer": buffer,
                "threads": threads,
            }
            contenders = [contender("refault", fault, cpu=None, **ours)]
            if threads == 1:
                contenders.append(contender("refault, pinned", fault, cpu=settings.cpu, **ours))
            theirs = umap_faults(
                settings, operation, pages=pages, buffer=buffer, threads=threads, path=path
            )
            bare: dict[str, Any] = {"unit": PAGE, "units": pages, "touches": pages, "warm": 0}
            best = contenders[-1].name
            yield Comparison(
                f"pfbenchmark, {operation}, {threads} thread{'s' * (threads > 1)}",
                [
                    *contenders,
                    Contender(theirs.name, functools.partial(_on_a_new_file, theirs, path)),
                    limit("C copy, read, no eviction", "copy", path=path, threads=threads, **bare),
                    limit(YARDSTICK, "copy", cpu=settings.cpu, **bare),
                ],
                [Measure("us", "us per access"), Measure("p50", "us"), Measure("p99", "us")],
                [
                    Goal("refault", "us", "UMap", at_most=1 / times),
                    Goal(
                        best,
                        "us",
                        YARDSTICK,
                        at_most=PUBLISHED[operation][threads] / PUBLISHED_LIMIT / times,
                    ),
                ],
                baseline="C copy, read, no eviction",
            )


def _on_a_new_file(one: Contender, path: pathlib.Path) -> Sample:
    restore_numbers(path)
    return one.run()


def fault(
    path: str, operation: str, pages: int, buffer: int, threads: int, cpu: int | None
) -> dict[str, float]:
    """Touch every page once."""
    import refault

    warm_memory(2 * pages * PAGE)
    mode = "r" if operation == "read" else "r+"
    array = refault.open(path, mode, dtype="u8", resident=buffer * PAGE, page_size=PAGE)
    pin(cpu)
    parts = np.array_split(shuffled(pages, PAGE), threads)
    done = Toucher(array).touch_in_threads(parts, operation)
    seen = refault.region(array).statistics()
    if seen.peak_resident > buffer * PAGE or seen.faults < 0.9 * pages:
        raise RuntimeError(f"not what was to be measured: {seen}")
    found = {"us": done.ns / 1000 / pages, "attempts": seen.attempts / seen.faults}
    return found | (latencies(done.latencies) if done.latencies is not None else {})

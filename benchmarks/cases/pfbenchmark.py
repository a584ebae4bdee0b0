"""The access pattern of UMap's pfbenchmark: a quarter of the file fits, tmpfs, shuffled pages.

65,536 pages of 4 KiB in a file on tmpfs, 16,384 of them resident.  Each page is touched once, in a
random order, by 1, 2 or 4 threads that share the work: read, write, or read and then
write.  So three quarters of the pages are evicted again within the measured time; what is dirty at
the end is written after it, by both.

Compared with UMap's own programs on the same file, if ``--umap`` says where they are; and with the
C loop of ``limit.c``, read only and without any eviction, as a yardstick for the machine.
There is no memory-mapped file here: on tmpfs its pages are the store itself.

Fair: nothing is pinned, for any of them: UMap has a handler and 2 x CPUs workers, refault one
pager.  Our threads run C without the GIL, as UMap's do.  They get equal parts in advance, as there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import numbers_file
from benchmarks.limit import limit
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Goal, Measure, Settings
from benchmarks.stats import latencies
from benchmarks.touch import OPERATIONS, Toucher, shuffled
from benchmarks.umap import umap_faults

__all__ = ["comparisons", "fault"]

PAGE = 4096
THREADS = {1: 4.0, 2: 2.0, 4: 1.5}
"""How many threads, and how many times as fast as UMap we must be."""


def comparisons(settings: Settings) -> Iterator[Comparison]:
    pages = settings.size(65536, 2048)
    buffer = pages // 4
    path = numbers_file(settings.tmpfs, pages * PAGE)
    for operation in OPERATIONS:
        for threads, times in THREADS.items():
            yield Comparison(
                f"pfbenchmark, {operation}, {threads} thread{'s' * (threads > 1)}",
                [
                    contender(
                        "refault",
                        fault,
                        path=str(path),
                        operation=operation,
                        pages=pages,
                        buffer=buffer,
                        threads=threads,
                    ),
                    umap_faults(
                        settings, operation, pages=pages, buffer=buffer, threads=threads, path=path
                    ),
                    limit(
                        "C copy, read, no eviction",
                        "copy",
                        unit=PAGE,
                        units=pages,
                        touches=pages,
                        warm=0,
                        path=path,
                        threads=threads,
                    ),
                ],
                [Measure("us", "us per access"), Measure("p50", "us"), Measure("p99", "us")],
                [Goal("refault", "us", "UMap", at_most=1 / times)],
                baseline="C copy, read, no eviction",
            )


def fault(path: str, operation: str, pages: int, buffer: int, threads: int) -> dict[str, float]:
    """Touch every page once."""
    import refault

    warm_memory(2 * pages * PAGE)
    mode = "r" if operation == "read" else "r+"
    array = refault.open(path, mode, dtype="u8", resident=buffer * PAGE, page_size=PAGE)
    parts = np.array_split(shuffled(pages, PAGE), threads)
    done = Toucher(array).touch_in_threads(parts, operation)
    seen = refault.region(array).statistics()
    if seen.peak_resident > buffer * PAGE or seen.faults < 0.9 * pages:
        raise RuntimeError(f"not what was to be measured: {seen}")
    found = {"us": done.ns / 1000 / pages, "attempts": seen.attempts / seen.faults}
    return found | (latencies(done.latencies) if done.latencies is not None else {})

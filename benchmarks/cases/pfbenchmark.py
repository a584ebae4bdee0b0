"""The access pattern of UMap's pfbenchmark: a quarter of the file fits, tmpfs, shuffled pages.

65,536 pages of 4 KiB in a file on tmpfs, 16,384 of them resident.  One word of each page is touched
once, in a random order, by 1, 2 or 4 threads that share the work: read; write; or read and then
write the same word.  So three quarters of the pages are evicted again within the measured time;
what is dirty at the end is written after it, by both.

Compared with UMap's own programs on the same file, if ``--umap`` says where they are; with the C
loop of ``limit.c``, read only and without any eviction, with as many threads and as free; and
with the *common yardstick*: the C loop without a file, one thread, pinned.  By the yardstick our
figures can be held against those that UMap has had on another machine (`PUBLISHED`), where a
fault that wakes another CPU took 70 us, and so the place of the handler decided everything.  One
of the two kinds of goal is enough.  There is no memory-mapped file here: on tmpfs its pages
are the store itself.

Fair: nothing is pinned, for UMap and refault: UMap has a handler and 2 x CPUs workers, refault one
pager.  "refault, pinned" has its one thread bound to a CPU, as the yardstick has; the pager
follows.  Our threads run C without the GIL, as UMap's do, and get equal parts in advance, as there.
Before each run, and not in its time, every word of the file is set to its number: UMap's
programs end with status 1 if they read anything else, and a wrong sum fails ours.

What is not the same: reading and then writing is two accesses in ``touch.c``, and two faults: both
pagers map a page that was read write-protected.  UMap's program stores what it has just read, and
gcc -O2 leaves that store out: then it only reads.  So did, to judge by the figures, the one
that `PUBLISHED` is from.  "stored" tells whether the file was written to at all.  Compiled with
-O1 it stores.  (Not with -O0: then its threads share the variable that they check.)
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import numbers_file, restore_numbers
from benchmarks.limit import limit
from benchmarks.machine import pin, warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Settings
from benchmarks.stats import latencies
from benchmarks.touch import OPERATIONS, Toucher, shuffled
from benchmarks.umap import umap_faults

__all__ = ["comparisons", "fault"]

PAGE = 4096
THREADS = {1: 4.0, 2: 2.0, 4: 1.5}
"""How many threads, and how many times as fast as UMap we must be."""

PUBLISHED = {
    "read": {1: 71.975, 2: 33.673, 4: 21.744},
    "write": {1: 84.594, 2: 43.544, 4: 29.084},
    "read-modify-write": {1: 74.356, 2: 33.350, 4: 20.898},
}
"""Microseconds per access of UMap 2.1.0, by the number of threads.

Its own pfbenchmark, this pattern and these sizes, on tmpfs; 2 CPUs of an AMD EPYC as a KVM guest,
Linux 6.18.
"""
PUBLISHED_YARDSTICK = 10.6
"""Microseconds per fault of the yardstick on that machine."""


def comparisons(settings: Settings) -> Iterator[Comparison]:
    path = numbers_file(settings.tmpfs, settings.size(65536, 2048) * PAGE)
    for operation in OPERATIONS:
        for threads in THREADS:
            yield _comparison(settings, operation, threads, path)


def _comparison(settings: Settings, operation: str, threads: int, path: pathlib.Path) -> Comparison:
    pages = settings.size(65536, 2048)
    buffer = pages // 4
    before = functools.partial(restore_numbers, path, pages * PAGE)
    bare = functools.partial(limit, mode="copy", unit=PAGE, units=pages, touches=pages * 7 // 8)
    loop, yardstick = "C copy, read, no eviction", "C copy, no file, pinned, 1 thread"
    times = THREADS[threads]
    published = PUBLISHED[operation][threads] / PUBLISHED_YARDSTICK

    def ours(name: str, cpu: int | None) -> Contender:
        return contender(
            name,
            fault,
            before=before,
            path=str(path),
            operation=operation,
            pages=pages,
            buffer=buffer,
            threads=threads,
            cpu=cpu,
        )

    free = [ours("refault", None)]
    pinned = [ours("refault, pinned", settings.cpu)] if threads == 1 else []
    return Comparison(
        f"pfbenchmark, {operation}, {threads} thread{'s' * (threads > 1)}",
        [
            *free,
            *pinned,
            umap_faults(
                settings,
                operation,
                pages=pages,
                buffer=buffer,
                threads=threads,
                path=path,
                before=before,
            ),
            bare(loop, warm=pages // 8, path=path, threads=threads),
            bare(yardstick, warm=pages // 8, cpu=settings.cpu),
        ],
        [
            Measure("us", "us per access"),
            Measure("p50", "us"),
            Measure("p99", "us"),
            Measure("stored", "", 0),
        ],
        [
            Goal("refault", "us", "UMap", at_most=1 / times, why=f"{times:g} times as fast"),
            *(
                Goal(
                    one.name,
                    "us",
                    yardstick,
                    at_most=published / times,
                    why=f"UMap's published {published:.2f} / {times:g}",
                )
                for one in [*free, *pinned]
            ),
        ],
        baseline=yardstick,
    )


def fault(
    path: str, operation: str, pages: int, buffer: int, threads: int, cpu: int | None
) -> dict[str, float]:
    """Touch every page once."""
    import refault

    warm_memory(2 * pages * PAGE)
    changed = os.stat(path).st_mtime_ns
    mode = "r" if operation == "read" else "r+"
    array = refault.open(path, mode, dtype="u8", resident=buffer * PAGE, page_size=PAGE)
    pin(cpu)
    parts = np.array_split(shuffled(pages, PAGE), threads)
    done = Toucher(array).touch_in_threads(parts, operation)
    region = refault.region(array)
    seen = region.statistics()
    if seen.peak_resident > buffer * PAGE or seen.faults < 0.9 * pages:
        raise RuntimeError(f"not what was to be measured: {seen}")
    expected = 0 if operation == "write" else pages * (pages - 1) // 2 * (PAGE // 8)
    if done.total != expected:
        raise RuntimeError(f"wrong content: read {done.total}, not {expected}")
    if mode == "r+":
        region.flush()
    found = {"us": done.ns / 1000 / pages, "attempts": seen.attempts / seen.faults}
    found["stored"] = float(os.stat(path).st_mtime_ns != changed)
    return found | (latencies(done.latencies) if done.latencies is not None else {})

"""Sixteen threads that fault all the time: how many faults a second, and is anybody left behind.

A file in the page cache, 4 KiB units, shuffled; every thread has its own, equally large part.  No
eviction.  "unfairness" is the mean time of a fault of the thread that waited most, divided
by that of the thread that waited least; "longest" is the longest single wait of any thread,
divided by the median.

Compared with the C loop of ``limit.c`` with as many threads.  Nothing is pinned in either.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import numbers_file, warm
from benchmarks.limit import limit
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Goal, Measure, Settings
from benchmarks.pagers import bytes_more, pager_memory
from benchmarks.stats import latencies
from benchmarks.touch import Toucher, shuffled

__all__ = ["comparisons", "fault"]

PAGE = 4096
THREADS = 16


def comparisons(settings: Settings) -> Iterator[Comparison]:
    touches = settings.size(65536, 4096)
    path = numbers_file(settings.data, touches * PAGE)
    warm(path)
    yield Comparison(
        f"{THREADS} threads fault at the same time",
        [
            contender("refault", fault, path=str(path), touches=touches, threads=THREADS),
            limit(
                "C copy",
                "copy",
                unit=PAGE,
                units=touches,
                touches=touches,
                warm=0,
                path=path,
                threads=THREADS,
            ),
        ],
        [
            Measure("per_second", "faults/s", 0),
            Measure("p50", "us"),
            Measure("p99", "us"),
            Measure("unfairness", ""),
            Measure("longest", "", 1),
        ],
        [
            Goal("refault", "per_second", at_least=50_000),
            Goal("refault", "unfairness", at_most=20),
        ],
        baseline="C copy",
    )


def fault(path: str, touches: int, threads: int) -> dict[str, float]:
    """Touch pages of a region that is new, from several threads."""
    import refault

    warm_memory(2 * touches * PAGE)
    array = refault.open(path, dtype="u8", page_size=PAGE)
    parts = np.array_split(shuffled(touches, PAGE), threads)
    memory = pager_memory()
    done = Toucher(array).touch_in_threads(parts)
    means = [ns / len(part) for ns, part in zip(done.each, parts, strict=True)]
    found = {
        "us": done.ns / 1000 / touches,
        "per_second": touches * 1e9 / done.ns,
        "unfairness": max(means) / min(means),
        "bytes_per_page": bytes_more(memory, pager_memory(), touches),
    }
    if done.latencies is not None:
        found |= latencies(done.latencies)
        found["longest"] = found["max"] / found["p50"]
    return found

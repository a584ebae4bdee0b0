"""How cost grows: with the size of a region, the number of regions, the number of threads.

Size: 1 GiB to 16 TiB (`refault.zeros`, sparse, 64 KiB units), the same number of units touched in a
window of 1 GiB.  Regions: 1 to 2,000 in one process (64 KiB units), 2 GiB together, and the same
number of faults spread over all of them.  Threads: 1 to 16 on a file in the page cache, 4 KiB
units.  Pages: up to 262,144 units of 4 KiB that are resident.

"bytes_per_page" is the memory of pager and guardian that comes with each resident page unit: what
they have more after the touches than before, by the number of units touched.  What a region
needs, with a single page, is counted apart ("kib_per_region").  The memory of the pages themselves
is in neither.  Python and malloc get memory a MiB at a time: with a few thousand pages the last
hundred bytes say nothing.

Placement: one faulting thread is pinned and the pager follows; several threads are not.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.cases import sparse, threads16
from benchmarks.child import contender
from benchmarks.files import numbers_file, warm
from benchmarks.machine import pin, warm_memory
from benchmarks.model import Comparison, Measure, Settings
from benchmarks.pagers import bytes_more, pager_memory
from benchmarks.touch import Toucher, shuffled

__all__ = ["comparisons", "many_regions", "many_units"]

GIB = 1 << 30
PAGE = 4096
UNIT = 64 << 10
ALL_REGIONS = 1 << 15
"""Units of all regions together."""


def comparisons(settings: Settings) -> Iterator[Comparison]:
    memory = [
        Measure("pager_mib", "MiB", 1, "resident set of the pager, MiB"),
        Measure("both_private_mib", "MiB", 1),
    ]
    per_fault = Measure("us", "us per fault", label="us per fault")
    per_page = Measure("bytes_per_page", "", 0, "pager's memory, bytes per resident page")
    opening = Measure("open", "ms")
    both = ("us", "bytes_per_page")

    sizes = {_size(2**power): float(2**power) for power in range(0, 15, 2)}
    yield Comparison(
        "growth: size of a region",
        [
            contender(
                name,
                sparse.fault,
                size=int(gib) * GIB,
                window=GIB,
                touches=settings.size(8192, 256),
                cpu=settings.cpu,
            )
            for name, gib in sizes.items()
        ],
        [per_fault, per_page, opening, *memory],
        baseline="1 GiB",
        series=sizes,
        x_label="size of the region, GiB",
        plotted=both,
    )

    counts = [1, 10, 100, 500, 1000, 2000] if not settings.quick else [1, 10, 50]
    regions = {f"{count:,} region{'s' * (count > 1)}": float(count) for count in counts}
    yield Comparison(
        "growth: number of regions",
        [
            contender(
                name,
                many_regions,
                count=int(count),
                touches=settings.size(8192, 512),
                cpu=settings.cpu,
            )
            for name, count in regions.items()
        ],
        [
            per_fault,
            per_page,
            Measure("open", "ms per region", label="time to open, ms per region"),
            Measure("kib_per_region", "", 1, "pager's memory, KiB per region"),
            *memory,
        ],
        baseline="1 region",
        series=regions,
        x_label="regions in one process",
        plotted=(*both, "kib_per_region", "open"),
    )

    touches = settings.size(32768, 2048)
    path = numbers_file(settings.data, touches * PAGE)
    warm(path)
    threads = {f"{2**power} thread{'s' * (power > 0)}": float(2**power) for power in range(5)}
    yield Comparison(
        "growth: number of faulting threads",
        [
            contender(name, threads16.fault, path=str(path), touches=touches, threads=int(count))
            for name, count in threads.items()
        ],
        [per_fault, per_page, Measure("per_second", "faults/s", 0), Measure("unfairness", "")],
        baseline="1 thread",
        series=threads,
        x_label="faulting threads",
        plotted=both,
    )

    most = settings.size(1 << 18, 1 << 12)
    pages = {f"{most >> shift:,} pages": float(most >> shift) for shift in (6, 4, 2, 0)}
    yield Comparison(
        "growth: pages that are resident, 4 KiB units",
        [
            contender(name, many_units, most=most, units=int(count), cpu=settings.cpu)
            for name, count in pages.items()
        ],
        [per_page, *memory],
        series=pages,
        x_label="resident pages of 4 KiB",
        plotted=("bytes_per_page", "pager_mib"),
    )


def _size(gib: int) -> str:
    return f"{gib} GiB" if gib < 1024 else f"{gib // 1024} TiB"


def many_regions(count: int, touches: int, cpu: int | None) -> dict[str, float]:
    """Open many regions; touch all of them equally often, in random order."""
    import refault

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    units = ALL_REGIONS // count
    warm_memory(2 * touches * UNIT)
    first = refault.zeros(1)
    empty = pager_memory()
    begin = time.perf_counter_ns()
    arrays = [refault.zeros(units * UNIT // 8, "u8", page_size=UNIT) for _ in range(count)]
    opened = time.perf_counter_ns() - begin
    touchers = [Toucher(array) for array in arrays]
    for toucher in touchers:
        toucher.touch(np.zeros(1, np.uint64), record=False)
    untouched = pager_memory()
    pin(cpu)
    # The first unit of each region is there already.
    numbers = np.random.default_rng(3).permutation(count * units)
    numbers = numbers[numbers % units > 0][:touches]
    places = [
        (touchers[number // units], np.array([number % units * UNIT], np.uint64))
        for number in numbers
    ]
    ns = 0
    for toucher, offset in places:
        done = toucher.touch(offset)
        ns += int(done.latencies[0]) if done.latencies is not None else done.ns
    found = pager_memory()
    del first
    return found | {
        "us": ns / 1000 / touches,
        "open": opened / 1e6 / count,
        "bytes_per_page": bytes_more(untouched, found, touches),
        "kib_per_region": bytes_more(empty, untouched, count) / 1024,
    }


def many_units(most: int, units: int, cpu: int | None) -> dict[str, float]:
    """Make units of a region resident; what does the pager need for each?"""
    import refault

    warm_memory(2 * units * PAGE)
    array = refault.zeros(most * PAGE // 8, "u8", page_size=PAGE)
    pin(cpu)
    offsets = shuffled(most, PAGE)
    toucher = Toucher(array)
    toucher.touch(offsets[:64], record=False)
    before = pager_memory()
    toucher.touch(offsets[64 : 64 + units], record=False)
    after = pager_memory()
    return after | {"bytes_per_page": bytes_more(before, after, min(units, most - 64))}

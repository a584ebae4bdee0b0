"""Page units x faulting threads x operations x orders: what one access costs in each of 108 cases.

Units of 4 KiB, 64 KiB and 1 MiB; 1, 2, 4 and 16 threads; read, write, read and then write;
sequential, shuffled, Zipf(0.99).  refault alone: this is where it is fast and where not; the other
benchmarks say compared with what.

The same everywhere: a file on tmpfs, a quarter of it resident, so that eviction and write-back of
what is dirty are a part of it; one access is one word of one unit; nothing is pinned; threads
share the accesses in equal parts.  Sequential: every unit once, each thread its own stretch of the
file from front to back.  Shuffled: every unit once.  Zipf: four times as many accesses as units;
many of them find their unit, so an access costs less than a fault.

What is not the same: the number of units (4,096, 2,048 and 256) and with it the size of the
file, so that all of it is done in minutes.  Sequential reads are read ahead: there are fewer
faults than accesses.  "faults/s" counts faults that the pager answered, not accesses.  The cases of
a row run one after the other in one process, with one pager; each has a region of its own, and
the one before it is flushed and closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import numbers_file
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Measure, Settings
from benchmarks.touch import OPERATIONS, Offsets, Toucher, shuffled, zipf

__all__ = ["comparisons", "row"]

UNITS = {"4 KiB": (4 << 10, 4096, 256), "64 KiB": (64 << 10, 2048, 64), "1 MiB": (1 << 20, 256, 16)}
"""How large, how many, and how many if only tiny sizes are wanted."""
THREADS = [1, 2, 4, 16]
EXPONENT = 0.99

ORDERS: dict[str, Callable[[int], Offsets]] = {
    "sequential": lambda units: np.arange(units, dtype=np.uint64),
    "shuffled": lambda units: shuffled(units, 1),
    "Zipf": lambda units: zipf(units, 4 * units, EXPONENT, np.random.default_rng(7)),
}
"""The units that are touched, one after the other."""


def comparisons(settings: Settings) -> Iterator[Comparison]:
    rows = []
    for name, (unit, full, quick) in UNITS.items():
        units = settings.size(full, quick)
        path = numbers_file(settings.tmpfs, units * unit)
        for order in ORDERS:
            for operation in OPERATIONS:
                rows.append(
                    contender(
                        f"{name}, {order}, {operation}",
                        row,
                        path=str(path),
                        unit=unit,
                        units=units,
                        order=order,
                        operation=operation,
                    )
                )
    yield Comparison(
        "matrix: us per access (us) and faults per second, by the number of threads",
        rows,
        [
            *(Measure(f"us, {n}", "", label=f"us per access, {_threads(n)}") for n in THREADS),
            *(Measure(f"faults/s, {n}", "", 0, f"faults/s, {_threads(n)}") for n in THREADS),
        ],
        compact=True,
        plotted=(f"us, {THREADS[0]}", f"us, {THREADS[-1]}"),
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def row(path: str, unit: int, units: int, order: str, operation: str) -> dict[str, float]:
    """All numbers of threads, one after the other."""
    warm_memory(unit * units)
    found: dict[str, float] = {}
    for threads in THREADS:
        us, rate = access(path, unit, units, ORDERS[order](units), operation, threads)
        found[f"us, {threads}"], found[f"faults/s, {threads}"] = us, rate
    return found


def access(
    path: str, unit: int, units: int, order: Offsets, operation: str, threads: int
) -> tuple[float, float]:
    """Microseconds per access, faults per second; in a region that is new."""
    import refault

    mode = "r" if operation == "read" else "r+"
    resident = unit * units // 4
    array = refault.open(path, mode, dtype="u8", resident=resident, page_size=unit)
    region = refault.region(array)
    toucher = Toucher(array)
    parts = np.array_split(order * np.uint64(unit), threads)
    done = toucher.touch_in_threads(parts, operation, record=False)
    seen = region.statistics()
    if seen.peak_resident > resident:
        raise RuntimeError(f"more resident than allowed: {seen}")
    if mode == "r+":
        region.flush()
    del array, toucher
    region.close()
    return done.ns / 1000 / len(order), seen.faults * 1e9 / done.ns

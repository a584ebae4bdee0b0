"""A region of 16 TiB: what opening it costs, what the pager needs for it, what a fault costs.

`refault.zeros` of 16 TiB and of 1 GiB, default settings.  The same number of units is touched in
both: in a *window* of 1 GiB in the middle, and, for 16 TiB, also *spread* over all of it.

Why both: spread over 16 TiB, every fault needs new page tables and new nodes of the memfd's index
in the kernel, whoever serves it.  The C loop of ``limit.c`` shows what that costs without
us.  In the window only what refault itself keeps is larger.

Before each run, of whomever, the C loop runs in 1 GiB: who comes right after one that is spread is
slower by a tenth, whoever it is.

Placement: the faulting thread is pinned, the pager follows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.limit import limit
from benchmarks.machine import pin, warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Missing, Settings
from benchmarks.pagers import bytes_more, pager_memory
from benchmarks.touch import Toucher, spread_offsets

__all__ = ["comparisons", "fault"]

UNIT = 64 << 10
GIB = 1 << 30
SMALL = 1 * GIB
LARGE = 16 << 40


def comparisons(settings: Settings) -> Iterator[Comparison]:
    touches = settings.size(8192, 512)

    def ours(name: str, size: int, window: int) -> Contender:
        return contender(name, fault, size=size, window=window, touches=touches, cpu=settings.cpu)

    def bare(name: str, size: int) -> Contender:
        return limit(
            name,
            "fill",
            unit=UNIT,
            units=size // UNIT,
            touches=touches,
            warm=touches // 8,
            cpu=settings.cpu,
        )

    def settle() -> None:
        with contextlib.suppress(Missing):
            bare("nobody", SMALL).run()

    small, large = "refault, 1 GiB", "refault, 16 TiB, window of 1 GiB"
    spread = "refault, 16 TiB, spread"
    yield Comparison(
        "sparse: a region of 16 TiB",
        [
            ours(small, SMALL, SMALL),
            ours(large, LARGE, SMALL),
            ours(spread, LARGE, LARGE),
            bare("C fill, no file, 1 GiB", SMALL),
            bare("C fill, no file, 16 TiB, spread", LARGE),
        ],
        [
            Measure("us", "us per fault"),
            Measure("open", "ms"),
            Measure("pager_mib", "MiB", 1),
            Measure("both_private_mib", "MiB", 1),
        ],
        [
            Goal(large, "open", at_most=100),
            Goal(large, "pager_mib", at_most=300),
            Goal(spread, "pager_mib", at_most=300),
            Goal(large, "us", small, at_most=1.2),
            Goal(spread, "us", small, at_most=1.2),
        ],
        baseline=small,
        between=settle,
    )


def fault(size: int, window: int, touches: int, cpu: int | None) -> dict[str, float]:
    """Open; touch units of the window in the middle of the region."""
    import refault

    warm_memory(3 * touches * UNIT)
    # The pager is there already: its start is measured elsewhere.
    first = refault.zeros(1)
    begin = time.perf_counter_ns()
    array = refault.zeros(size // 8, "u8", page_size=UNIT)
    opened = time.perf_counter_ns() - begin
    pin(cpu)
    before = touches // 8
    offsets = spread_offsets(window // UNIT, UNIT, touches + before)
    offsets += np.uint64((size - window) // 2)
    toucher = Toucher(array)
    toucher.touch(offsets[:before])
    memory = pager_memory()
    done = toucher.touch(offsets[before:])
    found = pager_memory()
    del first
    return found | {
        "us": done.ns / 1000 / touches,
        "open": opened / 1e6,
        "bytes_per_page": bytes_more(memory, found, touches),
    }

"""Which accesses miss under each policy of eviction: simulated, no time is measured.

Traces of touches are played to `WorkingSet` as `refault.fault.reclaim` uses it for clean
units, one at a time; to FIFO; to what `WorkingSet` was before (two lists, one refault makes a
unit active); and to LRU.  LRU needs to know of every touch, which user space cannot: it
says what there would be to gain.

Misses are counted in the last part of each trace, when eviction is in its steady state.  That takes
long: a policy that sees only misses must see several turnovers of the memory before the history of
a unit says anything, and with Zipf(0.99) and a quarter resident one turnover is 1.5 million
touches.  The first third of that trace shows what can be known before.  Even to keep what
was touched most often so far, which needs to know every touch, would miss 13.3 % there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.model import Comparison, Contender, Goal, Measure, Sample, Settings
from benchmarks.pagers import Fifo
from benchmarks.traces import (
    Units,
    moving,
    quicksort,
    rounds,
    scan_and_hot,
    shifting_zipf,
    uniform,
    zipf,
)
from refault.memory.workingset import WorkingSet

__all__ = ["POLICIES", "Trace", "comparisons", "misses", "traces"]


class Trace(NamedTuple):
    """Touches of units.

    Attributes
    ----------
    name
        What is touched.
    units, resident
        How many there are, and how many fit.
    counted
        Misses from this touch on are counted.
    touches
        Makes the numbers of the units that are touched.
    """

    name: str
    units: int
    resident: int
    counted: int
    touches: Callable[[], Units]


class Policy(Protocol):
    """Decides what is evicted."""

    def __init__(self, units: int, resident: int) -> None: ...

    def miss(self, index: int) -> bool:
        """Touch a unit; True if it was absent."""


def _usable(index: int) -> bool:
    return True


class _WorkingSet:
    """Eviction as `refault.fault.reclaim` does it for clean units: one at a time."""

    policy = WorkingSet

    def __init__(self, units: int, resident: int) -> None:
        self.room = resident
        self.present = self.policy(units, resident)

    def miss(self, index: int) -> bool:
        present = self.present
        if index in present:
            return False
        if self.room:
            self.room -= 1
        else:
            present.remove_many(present.victims(1, _usable), ghost=True)
        present.add(index)
        return True


class _Fifo(_WorkingSet):
    policy = Fifo


class _Lru:
    def __init__(self, units: int, resident: int) -> None:
        self.room = resident
        self.present: OrderedDict[int, None] = OrderedDict()

    def miss(self, index: int) -> bool:
        if index in self.present:
            self.present.move_to_end(index)
            return False
        if self.room:
            self.room -= 1
        else:
            self.present.popitem(last=False)
        self.present[index] = None
        return True


class _TwoLists:
    """An inactive and an active list, the latter with at most three quarters; as many ghosts."""

    def __init__(self, units: int, resident: int) -> None:
        self.resident = resident
        self.inactive: OrderedDict[int, None] = OrderedDict()
        self.active: OrderedDict[int, None] = OrderedDict()
        self.ghosts: OrderedDict[int, None] = OrderedDict()

    def miss(self, index: int) -> bool:
        inactive, active, ghosts = self.inactive, self.active, self.ghosts
        if index in inactive or index in active:
            return False
        if len(inactive) + len(active) == self.resident:
            while len(inactive) * 4 < self.resident:
                inactive[active.popitem(last=False)[0]] = None
            ghosts[inactive.popitem(last=False)[0]] = None
            if len(ghosts) > self.resident:
                ghosts.popitem(last=False)
        if index in ghosts:
            del ghosts[index]
            active[index] = None
        else:
            inactive[index] = None
        return True


POLICIES: dict[str, type[Policy]] = {
    "WorkingSet": _WorkingSet,
    "FIFO": _Fifo,
    "two lists": _TwoLists,
    "LRU": _Lru,
}


def misses(trace: Trace, policy: type[Policy]) -> float:
    """The share of counted touches that miss, in percent."""
    present = policy(trace.units, trace.resident)
    missed = [present.miss(index) for index in trace.touches().tolist()]
    counted = missed[trace.counted :]
    return 100 * sum(counted) / len(counted)


def comparisons(settings: Settings) -> Iterator[Comparison]:
    for trace in traces(settings.size(1, 64)):
        yield Comparison(
            f"{trace.name}: share of touches that miss, by policy",
            [_contender(name, trace, policy) for name, policy in POLICIES.items()],
            [Measure("misses", "%")],
            [Goal("FIFO", "misses", "WorkingSet", at_least=1.3)] if trace.name == GOAL else [],
            baseline="FIFO",
            once=True,
        )


def _contender(name: str, trace: Trace, policy: type[Policy]) -> Contender:
    def run() -> Sample:
        return {"misses": misses(trace, policy)}

    return Contender(name, run)


GOAL = "Zipf(0.99), 4 KiB units, a quarter resident"


def traces(smaller: int = 1) -> Iterator[Trace]:
    """All traces.

    Parameters
    ----------
    smaller
        So many times fewer units and touches.
    """
    small, large = (1 << 20) // smaller, (1 << 16) // smaller
    many, few = 12_000_000 // smaller, 1_200_000 // smaller

    def popular(exponent: float, count: int = many, unit: int = 1) -> Callable[[], Units]:
        return lambda: zipf(small, count, exponent, seed=1) // np.uint64(unit)

    late, short = many * 3 // 4, many // 3
    zipf99 = popular(0.99)
    yield Trace(GOAL, small, small // 4, late, zipf99)
    yield Trace("the first third of it", small, small // 4, late // 3, popular(0.99, short))
    yield Trace("Zipf(0.99), 4 KiB units, a tenth resident", small, small // 10, late, zipf99)
    yield Trace("Zipf(0.99), 4 KiB units, half resident", small, small // 2, late, zipf99)
    yield Trace("Zipf(0.8), 4 KiB units, a quarter resident", small, small // 4, late, popular(0.8))
    yield Trace("Zipf(1.2), 4 KiB units, a tenth resident", small, small // 10, late, popular(1.2))
    for exponent in (0.99, 0.8, 1.2):
        name = f"Zipf({exponent}), 64 KiB units, a quarter resident"
        yield Trace(name, large, large // 4, late // 3, popular(exponent, short, 16))
    others: list[tuple[str, int, Callable[[], Units]]] = [
        ("Zipf(0.99) that moves half way", few // 2, lambda: shifting_zipf(large, few, 0.99)),
        ("a hot sixth that moves half way", few // 2, lambda: moving(large, few, (0, 0.5))),
        (
            "a hot sixth that moves every 250,000 touches",
            few // 6,
            lambda: moving(large, 8 * few // 5, MOVES),
        ),
        ("a scan, and a hot eighth", few // 2, lambda: scan_and_hot(large, few)),
        ("sequential, round and round", few // 2, lambda: rounds(large, few)),
        ("uniform", few // 2, lambda: uniform(large, few)),
        ("quicksort", 0, lambda: quicksort(large)),
    ]
    for name, counted, touches in others:
        yield Trace(f"{name}, a quarter resident", large, large // 4, counted, touches)


MOVES = (0, 0.375, 0.75, 0.125, 0.5, 0.25, 0.625)

"""What a simulated program does: threads, pages, and what happens to them meanwhile."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from refault.errors import UsageError
from refault.fault.callers import RetryPolicy

__all__ = ["Op", "Scenario", "load", "pin", "populate", "prefetch", "store"]


class Op(NamedTuple):
    """One thing that a thread does."""

    kind: Literal["load", "store", "populate", "pin", "prefetch"]
    first: int
    last: int
    write: bool = False


def load(page: int) -> Op:
    """Read a page."""
    return Op("load", page, page + 1)


def store(page: int) -> Op:
    """Write a value to a page that nobody has written before."""
    return Op("store", page, page + 1, write=True)


def populate(first: int, last: int, *, write: bool = False) -> Op:
    """Make pages ``[first, last)`` present."""
    return Op("populate", first, last, write)


def pin(first: int, last: int, *, write: bool = False) -> Op:
    """Make pages present, keep them, read them all, let them go."""
    return Op("pin", first, last, write)


def prefetch(first: int, last: int) -> Op:
    """Begin to bring pages in, waiting for nothing."""
    return Op("prefetch", first, last)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A small program and its world; the explorer runs it in every order.

    Parameters
    ----------
    name
        For reports.
    about
        One line for the list of scenarios.
    threads
        What each thread does, in order.
    pages
        Page units of the object.
    budget
        How many may be resident; None: all.
    vmas
        Ranges that map the object; thread `i` uses range ``i % vmas``.
    private
        Changed pages go to swap instead of the store.
    cached
        Pages whose store answers at once.
    dirty
        Pages that have been written before it begins, and are resident.
    swapped
        Pages that have been written before and are in swap (needs `private`).
    read_failures
        How the first reads of a page fail, in order: "error" (asked again), "short" or
        "permanent".
    write_failures
        How many writes fail, at any time.
    evictions
        Each is a set of pages that somebody evicts, at any time.
    flushes
        How many times somebody writes back all that is dirty, at any time.
    snapshots
        How many snapshots are taken, at any time; each ends at any time.
    copies
        How many copies for snapshots have room in memory; None: all of them.
    unmaps
        Ranges that are unmapped, at any time.
    signals
        ``(thread, "interrupt" | "kill")``, each delivered at any time.
    policy
        Whether a fault may be retried more than once.
    allowed
        How threads may end, beside "done": by default what the other parameters imply.
    """

    name: str
    threads: tuple[tuple[Op, ...], ...]
    pages: int = 2
    budget: int | None = None
    vmas: int = 1
    private: bool = False
    cached: frozenset[int] = frozenset()
    dirty: frozenset[int] = frozenset()
    swapped: frozenset[int] = frozenset()
    read_failures: MappingOf[int, tuple[str, ...]] = field(default_factory=dict)
    write_failures: int = 0
    evictions: tuple[tuple[int, ...], ...] = ()
    flushes: int = 0
    snapshots: int = 0
    copies: int | None = None
    unmaps: tuple[int, ...] = ()
    signals: tuple[tuple[int, Literal["interrupt", "kill"]], ...] = ()
    policy: RetryPolicy = RetryPolicy.MULTIPLE
    allowed: frozenset[str] | None = None
    about: str = ""

    @functools.cached_property
    def ends(self) -> frozenset[str]:
        """How threads may end."""
        if self.allowed is not None:
            return self.allowed | {"done"}
        ends = {"done"}
        if self.unmaps:
            ends.add("SIGSEGV")
        if any(kind == "kill" for _, kind in self.signals):
            ends.add("killed")
        if any(end != "error" for fails in self.read_failures.values() for end in fails):
            ends.add("SIGBUS")
        return frozenset(ends)

    def scaled(self, threads: int | None = None, pages: int | None = None) -> Scenario:
        """The same with more, or fewer, threads and pages.

        Parameters
        ----------
        threads
            How many.  The first ones are as they are; thread ``n + i`` of a scenario with `n`
            does what thread `i` does, one page further.  Signals for threads that do not exist
            are left out.
        pages
            How many.  Pages beyond the end are counted from the beginning again, and the
            budget grows or shrinks in proportion, to no less than one page.

        Returns
        -------
        Scenario
        """
        size = self.pages if pages is None else pages
        count = len(self.threads) if threads is None else threads
        if size < 1 or count < 1:
            raise UsageError("a scenario needs a thread and a page; ask for at least 1 of each")
        budget = self.budget
        if budget is not None:
            budget = max(1, budget * size // self.pages)

        def here(given: Iterable[int]) -> frozenset[int]:
            return frozenset(page for page in given if page < size)

        return replace(
            self,
            threads=tuple(
                tuple(_moved(op, number // len(self.threads), size) for op in ops)
                for number, ops in zip(range(count), itertools.cycle(self.threads))
            ),
            pages=size,
            budget=budget,
            cached=here(self.cached),
            dirty=frozenset(sorted(here(self.dirty))[:budget]),
            swapped=here(self.swapped),
            read_failures={page: f for page, f in self.read_failures.items() if page < size},
            evictions=tuple(
                tuple(sorted({page % size for page in each})) for each in self.evictions
            ),
            signals=tuple(each for each in self.signals if each[0] < count),
        )


def _moved(op: Op, by: int, pages: int) -> Op:
    """An operation, some pages further, in an object of `pages`."""
    length = min(op.last - op.first, pages)
    first = min((op.first + by) % pages, pages - length)
    return op._replace(first=first, last=first + length)

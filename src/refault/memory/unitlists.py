"""Unit numbers at levels, oldest first, and ghosts of units: lists that are linked in one array.

A list has a node in the array that stands for no unit, and is its beginning and its end.  Nodes
that are not needed are in a list as well.  That costs 16 bytes for each unit that is in a list, and
4 for each unit of the mapping, or a dict; a linked list of Python objects costs a hundred.

Each step here is for many units at once, so that it can be done by native code on the same memory
(`refault.machine.unitlists`).  What follows for the order of eviction is not decided here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Final, Protocol

__all__ = ["FREE", "GHOSTS", "LEVELS", "NARROW", "NODE", "Places", "UnitLists"]

LEVELS: Final = 4
GHOSTS: Final = LEVELS
FREE: Final = GHOSTS + 1
LISTS: Final = FREE + 1

UNIT: Final = 0
NEXT: Final = 1
PREVIOUS: Final = 2
KIND: Final = 3
NODE: Final = 4
"""A node is so many numbers: its unit, the places of its neighbours, and in which list it is."""
LIST: Final = 7
_LOWEST: Final = 0
_FREE: Final = FREE * NODE
CAME_IN_AT: Final = 3
"""The kind of a node is its list, and, shifted by so many bits, the level at which it came in."""

LEAST: Final = 64
"""So many nodes are made at once, at least,"""
MOST: Final = 2048
"""and no more than these unless they are needed: that takes a millisecond."""


NARROW: Final = 1 << 32
"""Units of a mapping whose numbers fit into 32 bits."""


class Places(Protocol):
    """The place of each unit; 0: it has none."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, place: int, /) -> None: ...


class _Sparse(dict[int, int]):
    """Places of the units that have one."""

    __slots__ = ()

    def __missing__(self, index: int) -> int:
        return 0

    def __setitem__(self, index: int, place: int, /) -> None:
        if place:
            super().__setitem__(index, place)
        else:
            self.pop(index, None)


class UnitLists:
    """Units at `LEVELS` levels, and ghosts.

    Parameters
    ----------
    pages
        Units of the mapping.
    dense
        Whether all of them get a number in an array; else those that are in a list are in a dict.

    Attributes
    ----------
    nodes
        The list number ``n`` begins at the place ``n * NODE``.
    places
        Where the node of each unit begins; 0: it is in no list.
    counts
        How many units are in each list.
    newest
        The unit that came in last, or -1.
    """

    __slots__ = ("counts", "newest", "nodes", "places")

    def __init__(self, pages: int, *, dense: bool) -> None:
        self.nodes = array(_typecode(pages))
        for number in range(LISTS):
            begin = number * NODE
            self.nodes.extend((0, begin, begin, number))
        self.counts = array("q", [0] * LISTS)
        self.newest = -1
        self.places: Places = array("I", [0]) * pages if dense else self.sparse()

    def sparse(self) -> Places:
        """Places of which most are 0."""
        return _Sparse()

    def grow(self, pages: int) -> None:
        """The mapping has so many units now."""
        if isinstance(self.places, array):
            self.places.frombytes(bytes((pages - len(self.places)) * self.places.itemsize))
        if self.nodes.typecode != _typecode(pages):
            self.nodes = array(_typecode(pages), self.nodes)

    def find_places(self) -> None:
        """Enter in `places` where all units are; there are none yet."""
        nodes, places = self.nodes, self.places
        for place in range(LISTS * NODE, len(nodes), NODE):
            if nodes[place + KIND] & LIST != FREE:
                places[nodes[place + UNIT]] = place

    # -- looking ---------------------------------------------------------------

    @property
    def resident(self) -> int:
        """How many units are at any level."""
        return sum(self.counts[:LEVELS])

    def level(self, index: int) -> int | None:
        """At which level a unit is, if it is at one."""
        place = self.places[index]
        found = self.nodes[place + KIND] & LIST if place else GHOSTS
        return found if found < GHOSTS else None

    def came_in(self, index: int) -> int:
        """At which level a unit that is in a list came in."""
        return self.nodes[self.places[index] + KIND] >> CAME_IN_AT

    def units(self, number: int) -> Iterator[int]:
        """The units of a list, oldest first."""
        nodes, end = self.nodes, number * NODE
        place = nodes[end + NEXT]
        while place != end:
            yield nodes[place + UNIT]
            place = nodes[place + NEXT]

    def oldest(self, count: int) -> Iterable[int]:
        """Up to `count` units, from the lowest level up, oldest first."""
        return islice(chain.from_iterable(map(self.units, range(LEVELS))), count)

    # -- moving ----------------------------------------------------------------

    def enter(self, indexes: Iterable[int]) -> list[int]:
        """Let units come in, in this order; those that are at a level already are passed over.

        A unit that has a ghost comes in one level above that at which it came in last time, up to
        the highest; any other one at the lowest.

        Returns
        -------
        list of int
            For each level, how many had a ghost and had come in there last time.
        """
        nodes, places = self.nodes, self.places
        had = [0] * LEVELS
        last, new = nodes[_LOWEST + PREVIOUS], 0
        for index in indexes:
            place = places[index]
            if not place:
                place = nodes[_FREE + NEXT]
                if place == _FREE:
                    self._make(1)
                    place = nodes[_FREE + NEXT]
                after = nodes[place + NEXT]
                nodes[_FREE + NEXT], nodes[after + PREVIOUS] = after, _FREE
                nodes[last + NEXT] = place
                nodes[place + UNIT], nodes[place + PREVIOUS], nodes[place + KIND] = index, last, 0
                nodes[place + NEXT], nodes[_LOWEST + PREVIOUS] = _LOWEST, place
                places[index] = last = place
                new += 1
            elif nodes[place + KIND] & LIST == GHOSTS:
                before = nodes[place + KIND] >> CAME_IN_AT
                had[before] += 1
                level = min(before + 1, LEVELS - 1)
                self._move(place, level, level)
            else:
                continue
            self.newest = index
        self.counts[0] += new
        self.counts[FREE] -= new
        return had

    def leave(self, indexes: Iterable[int], *, ghost: bool) -> None:
        """Take units from their levels; `ghost`: they leave one.

        Units that are at no level are passed over.
        """
        nodes, places = self.nodes, self.places
        for index in indexes:
            place = places[index]
            kind = nodes[place + KIND] if place else GHOSTS
            if kind & LIST >= GHOSTS:
                continue
            if ghost:
                self._move(place, GHOSTS, kind >> CAME_IN_AT)
            else:
                self._drop(place)

    def forget(self, count: int, high: int) -> int:
        """Forget the `count` oldest ghosts; returns how many had come in at `high` or above."""
        nodes = self.nodes
        found = 0
        for _ in range(count):
            place = nodes[GHOSTS * NODE + NEXT]
            found += nodes[place + KIND] >> CAME_IN_AT >= high
            self._drop(place)
        return found

    def hand_down(self, level: int, count: int) -> None:
        """Move the `count` oldest units of a level to the young end of the one below."""
        nodes = self.nodes
        for _ in range(count):
            place = nodes[level * NODE + NEXT]
            self._move(place, level - 1, nodes[place + KIND] >> CAME_IN_AT)

    def renew(self, index: int) -> None:
        """Let a unit go to the young end of its level."""
        self.put(index, self.nodes[self.places[index] + KIND] & LIST, self.came_in(index))

    def put(self, index: int, number: int, came_in: int) -> None:
        """Let a unit go to the young end of a list."""
        self._move(self.places[index], number, came_in)

    def _move(self, place: int, number: int, came_in: int) -> None:
        """Take a node out of its list, and put it at the young end of another one."""
        nodes, counts = self.nodes, self.counts
        after, before = nodes[place + NEXT], nodes[place + PREVIOUS]
        nodes[before + NEXT], nodes[after + PREVIOUS] = after, before
        counts[nodes[place + KIND] & LIST] -= 1
        end = number * NODE
        last = nodes[end + PREVIOUS]
        nodes[last + NEXT] = nodes[end + PREVIOUS] = place
        nodes[place + NEXT], nodes[place + PREVIOUS] = end, last
        nodes[place + KIND] = number | came_in << CAME_IN_AT
        counts[number] += 1

    def _drop(self, place: int) -> None:
        self.places[self.nodes[place + UNIT]] = 0
        self._move(place, FREE, 0)

    def _make(self, count: int) -> None:
        """Make more nodes, `count` at least."""
        nodes, end = self.nodes, _FREE
        count = max(count, LEAST, min(MOST, len(nodes) // NODE))
        first = len(nodes)
        nodes.frombytes(bytes(count * NODE * nodes.itemsize))
        for place in range(first, len(nodes), NODE):
            last = nodes[end + PREVIOUS]
            nodes[place + NEXT], nodes[place + PREVIOUS], nodes[place + KIND] = end, last, FREE
            nodes[last + NEXT] = nodes[end + PREVIOUS] = place
        self.counts[FREE] += count


def _typecode(pages: int) -> str:
    """Of numbers of units, and of places."""
    return "Q" if pages > NARROW else "I"

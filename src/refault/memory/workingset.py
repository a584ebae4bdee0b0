"""Which page unit is evicted next.

What the kernel has and we have not: the accessed bit of a page table entry.  User space cannot
read it on shared memory, so it sees that a unit was touched only when the unit was absent.  But how
*often* a unit comes back soon after its eviction tells how often it is touched.

The rule.  Units stand in `LEVELS` queues.  Memory is taken from the old end of the lowest one.  A
unit that was evicted leaves a *ghost*: its number, and the level at which it came in.  A unit that
comes in while its ghost is remembered is a *refault*, and comes in one level higher than last
time; any other one comes in at the lowest.  All levels but the lowest may hold `SHARE` of all units
together.  The oldest unit of a level that holds too much goes down by one.  So a unit at a high
level passes through all those below before it is evicted, and what comes once (a scan) passes
through the lowest alone.

How much the lowest level holds is adapted.  A refault of a unit that came in at the lowest level
says that a larger lowest level would have kept it: it grows by one unit.  A refault of another
says that the upper levels are of use: it shrinks by `WEIGHT` units, as far as `SHARE` allows.
That is little, and an eighth of the memory may be read ahead (`refault.memory.readahead`): so for
each unit that is evicted before anybody has touched it, it grows by one as well.

How much the levels from `HIGH` on hold together is adapted as well.  A unit that came in there and
whose ghost is forgotten is used no more, so others may be, too: they hold one unit less.  For
a refault of such a unit they hold one more.  (Both once for all units that come in together.)

Sources: refaults and ghosts are the kernel's (mm/workingset.c, "shadow entries"); two of the levels
are its inactive and active list (mm/vmscan.c), more of them are its multi-generational LRU
and MQ (Zhou, 2001); that the lowest adapts is ARC's (Megiddo, 2003).

Why these numbers: misses in percent of Zipf(0.99) with 1,048,576 units of 4 KiB, from the nine
millionth touch to the twelfth, and to the sixty-fourth; or with 65,536 of 64 KiB; of 65,536 units
with a hot sixth that moves every three turnovers of the memory; and of a quicksort of as many,
where frequency means nothing (mean of three).  A quarter is resident.
``python -m benchmarks policies`` plays these, but for the long one, and others.

===========================  ======  ======  ======  ======  =========
..                            4 KiB    long  64 KiB   moves  quicksort
===========================  ======  ======  ======  ======  =========
as it is                       12.8    12.0    25.7    16.5       20.3
2 levels                       14.3    14.1    28.5    15.1       20.2
3 levels                       12.8    12.6    26.2    16.4       20.3
7 levels                       12.8    12.0    25.6    16.5       20.3
high levels not adapted        12.8    12.0    25.0    19.9       20.3
`HIGH` 1                       12.8    12.5    28.5    19.9       20.3
`HIGH` 3                       12.8    12.0    25.0    19.8       20.3
`SHARE` 3/4                    12.9    12.6    26.1    21.2       19.6
`SHARE` 7/8                    12.8    12.2    25.8    17.1       20.2
`WEIGHT` 1                     14.4    13.4    30.1    21.1       19.4
`WEIGHT` 4                     12.9    12.0    25.7    16.5       20.4
lowest level not adapted       13.1    12.1    25.8    18.6       24.5
as many ghosts as units fit    12.5    12.3    25.4    20.0       20.7
half as many                   13.3    12.2    26.3    16.8       20.1
FIFO                           17.2    17.2    32.7    19.1       17.6
LRU (knows every touch)        14.5    14.5    29.4    11.3       17.9
===========================  ======  ======  ======  ======  =========

What is learned is lost in waves: units that became popular at the same time come to the end of the
levels at the same time.  From million to million it is 11.6 to 13.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from .unitlists import GHOSTS, LEVELS, UnitLists

__all__ = ["WorkingSet"]

HIGH: Final = 2
SHARE: Final = (15, 16)
WEIGHT: Final = 3
GHOST_SHARE: Final = (3, 4)

CROWDED: Final = 64
"""With fewer units the newest one may be the first that can go, see `WorkingSet.victims`."""

DENSE: Final = 64
"""Up to so many units of the mapping per unit of room, an array with a number for each is no larger
than a dict of those in use: 4 bytes a unit against 260 for a resident unit and its share of the
ghosts."""
FEW: Final = 1 << 16
"""So many units always have an array."""


class WorkingSet:
    """The resident units of one mapping, in the order they will be evicted.

    Parameters
    ----------
    pages
        Units of the mapping.
    room
        How many of them may be resident; None: all.
    lists
        Makes the lists of units.

    Attributes
    ----------
    lists
        The lowest level is evicted from.
    max_ghosts
        How many ghosts are remembered.
    wanted
        By how many units the lowest level should be larger than `SHARE` makes it.
    high
        How many units the levels from `HIGH` on may hold together.
    most_upper
        Never more than that, `wanted` and `high`.
    """

    __slots__ = ("high", "lists", "max_ghosts", "most_upper", "wanted")

    def __init__(
        self, pages: int, room: int | None = None, *, lists: Callable[..., UnitLists] = UnitLists
    ) -> None:
        dense = pages <= FEW or (room is not None and pages <= DENSE * room)
        self.lists = lists(pages, dense=dense)
        self.wanted = 0
        self.max_ghosts = 0
        self.set_room(pages if room is None else room)

    def set_room(self, room: int) -> None:
        """So many units may be resident from now on."""
        self.max_ghosts = -(-GHOST_SHARE[0] * room // GHOST_SHARE[1])
        self.high = self.most_upper = room * SHARE[0] // SHARE[1]
        self.wanted = min(self.wanted, self.most_upper)
        self._forget_ghosts()

    def grow(self, pages: int) -> None:
        """The mapping has so many units now."""
        self.lists.grow(pages)

    def __len__(self) -> int:
        return self.lists.resident

    def __contains__(self, index: int) -> bool:
        return self.lists.level(index) is not None

    def __iter__(self) -> Iterator[int]:
        for level in range(LEVELS):
            yield from self.lists.units(level)

    def state(self) -> tuple[object, ...]:
        """All that decides what will be evicted: equal for sets that will behave the same.

        Of the levels from `HIGH` on it is all the same at which a unit came in: it comes in at the
        highest next time.
        """
        lists = self.lists
        return (
            self.wanted,
            self.high,
            lists.newest if lists.newest >= 0 and lists.newest in self else -1,
            *(
                tuple((index, min(lists.came_in(index), HIGH)) for index in lists.units(number))
                for number in (*range(LEVELS), GHOSTS)
            ),
        )

    def add(self, index: int) -> bool:
        """Enter a unit that was brought in; True if it is a refault."""
        return bool(self.add_many((index,)))

    def add_many(self, indexes: Sequence[int]) -> int:
        """Enter units that were brought in, in this order; returns how many are refaults."""
        low, *others = self.lists.enter(indexes)
        refaults = low + sum(others)
        if refaults:
            wanted = self.wanted + low - WEIGHT * (refaults - low)
            self.wanted = max(0, min(wanted, self.most_upper))
            self.high = min(self.high + sum(others[HIGH - 1 :]), self.most_upper)
        return refaults

    def wasted(self, count: int) -> None:
        """So many units are to be removed that were read ahead, and that nobody has touched."""
        self.wanted = min(self.wanted + count, self.most_upper)

    def remove(self, index: int, *, ghost: bool) -> None:
        """Take a unit out; `ghost`: remember that it was evicted."""
        self.remove_many((index,), ghost=ghost)

    def remove_many(self, indexes: Sequence[int], *, ghost: bool) -> None:
        """Take units out; those that are not resident are passed over."""
        self.lists.leave(indexes, ghost=ghost)
        if ghost:
            self.high = max(0, self.high - self._forget_ghosts())

    def victims(
        self, count: int, usable: Callable[[int], bool], *, look_at: int | None = 64
    ) -> list[int]:
        """Choose up to `count` units that are `usable`, from the lowest level up, oldest first.

        No more than ``count + look_at`` units are looked at.  If there is no usable one among them,
        they go to the young end of their level, so that the next call looks at others.  With
        `look_at` None all units are looked at: an empty answer is then final.

        The newest unit is not chosen, unless `look_at` is None.  An access can need two units at
        once; if each were the only one that can go, because the others are dirty, or worth
        more, they would take each other's place for ever.
        """
        self._settle()
        total = len(self)
        most = total if look_at is None else count + look_at
        if look_at is not None and total < CROWDED:
            usable = _all_but(self.lists.newest, usable)
        chosen = list(islice(filter(usable, self.lists.oldest(most)), count))
        if not chosen and look_at is not None:
            for index in list(self.lists.oldest(most)):
                self.lists.renew(index)
        return chosen

    def _settle(self) -> None:
        """Let the oldest units of levels that hold too much go down by one."""
        counts, total = self.lists.counts, len(self)
        upper = max(0, total * SHARE[0] // SHARE[1] - self.wanted)
        above = 0
        for level in range(LEVELS - 1, 0, -1):
            limit = upper if level < HIGH else min(upper, self.high)
            down = min(counts[level], above + counts[level] - limit)
            if down > 0:
                self.lists.hand_down(level, down)
            above += counts[level]

    def _forget_ghosts(self) -> int:
        """No more ghosts than we may have, the oldest ones go; how many had come in high."""
        count = self.lists.counts[GHOSTS] - self.max_ghosts
        return self.lists.forget(count, HIGH) if count > 0 else 0


def _all_but(newest: int, usable: Callable[[int], bool]) -> Callable[[int], bool]:
    return lambda index: index != newest and usable(index)

"""Which page unit is evicted next.

Source: the kernel's mm/workingset.c and mm/vmscan.c.  New units enter the
inactive list, evictions take from its old end.  An evicted unit leaves a ghost:
its number and nothing else.  A unit that faults again while its ghost is still
remembered has a reuse distance that more memory would have covered: that is a
*refault*, and the unit goes to the active list, where it is kept longer.  As
many ghosts are kept as units fit the budget.

What the kernel has and we have not: the accessed bit of a page table entry.
User space cannot read it on shared memory.  So a unit's place in its list is given
by when it was last brought in, not by when it was last touched.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

__all__ = ["WorkingSet"]


class WorkingSet:
    """The resident units of one mapping, in the order they will be evicted."""

    __slots__ = ("active", "ghosts", "inactive", "max_ghosts")

    def __init__(self, max_ghosts: int) -> None:
        self.inactive: OrderedDict[int, None] = OrderedDict()
        self.active: OrderedDict[int, None] = OrderedDict()
        self.ghosts: OrderedDict[int, None] = OrderedDict()
        self.max_ghosts = max_ghosts

    def __len__(self) -> int:
        return len(self.inactive) + len(self.active)

    def __contains__(self, index: int) -> bool:
        return index in self.inactive or index in self.active

    def __iter__(self) -> Iterator[int]:
        yield from self.inactive
        yield from self.active

    def add(self, index: int) -> bool:
        """Enter a unit that was brought in; True if it is a refault."""
        if index in self.ghosts:
            del self.ghosts[index]
            self.active[index] = None
            return True
        self.inactive[index] = None
        return False

    def remove(self, index: int, *, ghost: bool) -> None:
        """Take a unit out; `ghost`: remember that it was evicted."""
        if self.inactive.pop(index, 0) is not None:
            self.active.pop(index, None)
        if ghost:
            self.ghosts[index] = None
            if len(self.ghosts) > self.max_ghosts:
                self.ghosts.popitem(last=False)

    def victims(
        self, count: int, usable: Callable[[int], bool], *, look_at: int | None = 64
    ) -> list[int]:
        """Choose up to `count` units that are `usable`, oldest first.

        No more than ``count + look_at`` units are looked at.  If there is no usable one among them,
        they go to the young end, so that the next call looks at others.  The
        active list gives way once it holds more than three quarters.  With `look_at` None
        all units are looked at, the active ones last: an empty answer is then final.
        """
        total = len(self)
        while self.active and len(self.inactive) * 4 < total:
            index, _ = self.active.popitem(last=False)
            self.inactive[index] = None
        chosen: list[int] = []
        passed: list[int] = []
        for index in self.inactive if look_at is not None else self:
            if usable(index):
                chosen.append(index)
                if len(chosen) == count:
                    break
            elif look_at is not None:
                passed.append(index)
                if len(passed) == look_at:
                    break
        if not chosen:
            for index in passed:
                self.inactive.move_to_end(index)
        return chosen

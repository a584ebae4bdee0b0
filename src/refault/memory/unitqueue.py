"""A queue of unit numbers in one array.

A unit that leaves from the middle leaves its entry behind.  So an entry alone says nothing: each
unit has a *word* (see `refault.memory.workingset`), which names the queue it stands in and its
place there, and an entry counts only if the word of its unit names it.  That costs 4 bytes per
unit, where a linked list of Python objects costs a hundred.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

__all__ = ["KIND", "PLACE", "UnitQueue", "Words"]

PLACE: Final = 6
"""A word is the place shifted by so many bits; those below say what the unit is."""
KIND: Final = (1 << PLACE) - 1
SPARE: Final = 64
"""So many entries that do not count are always allowed, so that small queues are left in peace."""

Words: TypeAlias = "array[int] | dict[int, int]"


class UnitQueue:
    """Unit numbers, oldest first.

    Parameters
    ----------
    kind
        The low bits of the word of a unit that stands here, of those that `kinds` names.
    kinds
        Which of the low bits `kind` is compared with.
    typecode
        Of the array; a unit number fits.

    Attributes
    ----------
    entries
        Unit numbers from `head` on; those that do not count are between them.
    base
        The place of ``entries[0]``; places are counted up and never used again.
    live
        How many entries count.
    """

    __slots__ = ("base", "entries", "head", "kind", "kinds", "live")

    def __init__(self, kind: int, kinds: int, typecode: str) -> None:
        self.entries = array(typecode)
        self.head = 0
        self.base = 0
        self.live = 0
        self.kind = kind
        self.kinds = kinds

    def counts(self, words: Words, at: int) -> bool:
        """Whether the entry ``entries[at]`` counts."""
        word = words[self.entries[at]]
        return word & self.kinds == self.kind and word >> PLACE == self.base + at

    def units(self, words: Words) -> Iterator[int]:
        """All units that stand here, oldest first."""
        for at in range(self.head, len(self.entries)):
            if self.counts(words, at):
                yield self.entries[at]

    def push(self, words: Words, index: int) -> None:
        """Let a unit that stands here go to the young end."""
        words[index] = words[index] & KIND | self.base + len(self.entries) << PLACE
        self.entries.append(index)

    def forget(self, words: Words, count: int, mark: int) -> int:
        """Take the `count` oldest units out; nothing is known about them any more.

        Returns how many words had the bit `mark`.
        """
        entries, base, kind, kinds, at = self.entries, self.base, self.kind, self.kinds, self.head
        sparse = isinstance(words, dict)
        left, marked = count, 0
        while left:
            index = entries[at]
            word = words[index]
            if word >> PLACE == base + at and word & kinds == kind:
                if sparse:
                    del words[index]
                else:
                    words[index] = 0
                left -= 1
                if word & mark:
                    marked += 1
            at += 1
        self.head = at
        self.live -= count
        self.cut()
        return marked

    def hand_over(self, words: Words, count: int, other: UnitQueue) -> None:
        """Move the `count` oldest units to the young end of another queue."""
        entries, base, kind, kinds, at = self.entries, self.base, self.kind, self.kinds, self.head
        place, keep = other.base + len(other.entries), KIND & ~kinds
        moved = 0
        while moved < count:
            index = entries[at]
            word = words[index]
            if word >> PLACE == base + at and word & kinds == kind:
                words[index] = place + moved << PLACE | word & keep | other.kind
                other.entries.append(index)
                moved += 1
            at += 1
        self.head = at
        self.live -= count
        other.live += count
        self.cut()

    def look(
        self,
        words: Words,
        count: int,
        usable: Callable[[int], bool],
        look_at: int | None,
        chosen: list[int],
        passed: list[int],
    ) -> bool:
        """Look for usable units from the old end on.

        Parameters
        ----------
        count
            When so many are `chosen`, it is enough.
        look_at
            When so many are `passed`, too; None: `passed` is not filled.
        chosen, passed
            Units that are usable or not are appended.

        Returns
        -------
        bool
            Whether it is enough.
        """
        entries, base, kind, kinds = self.entries, self.base, self.kind, self.kinds
        enough = False
        found = 0
        at = self.head - 1
        for at in range(self.head, len(entries)):
            index = entries[at]
            word = words[index]
            if word >> PLACE != base + at or word & kinds != kind:
                if not found:
                    self.head = at + 1
                continue
            found += 1
            if usable(index):
                chosen.append(index)
                enough = len(chosen) == count
            elif look_at is not None:
                passed.append(index)
                enough = len(passed) == look_at
            if enough:
                break
        if at + 1 - self.head > found:
            self.squeeze(words, at + 1)
        else:
            self.cut()
        return enough

    def squeeze(self, words: Words, stop: int) -> None:
        """Move the units that stand before ``entries[stop]`` together, up to it."""
        entries, to = self.entries, stop
        for at in range(stop - 1, self.head - 1, -1):
            if self.counts(words, at):
                to -= 1
                index = entries[to] = entries[at]
                words[index] = words[index] & KIND | self.base + to << PLACE
        self.head = to
        self.cut()

    def cut(self) -> None:
        """Give the memory before the head back, if it is worth it."""
        if self.head > SPARE and self.head * 2 > len(self.entries):
            del self.entries[: self.head]
            self.base += self.head
            self.head = 0

    def tidy(self, words: Words) -> None:
        """Squeeze if most entries do not count."""
        if len(self.entries) - self.head > 2 * self.live + SPARE:
            self.squeeze(words, len(self.entries))

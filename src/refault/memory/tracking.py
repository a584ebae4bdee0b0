"""Which units of a mapping were written since an instant.

Source: the kernel's soft-dirty bits, which also mean "write-protect all, and see who faults".

An *instant* is a moment at which no unit of a mapping may be changed without a fault.  Whoever
wants to know what was written since then holds it (a snapshot, a mark); the units that were written
between two held instants are one set, so it does not matter how many instants there were.
"""

from __future__ import annotations

__all__ = ["Written"]


class Written:
    """What was written of one mapping, and what may be written now without a fault.

    Attributes
    ----------
    writable
        The units that may be mapped writable, if they are dirty.  All others are protected.
    known
        Whether that is true already: before, units may be writable from the time when nobody asked.
    takers
        How many are about to take an instant.
    instant
        The number of the last instant.
    """

    __slots__ = ("_holders", "_sets", "instant", "known", "takers", "writable")

    def __init__(self) -> None:
        self.writable: set[int] = set()
        self.known = False
        self.takers = 0
        self.instant = 0
        self._sets: dict[int, set[int]] = {}
        self._holders: dict[int, int] = {}

    @property
    def used(self) -> bool:
        """Whether anybody holds an instant, or is about to take one."""
        return bool(self.takers or self._holders)

    def wrote(self, index: int) -> None:
        """A unit is about to be mapped writable, for somebody who writes."""
        self.writable.add(index)
        if self._sets:
            self._sets[next(reversed(self._sets))].add(index)

    def advance(self) -> int:
        """Nothing is writable now: an instant, and held by the caller."""
        if self.writable:
            raise AssertionError("an instant at which units are writable")
        self.instant += 1
        self._sets[self.instant] = set()
        self._holders[self.instant] = 1
        return self.instant

    def hold(self, instant: int) -> None:
        """One more wants to know what was written since an instant, which is held already."""
        self._holders[instant] += 1

    def release(self, instant: int) -> None:
        """Undo one `advance` or `hold`."""
        self._holders[instant] -= 1
        if self._holders[instant]:
            return
        del self._holders[instant]
        before = None
        for start in self._sets:
            if start == instant:
                break
            before = start
        written = self._sets.pop(instant)
        if before is not None:
            self._sets[before] |= written

    def since(self, instant: int, until: int | None = None) -> set[int]:
        """Units that were written after one held instant, and before another one or until now."""
        found: set[int] = set()
        for start, written in self._sets.items():
            if start >= instant and (until is None or start < until):
                found |= written
        return found

"""Which parts of a growing file are free.  Pure numbers; the unit is the caller's."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

__all__ = ["Extents"]


class Extents:
    """Best-fit allocation with coalescing: freed neighbours become one extent.

    Attributes
    ----------
    end
        Where the file ends: everything allocated lies below.
    free
        Units below `end` that are not allocated.
    """

    __slots__ = ("_begins", "_by_size", "_ends", "_sizes", "end", "free")

    def __init__(self) -> None:
        self.end = 0
        self.free = 0
        self._begins: dict[int, int] = {}  # first unit of a free extent -> its size
        self._ends: dict[int, int] = {}  # unit behind a free extent -> its first unit
        self._by_size: dict[int, dict[int, None]] = {}
        self._sizes: list[int] = []  # sorted keys of _by_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Free extents as (start, size)."""
        return iter(self._begins.items())

    def allocate(self, size: int) -> int:
        """Take `size` units; the file grows only if no free extent is long enough.

        Among extents of one size the last one freed is taken: its blocks are
        the most likely to be in the page cache still.
        """
        position = bisect_left(self._sizes, size)
        if position == len(self._sizes):
            return self.grow(size)
        found = self._sizes[position]
        start = next(reversed(self._by_size[found]))
        self._remove(start, found)
        if found > size:
            self._add(start + size, found - size)
        return start

    def grow(self, size: int) -> int:
        """Take `size` units at the end of the file."""
        start = self.end
        self.end += size
        return start

    def claim(self, start: int, size: int) -> bool:
        """Take a whole free extent; False if it is no longer there like this."""
        if self._begins.get(start) != size:
            return False
        self._remove(start, size)
        return True

    def release(self, start: int, size: int) -> None:
        """Give back what was allocated; a free end shortens the file."""
        behind = self._begins.get(start + size)
        if behind is not None:
            self._remove(start + size, behind)
            size += behind
        before = self._ends.get(start)
        if before is not None:
            self._remove(before, start - before)
            size += start - before
            start = before
        if start + size == self.end:
            self.end = start
        else:
            self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        self._begins[start] = size
        self._ends[start + size] = start
        starts = self._by_size.get(size)
        if starts is None:
            starts = self._by_size[size] = {}
            insort(self._sizes, size)
        starts[start] = None
        self.free += size

    def _remove(self, start: int, size: int) -> None:
        del self._begins[start]
        del self._ends[start + size]
        starts = self._by_size[size]
        del starts[start]
        if not starts:
            del self._by_size[size]
            del self._sizes[bisect_left(self._sizes, size)]
        self.free -= size

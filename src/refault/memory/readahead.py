"""When to read ahead, and how far.

Source: the kernel's on-demand readahead (mm/readahead.c).  The first two
touches of a sequence open a small window behind it; each time the
reader arrives at the window's marker, the next window, twice as large up to a
bound, is begun.  A jump ends the sequence.  The marker is the first unit of the
newest window: it is read but not mapped, so that touching it is seen.
"""

from __future__ import annotations

__all__ = ["Readahead"]

INITIAL_BYTES = 256 << 10
MAX_BYTES = 2 << 20


class Readahead:
    """The sequence that one mapping's reader seems to follow.

    Parameters
    ----------
    page_size
        Bytes of a page unit.
    """

    __slots__ = ("initial", "largest", "low", "previous", "size", "start")

    def __init__(self, page_size: int, budget: int | None) -> None:
        room = MAX_BYTES if budget is None else min(MAX_BYTES, budget // 8)
        self.largest = room // page_size
        self.initial = min(max(INITIAL_BYTES // page_size, 1), self.largest)
        self.previous = -2
        self.low = 0
        self.start = 0
        self.size = 0

    def window(self, index: int) -> tuple[int, int] | None:
        """Note a fault at `index`; which units ``[first, last)`` to begin, if any."""
        previous, self.previous = self.previous, index
        if not self.largest:
            return None
        if self.size and self.low <= index <= self.start + self.size:
            if index < self.start:
                return None
            past = index == self.start + self.size
            self.low = self.start
            self.start += self.size + past
            self.size = min(self.size * 2, self.largest)
        elif index == previous + 1:
            self.low = index
            self.start = index + 1
            self.size = self.initial
        else:
            if index != previous:
                self.size = 0
            return None
        return self.start, self.start + self.size

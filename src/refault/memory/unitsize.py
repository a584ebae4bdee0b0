"""Which size of page unit fits how a mapping is used.

A unit is read, mapped, written back and evicted as one.  That has two sides.

* A fault costs what `FIXED` bytes cost, and its bytes: measured, 5 us for a unit of 4 KiB and
  22 us for one of 64 KiB.  So large units are cheaper if more than four of their sixteen pages
  are wanted before they are evicted.
* What is not wanted of a unit takes memory from others, and then there are more faults.

What is wanted of a large unit cannot be seen: there is no accessed bit.  With small units it
can.  So small ones are tried, if memory is full and three quarters of what came in, twice in a row,
belong to no sequence (what does is read ahead, and is cheap in any size).  Meanwhile a *shadow* is
kept: the large units that would be in memory, numbers only, first in, first out.  It begins with
those that were there at the change.  Each small unit that comes in asks whether the shadow has its
large one.  If not, this would have been a fault with large units, too.  For a dense use that is one
of sixteen; without any locality it is nearly each one.  So the shadow tells how much cheaper large
units would be.

What was touched while it was present is not seen, though some of it would not have been present
with large units: the error is in favour of large units.

A trial that fails is not repeated soon, and later and later if it fails again.  Nothing at all
happens while memory is not full.  No clock is read: events are counted.

Where nearly all belongs to sequences there are still larger units, the *largest*: a sort is some
8 % faster with 256 KiB.  There is no more to gain: 1 MiB is no better than that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .mapping import Mapping

__all__ = ["UnitChooser"]

FIXED: Final = 14 << 10
"""Bytes that cost as much as what is the same for all faults."""

LEAST: Final = 64
"""Fewer evictions of large units tell nothing."""

LEAST_SMALL: Final = 4096
"""Fewer small units tell nothing: a few windows that were read ahead by mistake are as many."""

PART: Final = 4
"""Large units are judged when one in so many of those in memory was evicted."""

SAMPLES: Final = 1024
"""So many large units in the shadow are enough: if it were more, a part of all is looked at."""

LONGEST: Final = 1 << 12
"""Judgements that are passed over after many trials that failed, at most."""

PROVED: Final = 16
"""After so many judgements for small units in a row, trials that failed before are forgotten."""

TRIED: Final = 4
"""So many judgements for small units are more than a trial: two must say that they were wrong."""

IN_ORDER: Final = 3
"""After so many judgements in a row that all is in order, the largest units are tried."""

_SPREAD: Final = 0x9E3779B1


def _hash(block: int) -> int:
    return block * _SPREAD >> 16


class UnitChooser:
    """Watches what comes into a mapping, and says when units of another size would be better.

    Parameters
    ----------
    small, large, largest
        The sizes to choose from, in bytes.  It begins with large units.  `largest` may be the same.
    decided
        Called when `wanted` has changed.  Whoever carries it out calls `changed`.

    Attributes
    ----------
    wanted
        Bytes of the units that there should be.
    """

    def __init__(self, small: int, large: int, largest: int, decided: Callable[[], None]) -> None:
        self.small = small
        self.large = large
        self.largest = largest
        self.decided = decided
        self.wanted = large
        self._size = large
        self._shift = (large // small).bit_length() - 1
        self._dearer = (FIXED + large) / (FIXED + small)
        self._pause = 1
        self._skip = 0
        self._proved = 0
        self._up_pause = 1
        self._up_skip = 0
        self._entered = 0
        # Of large units, and the largest.
        self._ahead = 0
        self._due: int | None = None
        self._scattered = self._in_order = 0
        # Of small ones.
        self._shadow: OrderedDict[int, None] = OrderedDict()
        self._room = self._mask = self._window = self._sampled = self._missed = self._dense = 0

    def changed(self, page_size: int, order: Iterable[int]) -> None:
        """The units have another size now; `order` are those in memory, oldest first."""
        self.wanted = page_size
        self._size = page_size
        self._entered = self._scattered = self._in_order = 0
        self._due = None
        self._shadow.clear()
        if page_size != self.small:
            return
        blocks = list(dict.fromkeys(index >> self._shift for index in order))
        self._mask = 0
        while len(blocks) > SAMPLES * (self._mask + 1):
            self._mask = 2 * self._mask + 1
        self._shadow.update((block, None) for block in blocks if not _hash(block) & self._mask)
        self._room = max(1, len(self._shadow))
        self._window = max(LEAST_SMALL, len(blocks))
        self._sampled = self._missed = self._dense = 0

    def entered(self, indexes: Sequence[int], mapping: Mapping) -> None:
        """Units have come into `mapping`."""
        self._entered += len(indexes)
        if self._size != self.small:
            if self._due is None or mapping.counters.evictions >= self._due:
                self._judge_large(mapping)
            return
        self._ask_shadow(indexes)
        if self._entered >= self._window:
            self._judge_small()

    def _want(self, page_size: int) -> None:
        if self.wanted != page_size:
            self.wanted = page_size
            self.decided()

    # -- large units --------------------------------------------------------------------------

    def _judge_large(self, mapping: Mapping) -> None:
        counters, judged = mapping.counters, self._due is not None
        entered, ahead = self._entered, counters.readahead - self._ahead
        self._entered, self._ahead = 0, counters.readahead
        self._due = counters.evictions + max(LEAST, len(mapping.working_set) // PART)
        if not judged:
            return
        self._scattered = self._scattered + 1 if 4 * ahead < entered else 0
        self._in_order = self._in_order + 1 if 4 * ahead > 3 * entered else 0
        if self._size == self.largest != self.large:
            self._judge_largest(ahead, entered)
        elif self._skip:
            self._skip -= 1
        elif self._scattered > 1:
            self._want(self.small)
        elif self._up_skip:
            self._up_skip -= 1
        elif self._in_order >= IN_ORDER:
            self._want(self.largest)

    def _judge_largest(self, ahead: int, entered: int) -> None:
        """Back to large units, if no more than half is in order."""
        if 2 * ahead > entered:
            self._proved += 1
            return
        self._up_pause = 1 if self._proved >= PROVED else min(2 * self._up_pause, LONGEST)
        self._up_skip = self._up_pause
        self._proved = 0
        self._want(self.large)

    # -- small units --------------------------------------------------------------------------

    def _ask_shadow(self, indexes: Sequence[int]) -> None:
        shadow, shift, mask = self._shadow, self._shift, self._mask
        for index in indexes:
            block = index >> shift
            if mask and _hash(block) & mask:
                continue
            self._sampled += 1
            if block not in shadow:
                self._missed += 1
                shadow[block] = None
                if len(shadow) > self._room:
                    shadow.popitem(last=False)

    def _judge_small(self) -> None:
        dense = self._missed * self._dearer < self._sampled
        self._entered = self._sampled = self._missed = 0
        self._dense = self._dense + 1 if dense else 0
        if not dense:
            self._proved += 1
            return
        if self._proved >= TRIED and self._dense == 1:
            return  # what was read ahead by mistake looks dense for a moment
        self._pause = 1 if self._proved >= PROVED else min(2 * self._pause, LONGEST)
        self._skip = self._pause
        self._proved = 0
        self._want(self.large)

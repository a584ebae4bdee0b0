"""Which units of a mapping a program has used, and how often each had to come in for it.

User space cannot see that a unit is touched while it is in memory.  But it sees how a unit ends:
one that goes and is not PG_AHEAD any more was mapped for somebody.  So a unit is counted when it is
dropped, and those that are in memory are looked at when somebody asks.  No fault costs more.

What counts as used: a fault mapped it, or the program asked for it (`populate`, `pin`,
`prefetch`).  A unit that was read ahead counts only if it was mapped.  One fault may map those
beside it as well (`refault.fault.handlers.fault_around`), and they count: nobody can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat
from operator import add
from typing import TYPE_CHECKING, Final

from .page import PG_AHEAD, PG_UPTODATE

if TYPE_CHECKING:
    from .mapping import Mapping

__all__ = ["MOST", "Counts", "Touched", "split_or_merged"]

MOST: Final = 255
"""What is counted no further."""

Counts = bytearray | memoryview
"""How often each unit went, after it had been used; one byte for each."""

_CHUNK: Final = 1 << 16
_RUN: Final = re.compile(rb"([^\0])\1*", re.DOTALL)
_IN_USE: Final = bytes((state & (PG_UPTODATE | PG_AHEAD)) == PG_UPTODATE for state in range(256))


class Touched:
    """What of a mapping has been used up to a moment; a thread may look at it.

    Parameters
    ----------
    mapping
        Whose.

    Attributes
    ----------
    page_size, size
        Bytes of a unit, and of the object.
    """

    def __init__(self, mapping: Mapping) -> None:
        # If the units get another size meanwhile, there are other buffers, and these stay.
        self._counts = mapping.touched
        self._flags = mapping.flags
        self.page_size = mapping.page_size
        self.size = mapping.size

    def ranges(self, first: int = 0) -> Iterator[tuple[int, int, int]]:
        """Bytes ``[start, end)`` of the object that have been used, in order, and how often.

        Parameters
        ----------
        first
            The unit to begin with.
        """
        size, total = self.page_size, self.size
        for start in range(first, len(self._flags), _CHUNK):
            came = bytes(self._counts[start : start + _CHUNK])
            there = bytes(self._flags[start : start + _CHUNK]).translate(_IN_USE)
            if 1 not in there and came.count(0) == len(came):
                continue
            used = bytes(map(min, map(add, came, there), repeat(MOST)))
            for run in _RUN.finditer(used):
                low, high = start + run.start(), start + run.end()
                yield low * size, min(high * size, total), used[run.start()]


def split_or_merged(old: Counts, new: Counts, shift: int) -> None:
    """Fill `new` with the counts of units that are ``1 << shift`` times as large as the old ones.

    Each part of a unit that is split has its count; a larger unit has that of the part that has
    most.
    """
    parts = 1 << abs(shift)
    step = max(parts, _CHUNK)
    for start in range(0, len(old), step):
        chunk = bytes(old[start : start + step])
        if chunk.count(0) == len(chunk):
            continue
        if shift > 0:
            merged = bytes(max(chunk[at : at + parts]) for at in range(0, len(chunk), parts))
            new[start >> shift : (start >> shift) + len(merged)] = merged
        else:
            first = start << -shift
            split = b"".join(map(bytes, zip(*repeat(chunk, parts), strict=True)))
            split = split[: len(new) - first]
            new[first : first + len(split)] = split

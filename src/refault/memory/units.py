"""A mapping gets page units of another size.

All that is kept for each unit is translated.  A large unit that is split hands on its state to
each part.  Parts become one large unit only if all of them are there; if some are not, the others
must be dropped before (`broken`).  A large unit is dirty if any of its parts is: then those of its
parts that were clean are still mapped write-protected, and the first write to them is one fault
more, as always.  So what is writable is dirty, before and after.

What is forgotten: ghosts, what was learnt of each unit for the order of eviction (the order itself
is kept), and the streams of readahead.

Nobody may hold the number of a unit, or the state bytes, from before: see `refault.fault.units`.
"""

from __future__ import annotations

from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING, Final

from .page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READAHEAD,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from .touched import split_or_merged

if TYPE_CHECKING:
    from .mapping import Mapping

__all__ = ["broken", "convert", "dirty", "swapped", "worked_on"]

_CHUNK: Final = 1 << 20


def _those_with(bits: int) -> bytes:
    return bytes(bool(state & bits) for state in range(256))


_WORKED_ON: Final = _those_with(PG_LOCKED | PG_READING | PG_WRITEBACK)
_SWAPPED: Final = _those_with(PG_SWAPPED)
_DIRTY: Final = _those_with(PG_DIRTY)


def _first(flags: bytearray | memoryview, table: bytes) -> int | None:
    """The first unit whose state `table` has a 1 for; a nanosecond for each unit before it."""
    for start in range(0, len(flags), _CHUNK):
        at = bytes(flags[start : start + _CHUNK]).translate(table).find(1)
        if at >= 0:
            return start + at
    return None


def worked_on(mapping: Mapping) -> int | None:
    """A unit that somebody has locked, reads or writes back; None: there is none."""
    return _first(mapping.flags, _WORKED_ON)


def dirty(mapping: Mapping, first: int, last: int) -> list[int]:
    """The units of ``[first, last)`` that are dirty; some nanoseconds for each unit."""
    found = bytes(mapping.flags[first:last]).translate(_DIRTY)
    if 1 not in found:
        return []
    return list(compress(range(first, last), found))


def swapped(mapping: Mapping) -> bool:
    """Whether swap holds a unit."""
    return _first(mapping.flags, _SWAPPED) is not None


def broken(mapping: Mapping, page_size: int) -> list[int]:
    """Resident units, sorted, that would be a part of a larger unit which is not whole.

    The last unit of an object is charged as if it were as long as the others; so it is whole only
    if there are as many parts.
    """
    shift = page_size.bit_length() - 1 - mapping.page_shift
    if shift <= 0:
        return []
    parts = 1 << shift
    found = Counter([index >> shift for index in mapping.working_set])
    few = {large for large, count in found.items() if count < parts}
    return sorted(index for index in mapping.working_set if index >> shift in few) if few else []


def convert(mapping: Mapping, page_size: int) -> None:
    """Give a mapping units of `page_size` bytes; the budget is settled.

    Raises
    ------
    AssertionError
        Somebody works on a unit, holds its number, or it is a part of one that is not whole.
        Nothing has been changed.
    """
    if worked_on(mapping) is not None or not mapping.can_change():
        raise AssertionError(f"{mapping} is in use")
    shift = page_size.bit_length() - 1 - mapping.page_shift
    pages = -(-mapping.size // page_size)
    resident = len(mapping.working_set)
    flags = mapping.make_flags(pages)
    if shift > 0:
        order, dirty = _merged(mapping, flags, shift)
    else:
        order, dirty = _split(mapping, flags, -shift, pages)
    errors = _translated(mapping.write_errors, shift, pages)
    touched = mapping.make_flags(pages)
    split_or_merged(mapping.touched, touched, shift)
    before = resident * mapping.page_size
    mapping.page_size = page_size
    mapping.page_shift += shift
    mapping.pages = pages
    mapping.flags = flags
    mapping.touched = touched
    mapping.dirty = dirty
    mapping.write_errors = errors
    mapping.renew_order(order)
    mapping.wake_all_pages()
    mapping.budget.uncharge(before - len(order) * page_size)


def _split(
    mapping: Mapping, flags: bytearray | memoryview, shift: int, pages: int
) -> tuple[list[int], int]:
    """The parts in order, and how many are dirty."""
    old, parts = mapping.flags, 1 << shift
    order: list[int] = []
    dirty = 0
    states = [bytes((state & ~PG_READAHEAD,)) * parts for state in range(256)]
    for index in mapping.working_set:
        first = index << shift
        last = first + parts
        state = old[index]
        if last > pages:
            last = pages
        flags[first:last] = states[state][: last - first]
        order.extend(range(first, last))
        if state & PG_DIRTY:
            dirty += last - first
    return order, dirty


def _merged(mapping: Mapping, flags: bytearray | memoryview, shift: int) -> tuple[list[int], int]:
    """The large units in order, each as old as its oldest part, and how many are dirty."""
    old, parts = mapping.flags, 1 << shift
    order = list(dict.fromkeys([index >> shift for index in mapping.working_set]))
    if len(order) << shift != len(mapping.working_set):
        raise AssertionError(f"{mapping}: a larger unit is not whole")
    dirty = 0
    for large in order:
        states = set(bytes(old[large << shift : (large << shift) + parts]))
        state = PG_UPTODATE
        for one in states:
            state |= one & (PG_DIRTY | PG_SWAPPED)
        if all(one & PG_AHEAD for one in states):
            state |= PG_AHEAD
        flags[large] = state
        dirty += bool(state & PG_DIRTY)
    return order, dirty


def _translated(
    errors: dict[int, BaseException], shift: int, pages: int
) -> dict[int, BaseException]:
    found: dict[int, BaseException] = {}
    for index, error in errors.items():
        if shift > 0:
            found.setdefault(index >> shift, error)
        else:
            first = index << -shift
            found.update(dict.fromkeys(range(first, min(first + (1 << -shift), pages)), error))
    return found

"""The state of a page unit: one byte.

A page unit is what the kernel calls a folio: a run of 4 KiB pages that is read,
mapped, written back and evicted as one.  Names and meanings are those of the
kernel's include/linux/page-flags.h.

=============  ============================================================
PG_LOCKED      somebody works on the unit: reads it, evicts it, maps it
PG_UPTODATE    the memfd holds the unit's whole, true content
PG_DIRTY       the content is newer than what store or swap hold
PG_WRITEBACK   the content is on its way to store or swap
PG_SWAPPED     swap holds the content (where a region has no store for it)
PG_READAHEAD   touching it says that readahead should go on
PG_READING     a read is under way; the unit is locked on behalf of the read
=============  ============================================================

A unit is mapped writable in a client only while it is dirty, so a unit that
is not dirty cannot change behind our back.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "PG_DIRTY",
    "PG_LOCKED",
    "PG_READAHEAD",
    "PG_READING",
    "PG_SWAPPED",
    "PG_UPTODATE",
    "PG_WRITEBACK",
    "page_flag_names",
]

PG_LOCKED: Final = 0x01
PG_UPTODATE: Final = 0x02
PG_DIRTY: Final = 0x04
PG_WRITEBACK: Final = 0x08
PG_SWAPPED: Final = 0x10
PG_READAHEAD: Final = 0x40
PG_READING: Final = 0x80

_NAMES: Final = {
    PG_LOCKED: "locked",
    PG_UPTODATE: "uptodate",
    PG_DIRTY: "dirty",
    PG_WRITEBACK: "writeback",
    PG_SWAPPED: "swapped",
    PG_READAHEAD: "readahead",
    PG_READING: "reading",
}


def page_flag_names(state: int) -> str:
    """Spell a state byte out, ``"uptodate|dirty"``; ``"absent"`` for 0."""
    return "|".join(name for bit, name in _NAMES.items() if state & bit) or "absent"

"""What can happen to a page unit: every state, every event, and the state after it.

This is the table behind the state diagram in the documentation.  The simulated machine
enters every change it sees, and a change that is not in the table is a `Violation`; a row that no
scenario ever shows fails a test.  So the picture is what the code does.

Left out are three bits that have no part in this: PG_SWAPPED (swap holds the content, if neither
memory nor a store does), PG_ACTIVE and PG_READAHEAD.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from refault.machine.simulated import Violation
from refault.memory.mapping import Mapping
from refault.memory.page import PG_DIRTY, PG_LOCKED, PG_READING, PG_UPTODATE, PG_WRITEBACK

__all__ = ["PAGE_STATES", "TRANSITIONS", "Transition", "WatchedMapping", "state_name"]

COUNTS: Final = PG_LOCKED | PG_READING | PG_UPTODATE | PG_DIRTY | PG_WRITEBACK

PAGE_STATES: Final = {
    "absent": 0,
    "locked": PG_LOCKED,
    "reading": PG_LOCKED | PG_READING,
    "clean": PG_UPTODATE,
    "clean, locked": PG_UPTODATE | PG_LOCKED,
    "dirty": PG_UPTODATE | PG_DIRTY,
    "dirty, locked": PG_UPTODATE | PG_DIRTY | PG_LOCKED,
    "writing": PG_UPTODATE | PG_WRITEBACK,
    "writing, locked": PG_UPTODATE | PG_WRITEBACK | PG_LOCKED,
    "writing, changed": PG_UPTODATE | PG_WRITEBACK | PG_DIRTY,
    "writing, changed, locked": PG_UPTODATE | PG_WRITEBACK | PG_DIRTY | PG_LOCKED,
}
"""Name and bits of every state."""

_NAMES: Final = {bits: name for name, bits in PAGE_STATES.items()}


class Transition(NamedTuple):
    """One row: an event takes a unit from one state to another."""

    before: str
    event: str
    after: str
    who: str


TRANSITIONS: Final = (
    Transition("absent", "lock", "locked", "a fault"),
)
"""Every row."""

_ALLOWED: Final = {(row.before, row.event): row.after for row in TRANSITIONS}


def state_name(flags: int) -> str:
    """The name of a unit's state, or its bits if it has none.

    Parameters
    ----------
    flags
        `PG_*` bits.
    """
    return _NAMES.get(flags & COUNTS, hex(flags & COUNTS))


class WatchedMapping(Mapping):
    """A mapping that enters every change of a unit's state.

    Attributes
    ----------
    seen
        Rows of `TRANSITIONS` that happened, as (state before, event).
    """

    seen: set[tuple[str, str]]
    inside = False

    def _check(self, index: int, event: str, before: int) -> None:
        row = (state_name(before), event)
        after = state_name(self.flags[index])
        if _ALLOWED.get(row) != after:
            raise Violation(f"page {index}: {event}: from {row[0]} to {after}")
        self.seen.add(row)

    def trylock_page(self, index: int) -> bool:
        before = self.flags[index]
        locked = super().trylock_page(index)
        if locked:
            self._check(index, "lock", before)
        return locked

    def unlock_page(self, index: int) -> None:
        before = self.flags[index]
        super().unlock_page(index)
        if not self.inside:
            self._check(index, "unlock", before)

    def set_uptodate(self, index: int) -> None:
        before = self.flags[index]
        super().set_uptodate(index)
        if not self.inside:
            self._check(index, "filled at once", before)

    def set_dirty(self, index: int) -> None:
        before = self.flags[index]
        super().set_dirty(index)
        if not before & PG_DIRTY and not self.inside:
            self._check(index, "made dirty", before)

    def begin_read(self, index: int) -> None:
        before = self.flags[index]
        super().begin_read(index)
        self._check(index, "read begins", before)

    def end_read(self, index: int, error: BaseException | None, *, permanent: bool = False) -> None:
        before = self.flags[index]
        self.inside = True
        try:
            super().end_read(index, error, permanent=permanent)
        finally:
            self.inside = False
        self._check(index, "read fails" if error is not None else "read ends", before)

    def begin_writeback(self, index: int) -> None:
        before = self.flags[index]
        super().begin_writeback(index)
        self._check(index, "write begins", before)

    def end_writeback(self, index: int, error: BaseException | None) -> None:
        before = self.flags[index]
        self.inside = True
        try:
            super().end_writeback(index, error)
        finally:
            self.inside = False
        self._check(index, "write fails" if error is not None else "write ends", before)

    def drop(self, index: int, *, ghost: bool) -> None:
        before = self.flags[index]
        super().drop(index, ghost=ghost)
        self._check(index, "dropped", before)

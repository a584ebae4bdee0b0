"""What can happen to a page unit: every state, every event, and the state after it.

This is the table behind the state diagram in the documentation.  The simulated machine
enters every change it sees, and a change that is not in the table is a `Violation`; a row that no
scenario ever shows fails a test.  So the picture is what the code does.

Left out are two bits that have no part in this: PG_SWAPPED (swap holds the content, if neither
memory nor a store does) and PG_READAHEAD.
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
    Transition("locked", "unlock", "absent", "a fault that must wait or fail; an eviction"),
    Transition("locked", "read begins", "reading", "a fault"),
    Transition("reading", "read ends", "clean", "the store or swap"),
    Transition("reading", "read fails", "absent", "the store or swap"),
    Transition("locked", "filled at once", "clean, locked", "a fault"),
    Transition("clean", "lock", "clean, locked", "an eviction; a fault that waited for one"),
    Transition("clean, locked", "unlock", "clean", "a fault"),
    Transition("clean", "made dirty", "dirty", "a write fault"),
    Transition("clean, locked", "made dirty", "dirty, locked", "a write fault"),
    Transition("clean", "dropped", "absent", "a fault that needs room"),
    Transition("clean, locked", "dropped", "locked", "an eviction"),
    Transition("dirty", "lock", "dirty, locked", "an eviction; a fault that waited for one"),
    Transition("dirty, locked", "unlock", "dirty", "a fault; an eviction whose write failed"),
    Transition("dirty, locked", "write begins", "writing, locked", "an eviction"),
    Transition("writing, locked", "write ends", "clean, locked", "the store or swap"),
    Transition("writing, locked", "write fails", "dirty, locked", "the store or swap"),
    Transition("dirty", "write begins", "writing", "a flush"),
    Transition("writing", "write ends", "clean", "the store or swap"),
    Transition("writing", "write fails", "dirty", "the store or swap"),
    Transition("writing", "made dirty", "writing, changed", "a write fault"),
    Transition("writing", "lock", "writing, locked", "a fault that waited for the lock"),
    Transition("writing, locked", "unlock", "writing", "a fault"),
    Transition("writing, locked", "made dirty", "writing, changed, locked", "a write fault"),
    Transition("writing, changed, locked", "unlock", "writing, changed", "a write fault"),
    Transition("writing, changed", "lock", "writing, changed, locked", "a fault that waited"),
    Transition("writing, changed", "write ends", "dirty", "the store or swap"),
    Transition("writing, changed", "write fails", "dirty", "the store or swap"),
)
"""Every row."""

_ALLOWED: Final = {
    (PAGE_STATES[row.before], row.event): (PAGE_STATES[row.after], row) for row in TRANSITIONS
}


_NEVER: Final = (-1, TRANSITIONS[0])


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
        Rows of `TRANSITIONS` that happened.
    """

    seen: set[Transition] | None = None
    inside = False

    def watch(self, seen: set[Transition]) -> None:
        """From now on enter every change in `seen`."""
        self.seen = seen

    def _check(self, index: int, event: str, before: int) -> None:
        if self.seen is None:
            return
        flags = self.flags[index]
        after, row = _ALLOWED.get((before & COUNTS, event), _NEVER)
        if after != flags & COUNTS:
            raise Violation(
                f"page {index}: {event}, while it was {state_name(before)}; now {state_name(flags)}"
            )
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

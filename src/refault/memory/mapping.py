"""One store-backed object in memory: the states of its page units.

Source: the kernel's `struct address_space` (the page cache of one file).  A
mapping has one memfd, shared by every `Vma` that maps it.  The state bytes here
are the truth about it; what the memfd or a page table happen to hold is only
ever what these bytes say it may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .budget import Budget
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
from .protection import Protection
from .readahead import Readahead
from .touched import MOST
from .tracking import Written
from .unitlists import UnitLists
from .units import convert, swapped
from .unitsize import UnitChooser
from .wait import WaitQueue
from .workingset import WorkingSet

if TYPE_CHECKING:
    from .vma import Vma

__all__ = ["OUTLIVES", "UNSTORED", "Counters", "Mapping", "PageError"]

UNSTORED: Final = PG_DIRTY | PG_WRITEBACK
"""Nobody else has the content of such a unit."""
OUTLIVES: Final = 0xFF & ~(PG_UPTODATE | PG_AHEAD | PG_READAHEAD)
"""What of its state is left of a unit whose memory is given back."""


class Counters:
    """What happened to one mapping since it was opened; plain numbers."""

    __slots__ = (
        "attempts",
        "bytes_read",
        "bytes_written",
        "evictions",
        "faults",
        "given_up",
        "major",
        "max_attempts",
        "minor",
        "native",
        "prefetched",
        "readahead",
        "refaults",
        "retries_address_space",
        "retries_memory",
        "retries_page_lock",
        "retries_read",
        "retries_store_error",
        "retries_write_protect",
        "retries_writeback",
        "store_errors",
        "store_reads",
        "store_writes",
        "swap_reads",
        "swap_writes",
        "unit_changes",
        "write_protect_faults",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    if TYPE_CHECKING:
        attempts: int
        bytes_read: int
        bytes_written: int
        evictions: int
        faults: int
        given_up: int
        major: int
        max_attempts: int
        minor: int
        native: int
        prefetched: int
        readahead: int
        refaults: int
        retries_address_space: int
        retries_memory: int
        retries_page_lock: int
        retries_read: int
        retries_store_error: int
        retries_write_protect: int
        retries_writeback: int
        store_errors: int
        store_reads: int
        store_writes: int
        swap_reads: int
        swap_writes: int
        unit_changes: int
        write_protect_faults: int


class PageError:
    """Why the last read of a unit failed, and whether to ask again.

    Attributes
    ----------
    cause
        What the store raised.
    permanent
        Asking again is of no use.
    tries
        How often the store has been asked for this unit in vain.
    cooling
        True until the pause before the next try is over; then `over` is woken.
    """

    __slots__ = ("cause", "cooling", "over", "permanent", "tries")

    def __init__(self, cause: BaseException, *, permanent: bool, tries: int) -> None:
        self.cause = cause
        self.permanent = permanent
        self.tries = tries
        self.cooling = not permanent
        self.over = WaitQueue()

    def cooled(self) -> None:
        """The pause is over: let the waiting faults try again."""
        self.cooling = False
        self.over.wake_all()


class Mapping:
    """One object whose page units are brought in, changed, and written back.

    Parameters
    ----------
    number
        Unique in its pager.
    name
        For messages: a path, or the name of the store.
    size
        Bytes in the object.
    page_size
        Bytes of a page unit, a power of two.
    budget
        Where resident units are charged.
    private
        Changed units go to swap and never to the store.
    writable
        Whether changed units may be written to the store.
    readahead
        Whether sequential reads are recognised.
    far
        Bytes to read ahead from a store that is far away, see `Readahead`; 0: it is not.
    run_bytes
        Neighbouring units are joined to reads of so many bytes at most.

    Attributes
    ----------
    holders
        Tasks that remember numbers of units over a wait; their size stays meanwhile.
    closed
        Everything has been given back.
    protection
        The snapshots of it; None: there are none.
    written
        Who writes what, while somebody wants to know; always, while there is a `protection`.
    chooser
        Learns which size fits; None: it was given, and stays.
    touched
        How often each unit went after it had been used, see `refault.memory.touched`.
    prefetching
        What comes in does so because a run before this one needed it; the chooser is not told.
    """

    def __init__(
        self,
        number: int,
        name: str,
        size: int,
        page_size: int,
        budget: Budget,
        *,
        private: bool,
        writable: bool,
        readahead: bool = True,
        far: int = 0,
        run_bytes: int = 0,
    ) -> None:
        if page_size & (page_size - 1):
            raise AssertionError("page_size must be a power of two")
        self.number = number
        self.name = name
        self.size = size
        self.page_size = page_size
        self.page_shift = page_size.bit_length() - 1
        self.budget = budget
        self.private = private
        self.writable = writable
        self.pages = -(-size // page_size)
        self.flags = self.make_flags(self.pages)
        self.touched = self.make_flags(self.pages)
        self.prefetching = False
        self.dirty = 0
        self.vmas: list[Vma] = []
        self.pins: dict[int, int] = {}
        self.errors: dict[int, PageError] = {}
        self.write_errors: dict[int, BaseException] = {}
        self.counters = Counters()
        self.protection: Protection | None = None
        self.written: Written | None = None
        self.reclaiming = False
        self.holders = 0
        self.closed = False
        self.chooser: UnitChooser | None = None
        self.working_set = self._make_working_set()
        self.file_windows = False
        self.far = far
        self.run_bytes = run_bytes
        self.readahead = self._make_readahead() if readahead else None
        self._queues: dict[int, WaitQueue] = {}
        level: Budget | None = budget
        while level is not None:
            level.mappings.append(self)
            level = level.parent

    # -- sizes ------------------------------------------------------------

    def index_bytes(self, index: int) -> tuple[int, int]:
        """Bytes ``[start, end)`` of the object that a unit holds."""
        start = index << self.page_shift
        return start, min(start + self.page_size, self.size)

    def grow(self, size: int) -> None:
        """The object has become larger."""
        self.size = size
        pages = -(-size // self.page_size)
        old, self.flags = self.flags, self.make_flags(pages)
        self.flags[: self.pages] = old
        old, self.touched = self.touched, self.make_flags(pages)
        self.touched[: self.pages] = old
        self.pages = pages
        self.working_set.grow(pages)

    @staticmethod
    def make_flags(pages: int) -> bytearray | memoryview:
        """So many state bytes, all 0; a machine may have lazier ones."""
        return bytearray(pages)

    @staticmethod
    def make_lists(pages: int, *, dense: bool) -> UnitLists:
        """The lists in which units wait for eviction; a machine may have faster ones."""
        return UnitLists(pages, dense=dense)

    def set_page_size(self, page_size: int) -> None:
        """Change the size of the units, if nobody works on any: see `refault.memory.units`."""
        convert(self, page_size)
        self.counters.unit_changes += 1
        self.budget_changed()
        if self.chooser is not None:
            self.chooser.changed(page_size, self.working_set)

    def can_change(self) -> bool:
        """Whether units of another size are possible, once nobody works on any of them.

        Not while tasks hold numbers of units over a wait, pins do, snapshots do, or units could
        not be read; and not if swap holds some: it knows them by their number.
        """
        return not (
            self.closed
            or self.holders
            or self.pins
            or self.errors
            or self.written is not None
            or (self.private and swapped(self))
        )

    def renew_order(self, order: Sequence[int]) -> None:
        """The resident units have other numbers, in this order of eviction."""
        self.working_set = self._make_working_set()
        self.working_set.add_many(order)

    def _make_working_set(self) -> WorkingSet:
        limit = self.budget.limit
        room = None if limit is None else limit // self.page_size
        return WorkingSet(self.pages, room, lists=self.make_lists)

    def budget_changed(self) -> None:
        """The limit of the budget is another one: so are the windows that follow from it."""
        limit = self.budget.limit
        self.working_set.set_room(self.pages if limit is None else limit // self.page_size)
        if self.readahead is not None:
            self.readahead = self._make_readahead()

    def _make_readahead(self) -> Readahead:
        return Readahead(
            self.page_size,
            self.budget.limit,
            file_windows=self.file_windows,
            far=self.far,
            run_bytes=self.run_bytes,
        )

    @property
    def resident(self) -> int:
        """Bytes charged to the budget."""
        return self.budget.usage

    # -- the page lock ------------------------------------------------------

    def trylock_page(self, index: int) -> bool:
        """Lock a unit if nobody holds its lock."""
        if self.flags[index] & PG_LOCKED:
            return False
        self.flags[index] |= PG_LOCKED
        return True

    def unlock_page(self, index: int) -> None:
        """Give the unit's lock up and wake whoever waits for it."""
        if not self.flags[index] & PG_LOCKED:
            raise AssertionError(f"unit {index} of {self.name} unlocked twice")
        self.flags[index] &= ~PG_LOCKED
        self.wake_page(index)
        if self.flags[index] & PG_UPTODATE:
            self.budget.wake_waiters()

    def unlock_pages(self, indexes: Sequence[int]) -> None:
        """`unlock_page` of several units."""
        flags, queues = self.flags, self._queues
        there = 0
        for index in indexes:
            state = flags[index]
            if not state & PG_LOCKED:
                raise AssertionError(f"unit {index} of {self.name} unlocked twice")
            flags[index] = state & ~PG_LOCKED
            there |= state
            if index in queues:
                self.wake_page(index)
        if there & PG_UPTODATE:
            self.budget.wake_waiters()

    def page_queue(self, index: int) -> WaitQueue:
        """Where tasks wait for the unit's lock, read or writeback to end."""
        queue = self._queues.get(index)
        if queue is None:
            queue = self._queues[index] = WaitQueue()
        return queue

    def wake_page(self, index: int) -> None:
        """Wake whoever waits for anything about the unit."""
        queue = self._queues.pop(index, None)
        if queue is not None:
            queue.wake_all()

    def wake_all_pages(self) -> None:
        """Wake whoever waits for anything about any unit."""
        for index in list(self._queues):
            self.wake_page(index)

    # -- content ------------------------------------------------------------

    def set_uptodate(self, index: int) -> None:
        """The memfd now holds the unit's true content (the unit is locked)."""
        self.flags[index] |= PG_UPTODATE
        self.errors.pop(index, None)
        self.entered((index,))

    def entered(self, indexes: Sequence[int]) -> None:
        """Units have come in, in this order; their states say so already."""
        self.counters.refaults += self.working_set.add_many(indexes)
        if self.chooser is not None and not self.prefetching:
            self.chooser.entered(indexes, self)

    def set_dirty(self, index: int) -> None:
        """The unit is about to be changed: what store or swap hold is old from now on."""
        if not self.flags[index] & PG_DIRTY:
            self.flags[index] |= PG_DIRTY
            self.dirty += 1

    def begin_read(self, index: int) -> None:
        """A read of the (locked, charged) unit has been started."""
        self.flags[index] |= PG_READING

    def end_read(self, index: int, error: BaseException | None, *, permanent: bool = False) -> None:
        """The read has ended: the unit is uptodate, or it has an error, and is unlocked."""
        self.flags[index] &= ~PG_READING
        if error is None:
            self.set_uptodate(index)
        else:
            self.flags[index] &= ~PG_AHEAD
            self.budget.uncharge(self.page_size)
            self.set_error(index, error, permanent=permanent)
        self.unlock_page(index)

    def set_error(self, index: int, error: BaseException, *, permanent: bool) -> PageError:
        """Remember why a unit could not be read."""
        before = self.errors.get(index)
        tries = before.tries + 1 if before is not None else 1
        self.errors[index] = found = PageError(error, permanent=permanent, tries=tries)
        self.counters.store_errors += 1
        return found

    def begin_writeback(self, indexes: Sequence[int]) -> None:
        """Units are protected; their content is about to be written."""
        flags, errors = self.flags, self.write_errors
        for index in indexes:
            state = flags[index]
            if state & PG_WRITEBACK:
                raise AssertionError(f"unit {index} of {self.name} written twice at once")
            flags[index] = state & ~PG_DIRTY | PG_WRITEBACK
            self.dirty -= bool(state & PG_DIRTY)
            if errors:
                errors.pop(index, None)

    def end_writeback(self, indexes: Sequence[int], error: BaseException | None) -> None:
        """The content is stored, or the units are dirty again."""
        flags, queues = self.flags, self._queues
        stored = PG_SWAPPED if self.private and error is None else 0
        for index in indexes:
            flags[index] = flags[index] & ~PG_WRITEBACK | stored
            if error is not None:
                self.set_dirty(index)
                self.write_errors[index] = error
            if index in queues:
                self.wake_page(index)
        if error is not None:
            self.counters.store_errors += len(indexes)
        self.budget.wake_waiters()

    def drop(self, indexes: Sequence[int], *, ghost: bool) -> None:
        """The memory of units was given back; only store or swap have their content now."""
        wasted = self._clear(indexes)
        if wasted and ghost:
            self.working_set.wasted(wasted)
        self.working_set.remove_many(indexes, ghost=ghost)
        if wasted and self.readahead is not None:
            self.readahead.wasted()
        if ghost:
            self.counters.evictions += len(indexes)
        self.budget.uncharge(self.page_size * len(indexes))

    def _clear(self, indexes: Sequence[int]) -> int:
        """The states of units say that they are absent; returns how many were read in vain."""
        flags, touched = self.flags, self.touched
        wasted = 0
        for index in indexes:
            state = flags[index]
            if state & UNSTORED:
                raise AssertionError(f"unit {index} of {self.name} dropped while it is dirty")
            if state & PG_AHEAD:
                wasted += 1
            elif touched[index] < MOST:
                touched[index] += 1
            flags[index] = state & OUTLIVES
        return wasted

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A task remembers numbers of units over a wait, as long as the block lasts."""
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1

    # -- instants -----------------------------------------------------------

    def gate(self) -> None:
        """Something that is out of the ordinary has come or gone; machines may want to know."""

    def track(self) -> Written:
        """Begin to note who writes what, or go on."""
        if self.written is None:
            self.written = Written()
            self.gate()
        return self.written

    def untrack(self) -> None:
        """Stop that, if nobody needs it any more."""
        if self.written is not None and not self.written.used:
            self.written = None
            self.gate()

    def wrote(self, index: int) -> None:
        """The unit is about to be changed, by somebody who may."""
        self.set_dirty(index)
        if self.written is not None:
            self.written.wrote(index)

    def may_write(self, index: int) -> bool:
        """Whether the unit is to be mapped writable for somebody who reads."""
        if not self.flags[index] & PG_DIRTY:
            return False
        return self.written is None or index in self.written.writable

    # -- pins ---------------------------------------------------------------

    def pin(self, index: int) -> None:
        """Keep a unit resident until it is unpinned as often as it was pinned."""
        self.pins[index] = self.pins.get(index, 0) + 1

    def unpin(self, index: int) -> None:
        """Undo one `pin`."""
        count = self.pins[index] - 1
        if count:
            self.pins[index] = count
        else:
            del self.pins[index]
            self.budget.wake_waiters()

    def evictable(self, index: int) -> bool:
        """Whether nobody works on the unit and nobody has pinned it."""
        return not self.flags[index] & (PG_LOCKED | PG_WRITEBACK) and index not in self.pins

    def droppable(self, index: int) -> bool:
        """Whether the unit can be evicted without writing it first."""
        state = self.flags[index]
        return not state & (PG_LOCKED | PG_WRITEBACK | PG_DIRTY) and index not in self.pins

    def __repr__(self) -> str:
        return f"<Mapping {self.number} {self.name} {self.pages} units of {self.page_size}>"

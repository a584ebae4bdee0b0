"""The simulated machine: memory, page tables and a store made of plain Python objects.

It stands where the Linux machine stands, under the very same fault path.  A unit's
content is one value.  A read of it begins when it is asked for and ends later; a
write of it has two halves, since what is written may be taken from memory at any
time in between.  Between these steps anything else may happen; whether one fails is
decided by whoever drives them.  What the kernel would do with a wrong order (show half
a page, hand out zeros, let a write through that nobody sees) happens here too, and is
reported as a `Violation`.

That a read begins at once hides nothing: from then on its unit has memory with half a
page in it, which is the most that the budget can be asked for, and the worst
that anybody could be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from refault.errors import StoreError
from refault.fault.machine import Runs
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping, PageError
from refault.memory.page import PG_DIRTY, PG_SWAPPED, PG_UPTODATE
from refault.memory.protection import Image
from refault.memory.vma import Vma
from refault.memory.wait import WaitQueue

__all__ = ["HALF", "Io", "SimulatedMachine", "Violation"]

HALF: Final = "half a page"
"""What a unit holds while it is being filled."""

PAGE: Final = 4096


class Violation(BaseException):
    """A promise was broken.  The message says which, and how.

    Not an `Exception`: no handler of the fault path may take it for a failure of the store.
    """


def _units(runs: Runs) -> Iterator[int]:
    for first, last in runs:
        yield from range(first, last)


class Io:
    """A read or a write that is under way.

    Attributes
    ----------
    started
        False until a write has taken what it writes from memory.
    captured
        What that was.
    """

    __slots__ = ("captured", "first", "last", "mapping", "started", "swap", "write")

    def __init__(self, mapping: Mapping, first: int, last: int, *, write: bool, swap: bool) -> None:
        self.mapping = mapping
        self.first = first
        self.last = last
        self.write = write
        self.swap = swap
        self.started = not write
        self.captured: list[Any] = []

    @property
    def label(self) -> str:
        """What a schedule calls it."""
        verb = "write" if self.write else "read"
        part = "end" if self.started else "begin"
        return f"{verb} {self.first}..{self.last - 1}: {part}"


class SimulatedMachine:
    """See `refault.fault.machine.Machine`.

    Parameters
    ----------
    on_wake
        Called with a vma and the units ``[first, last)`` whose sleepers are woken.
    on_reclaim
        Called with a budget whose background reclaim should run.
    room
        How many copies for snapshots there may be in memory; None: any number.

    Attributes
    ----------
    memory
        Content of every allocated unit, by mapping number and index.
    tables
        Page table of each vma: index to whether it is writable.
    stored, swapped
        What store and swap hold.
    cached
        Units whose store can answer at once.
    io
        Reads and writes under way.
    cooling
        Errors whose pause is not over yet.
    copies
        Those in memory: `move_copy` makes room.
    peak
        The most bytes that had memory at once.
    """

    def __init__(
        self,
        on_wake: Callable[[Vma, int, int], None],
        on_reclaim: Callable[[Budget], None],
        room: int | None = None,
    ) -> None:
        self.on_wake = on_wake
        self.on_reclaim = on_reclaim
        self.memory: dict[tuple[int, int], Any] = {}
        self.tables: dict[Vma, dict[int, bool]] = {}
        self.stored: dict[tuple[int, int], Any] = {}
        self.swapped: dict[tuple[int, int], Any] = {}
        self.cached: set[tuple[int, int]] = set()
        self.io: list[Io] = []
        self.cooling: list[PageError] = []
        self.room = room
        self.copies: list[Image] = []
        self.copies_freed = WaitQueue()
        self.peak = 0

    # -- what threads do --------------------------------------------------------

    def add_vma(self, mm: AddressSpace, vma: Vma) -> None:
        """Map a range."""
        mm.insert(vma)
        self.tables[vma] = {}

    def entry(self, vma: Vma, index: int) -> bool | None:
        """The page table entry: None, or whether it is writable."""
        return self.tables[vma].get(index)

    def load(self, vma: Vma, index: int) -> Any:
        """What a mapped unit holds."""
        return self.memory.get((vma.mapping.number, index), 0)

    def store(self, vma: Vma, index: int, value: Any) -> None:
        """Change a unit that is mapped writable."""
        if not vma.mapping.flags[index] & PG_DIRTY:
            raise Violation(f"a write to unit {index} goes through that nobody will ever see")
        self.memory[vma.mapping.number, index] = value

    # -- what the fault path asks for ---------------------------------------------

    def map_units(
        self, vma: Vma, first: int, last: int, *, writable: bool, protected: bool | None
    ) -> None:
        """Map units, see `Machine.map_units`; as CONTINUE and WRITEPROTECT do it."""
        if vma.detached:
            raise Violation("V3: a vma is used that has been unmapped")
        table = self.tables[vma]
        for index in range(first, last):
            if not vma.mapping.flags[index] & PG_UPTODATE:
                raise Violation(f"unit {index} is mapped before it is complete")
            if (vma.mapping.number, index) not in self.memory:
                raise Violation(f"unit {index} is mapped but has no memory")
            if not protected and index not in table:
                table[index] = writable
            if writable and protected is not False and index in table:
                table[index] = True
        self.on_wake(vma, first, last)

    def write_protect(self, mapping: Mapping, runs: Runs) -> None:
        """Write-protect units, see `Machine.write_protect`."""
        for vma in mapping.vmas:
            table = self.tables[vma]
            for index in _units(runs):
                if index in table:
                    table[index] = False

    def punch(self, mapping: Mapping, indexes: Sequence[int]) -> None:
        """Free units, see `Machine.punch`."""
        for index in indexes:
            if any(self.tables[vma].get(index) for vma in mapping.vmas):
                raise Violation(f"unit {index} is freed while a thread can still write to it")
            self.memory.pop((mapping.number, index), None)
            for vma in mapping.vmas:
                self.tables[vma].pop(index, None)

    def read_now(self, mapping: Mapping, index: int) -> bool:
        """Fill a unit whose store can answer at once, see `Machine.read_now`."""
        key = (mapping.number, index)
        if key not in self.cached:
            return False
        source = self.swapped if mapping.flags[index] & PG_SWAPPED else self.stored
        self._allocate(mapping, index, source[key])
        return True

    def submit_read(self, mapping: Mapping, index: int) -> None:
        """Begin to fill a unit, see `Machine.submit_read`."""
        swap = bool(mapping.flags[index] & PG_SWAPPED)
        self.io.append(Io(mapping, index, index + 1, write=False, swap=swap))
        self._allocate(mapping, index, HALF)

    def demand_read(self, mapping: Mapping, index: int) -> None:
        """Any order of the reads may be the next one: see `Machine.demand_read`."""

    def submit_write(self, mapping: Mapping, first: int, last: int) -> None:
        """Begin to write units back, see `Machine.submit_write`."""
        self.io.append(Io(mapping, first, last, write=True, swap=mapping.private))

    def read_failed(self, mapping: Mapping, index: int) -> None:
        """A read failed: its pause begins, see `Machine.read_failed`."""
        error = mapping.errors[index]
        if error.cooling:
            self.cooling.append(error)

    def write_failed(self, mapping: Mapping, error: BaseException) -> PageError:
        """A write failed: the pause begins, see `Machine.write_failed`."""
        pause = PageError(error, permanent=False, tries=1)
        self.cooling.append(pause)
        return pause

    def wake_reclaim(self, budget: Budget) -> None:
        """Start background reclaim, see `Machine.wake_reclaim`."""
        self.on_reclaim(budget)

    # -- what takes time ----------------------------------------------------------

    def advance(self, io: Io, failure: str = "") -> None:
        """Let a read end, or the next half of a write happen.

        Parameters
        ----------
        failure
            For an end: "" or why it fails: "error", "short", "permanent".
        """
        if not io.started:
            io.started = True
            number = io.mapping.number
            io.captured = [self.memory.get((number, at), 0) for at in range(io.first, io.last)]
            return
        self.io.remove(io)
        if io.write:
            self._end_write(io, failure)
        else:
            self._end_read(io, failure)

    def _end_read(self, io: Io, failure: str) -> None:
        mapping, index = io.mapping, io.first
        key = (mapping.number, index)
        if failure:
            self.punch(mapping, [index])
            error = StoreError(failure, permanent=failure != "error")
            mapping.end_read(index, error, permanent=error.permanent)
            self.read_failed(mapping, index)
            return
        self.memory[key] = (self.swapped if io.swap else self.stored)[key]
        mapping.end_read(index, None)

    def _end_write(self, io: Io, failure: str) -> None:
        target = self.swapped if io.swap else self.stored
        for at, index in enumerate(range(io.first, io.last)):
            if not failure:
                target[io.mapping.number, index] = io.captured[at]
            io.mapping.end_writeback([index], StoreError(failure) if failure else None)

    def _allocate(self, mapping: Mapping, index: int, value: Any) -> None:
        self.memory[mapping.number, index] = value
        used = len(self.memory) * PAGE
        self.peak = max(self.peak, used)
        budget: Budget | None = mapping.budget
        while budget is not None:
            if budget.limit is not None and used > budget.limit:
                mine = {charged.number for charged in budget.mappings}
                held = sum(number in mine for number, _ in self.memory) * PAGE
                if held > budget.limit:
                    raise Violation(f"{held} bytes are resident, and the budget is {budget.limit}")
            budget = budget.parent

    def copy_unit(self, mapping: Mapping, index: int) -> Image | WaitQueue:
        """Copy a unit's content."""
        if self.room is not None and len(self.copies) >= self.room:
            return self.copies_freed
        if any(self.tables[vma].get(index) for vma in mapping.vmas):
            raise Violation(f"page {index} is copied while it may be written")
        image = Image(self.memory[mapping.number, index])
        self.copies.append(image)
        return image

    def free_image(self, image: Image) -> None:
        """Forget a copy."""
        image.content = None
        if image in self.copies:
            self.move_copy(self.copies.index(image))

    def move_copy(self, at: int) -> None:
        """A copy has gone from memory to a file."""
        del self.copies[at]
        self.copies_freed.wake_all()

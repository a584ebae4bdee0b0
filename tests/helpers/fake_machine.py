"""The fault path without a kernel: a machine and a world in which the test decides what happens.

`FakeMachine` keeps memory, page tables, store and swap as dictionaries.  Nothing
ends by itself: a test ends reads and writes with `end_read` and `end_write`, in any
order.  `World` puts a mapping, a budget and a vma around it and runs tasks with the
pager's own scheduler, one step at a time where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from refault.fault.callers import FaultOutcome, user_fault
from refault.fault.flags import FAULT_FLAG_DEFAULT
from refault.fault.handlers import handle_mm_fault
from refault.fault.machine import Runs
from refault.fault.reclaim import reclaim, runs
from refault.fault.vmf import Fault
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping, PageError
from refault.memory.page import (
    PG_DIRTY,
    PG_LOCKED,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from refault.memory.protection import Image, Images, Protection
from refault.memory.rwsem import RwSemaphore
from refault.memory.vma import Vma
from refault.memory.wait import Signal, Wait, WaitQueue, WaitReason, Waits
from refault.pager.tasks import PagerTask, Scheduler

__all__ = ["PAGE", "CountingLock", "FakeMachine", "Run", "StoreFailed", "World"]

PAGE = 4096
START = 0x10_0000


class StoreFailed(Exception):
    """What the store raises."""

    def __init__(self, text: str = "no answer", *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


class CountingLock(RwSemaphore):
    """Counts how often it was taken and given up for reading (V1)."""

    __slots__ = ("reads_ended", "reads_granted")

    def __init__(self) -> None:
        super().__init__()
        self.reads_granted = 0
        self.reads_ended = 0

    def down_read_trylock(self) -> bool:
        taken = super().down_read_trylock()
        self.reads_granted += taken
        return taken

    def up_read(self) -> None:
        self.reads_ended += 1
        super().up_read()

    def _grant(self) -> None:
        before = [ticket for ticket in self.waiters if not ticket.write]
        super()._grant()
        self.reads_granted += sum(ticket.granted for ticket in before)


class FakeMachine:
    """Carries out what the fault path decides, in dictionaries.

    Attributes
    ----------
    calls
        Everything it was asked for, in order: the name and the arguments but the mapping.
    answers
        What `read_now` does for a unit: True, False (the default), or an exception.
    memory
        What the memfds hold; a unit that was never changed holds 0.
    tables
        What the page tables hold: True is writable, False write-protected.
    reads, writes
        What was begun and has not ended.
    copies_fit
        Whether there is room for copies.
    auto_reclaim
        Whether `wake_reclaim` starts the reclaim task, as the pager does.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[int, bool | Exception] = {}
        self.memory: dict[tuple[Mapping, int], int] = {}
        self.store: dict[tuple[Mapping, int], int] = {}
        self.swap: dict[tuple[Mapping, int], int] = {}
        self.tables: dict[tuple[Vma, int], bool] = {}
        self.reads: list[tuple[Mapping, int]] = []
        self.demanded: list[tuple[Mapping, int]] = []
        self.writes: list[tuple[Mapping, int, int, dict[int, int]]] = []
        self.pauses: list[PageError] = []
        self.auto_reclaim = True
        self.copies_fit = True
        self.copies_freed = WaitQueue()

    # -- what the fault path asks for -----------------------------------------------

    def map_units(
        self, vma: Vma, first: int, last: int, *, writable: bool, protected: bool | None
    ) -> None:
        self.calls.append(("map_units", first, last, writable))
        assert vma.lock.readers > 0, "mapped without the lock of the vma"
        assert not vma.detached
        for index in range(first, last):
            assert vma.mapping.flags[index] & PG_UPTODATE, f"unit {index} mapped but not uptodate"
            assert (vma.mapping, index) in self.memory
            # As the Linux machine does it: CONTINUE for what is missing, then WRITEPROTECT.
            if not protected:
                self.tables.setdefault((vma, index), writable)
            if writable and protected is not False and (vma, index) in self.tables:
                self.tables[vma, index] = True

    def write_protect(self, mapping: Mapping, runs: Runs) -> None:
        for first, last in runs:
            self.calls.append(("write_protect", first, last))
            for vma, index in self.tables:
                if vma.mapping is mapping and first <= index < last:
                    self.tables[vma, index] = False

    def punch(self, mapping: Mapping, indexes: Sequence[int]) -> None:
        for first, last in runs(indexes):
            self.calls.append(("punch", first, last))
            for index in range(first, last):
                assert not mapping.flags[index] & (PG_DIRTY | PG_WRITEBACK), f"{index} is lost"
                del self.memory[mapping, index]
                for vma in mapping.vmas:
                    self.tables.pop((vma, index), None)

    def read_now(self, mapping: Mapping, index: int) -> bool:
        self.calls.append(("read_now", index))
        assert mapping.flags[index] & PG_LOCKED
        answer = self.answers.get(index, False)
        if isinstance(answer, Exception):
            raise answer
        if answer:
            self._fill(mapping, index)
        return answer

    def submit_read(self, mapping: Mapping, index: int) -> None:
        self.calls.append(("submit_read", index))
        assert mapping.flags[index] & PG_LOCKED
        assert (mapping, index) not in self.reads, "read twice at once"
        self.reads.append((mapping, index))

    def demand_read(self, mapping: Mapping, index: int) -> None:
        assert mapping.flags[index] & PG_READING
        self.demanded.append((mapping, index))

    def submit_write(self, mapping: Mapping, first: int, last: int) -> None:
        self.calls.append(("submit_write", first, last))
        for other, low, high, _ in self.writes:
            apart = other is not mapping or last <= low or high <= first
            assert apart, "a unit is written twice at once"
        held = {index: self.memory[mapping, index] for index in range(first, last)}
        self.writes.append((mapping, first, last, held))

    def read_failed(self, mapping: Mapping, index: int) -> None:
        self.calls.append(("read_failed", index))
        assert index in mapping.errors

    def write_failed(self, mapping: Mapping, error: BaseException) -> PageError:
        self.calls.append(("write_failed",))
        pause = PageError(error, permanent=False, tries=1)
        self.pauses.append(pause)
        return pause

    def copy_unit(self, mapping: Mapping, index: int) -> Image | WaitQueue:
        self.calls.append(("copy_unit", index))
        return Image(self.memory[mapping, index]) if self.copies_fit else self.copies_freed

    def free_image(self, image: Image) -> None:
        self.calls.append(("free_image", image.content))

    def wake_reclaim(self, budget: Budget) -> None:
        self.calls.append(("wake_reclaim",))
        if not self.auto_reclaim or budget.reclaiming:
            return
        budget.reclaiming = True
        task = PagerTask(self.scheduler, "reclaim")
        task.generator = reclaim(self, budget, task)
        task.done = raise_it
        self.scheduler.alive.add(task)
        self.scheduler.ready.append(task)

    # -- what the test decides --------------------------------------------------------

    def _fill(self, mapping: Mapping, index: int) -> None:
        source = self.swap if mapping.flags[index] & PG_SWAPPED else self.store
        self.memory[mapping, index] = source.get((mapping, index), 0)

    def end_read(self, mapping: Mapping, index: int, error: Exception | None = None) -> None:
        """The store has answered for a unit."""
        self.reads.remove((mapping, index))
        if error is None:
            self._fill(mapping, index)
        mapping.end_read(index, error, permanent=bool(getattr(error, "permanent", False)))
        if error is not None:
            self.read_failed(mapping, index)

    def end_write(self, at: int = 0, error: Exception | None = None) -> None:
        """The `at`-th of the writes under way has ended."""
        mapping, first, last, held = self.writes.pop(at)
        if error is None:
            target = self.swap if mapping.private else self.store
            for index, value in held.items():
                target[mapping, index] = value
        for index in range(first, last):
            mapping.end_writeback([index], error)

    def names(self) -> list[str]:
        """The names of all calls."""
        return [call[0] for call in self.calls]

    def count(self, name: str) -> int:
        """How many calls of that name there were."""
        return self.names().count(name)


def raise_it(result: Any) -> None:
    """What a scheduler swallows must not be lost in a test."""
    if isinstance(result, BaseException):
        raise result


class Run:
    """A generator that runs as a task.

    Attributes
    ----------
    finished
        Whether it has returned.
    waits
        All it has waited for so far.
    """

    def __init__(
        self, scheduler: Scheduler, make: Callable[[PagerTask], Waits[Any]], name: str = "task"
    ) -> None:
        self.finished = False
        self._result: Any = None
        self.waits: list[Wait] = []
        self.task = PagerTask(scheduler, name, lambda task: self.waits.append(self.wait))
        self._make = make

    def start(self) -> Run:
        """Run up to the first wait."""
        self.task.scheduler.spawn(self.task, self._watched(), raise_it)
        return self

    def _watched(self) -> Waits[Any]:
        # What a task returns may be an exception; what it raises must not be lost.
        self._result = yield from self._make(self.task)
        self.finished = True

    @property
    def result(self) -> Any:
        """What it returned."""
        assert self.finished, f"it waits: {self.task.waiting}"
        return self._result

    @property
    def wait(self) -> Wait:
        """What it waits for."""
        assert self.task.waiting is not None, "it does not wait"
        return self.task.waiting

    @property
    def waits_for(self) -> WaitReason | None:
        """The reason of its wait, or None if it does not wait."""
        return self.task.waiting.reason if self.task.waiting is not None else None

    @property
    def ready(self) -> bool:
        """Whether it will run at the next turn."""
        return self.task in self.task.scheduler.ready

    def step(self) -> Run:
        """Give this task a turn, and no other."""
        self.task.scheduler.ready.remove(self.task)
        self.task.scheduler.run(self.task)
        return self


class World:
    """One process with one region, and whatever a test adds.

    Parameters
    ----------
    pages
        Units in the object.
    resident
        Units that may be resident; None: any number.
    private, writable, readahead
        See `Mapping` and `Vma`.
    """

    def __init__(
        self,
        pages: int = 32,
        resident: int | None = None,
        *,
        private: bool = False,
        writable: bool = True,
        slack: int = 0,
    ) -> None:
        self.scheduler = Scheduler()
        self.machine = FakeMachine(self.scheduler)
        self.total = Budget(None)
        limit = None if resident is None else resident * PAGE + slack
        self.budget = Budget(limit, self.total)
        self.mm = AddressSpace(self.total)
        self.mapping = Mapping(
            1, "store", pages * PAGE, PAGE, self.budget, private=private, writable=True
        )
        self.vma = self.add_vma(self.mapping, START, writable=writable)
        self.lock = self.vma.lock
        assert isinstance(self.lock, CountingLock)
        self.runs: list[Run] = []

    def add_vma(
        self,
        mapping: Mapping,
        start: int,
        *,
        writable: bool = True,
        offset: int = 0,
        length: int | None = None,
    ) -> Vma:
        """Map a mapping at an address."""
        vma = Vma(
            self.mm,
            start,
            mapping.pages * PAGE - offset if length is None else length,
            mapping,
            offset,
            writable=writable,
        )
        vma.lock = CountingLock()
        self.mm.insert(vma)
        return vma

    def add_mapping(self, pages: int, resident: int | None, number: int = 2) -> Mapping:
        """Another mapping under the same total budget."""
        limit = None if resident is None else resident * PAGE
        return Mapping(
            number,
            f"store {number}",
            pages * PAGE,
            PAGE,
            Budget(limit, self.total),
            private=False,
            writable=True,
        )

    def address(self, index: int) -> int:
        """Where a unit of the first vma begins."""
        return self.vma.start + index * PAGE

    # -- tasks ----------------------------------------------------------------------

    def run(self, make: Callable[[PagerTask], Waits[Any]], name: str = "task") -> Run:
        """Run what `make` returns for a new task, up to its first wait."""
        run = Run(self.scheduler, make, name)
        self.runs.append(run)
        return run.start()

    def fault(
        self,
        index: int,
        *,
        write: bool = False,
        protected: bool | None = False,
        address: int | None = None,
        signal: Signal | None = None,
    ) -> Run:
        """A thread faults; by default the page is missing in its page table."""
        where = self.address(index) if address is None else address

        def make(task: PagerTask) -> Waits[FaultOutcome]:
            task.signal = signal
            return user_fault(self.machine, self.mm, task, where, write=write, protected=protected)

        return self.run(make, "thread")

    def attempt(
        self,
        index: int,
        flags: int = FAULT_FLAG_DEFAULT,
        *,
        vma: Vma | None = None,
        protected: bool | None = None,
        populate: bool = True,
    ) -> tuple[Run, Fault]:
        """One attempt only, entered with the lock held."""
        vma = vma or self.vma
        assert vma.lock.down_read_trylock()
        made: list[Fault] = []

        def make(task: PagerTask) -> Waits[int]:
            made.append(
                Fault(
                    self.machine,
                    task,
                    vma,
                    index,
                    flags,
                    protected,
                    populate,
                )
            )
            return handle_mm_fault(made[0])

        run = self.run(make, "attempt")
        return run, made[0]

    def settle(self, turns: int = 100_000) -> None:
        """Let everybody run until all wait."""
        for _ in range(turns):
            if not self.scheduler.ready:
                return
            self.scheduler.run_ready(1)
        raise AssertionError("they run and run")

    # -- states -------------------------------------------------------------------------

    def fill(self, indexes: Iterable[int], *, dirty: bool = False) -> None:
        """Make units resident by faults that do not wait, and forget the calls."""
        answers, self.machine.answers = self.machine.answers, dict.fromkeys(range(4096), True)
        for index in indexes:
            run = self.fault(index, write=dirty)
            assert run.finished
            if dirty:
                self.store(index, self.machine.memory[self.mapping, index] + 1)
        self.machine.answers = answers
        self.machine.calls.clear()

    def protect(self) -> Protection:
        """A snapshot begins: all units are to be copied before they are written."""
        self.mapping.track().known = True
        protection = self.mapping.protection = Protection()
        protection.begin(Images(1))
        return protection

    def store(self, index: int, value: int) -> None:
        """A thread of the client changes a unit that is mapped writable: no fault."""
        assert self.machine.tables[self.vma, index], "this would be a fault"
        self.machine.memory[self.mapping, index] = value

    def end_read(self, index: int, error: Exception | None = None) -> None:
        """The store has answered."""
        self.machine.end_read(self.mapping, index, error)

    def cooled(self, index: int) -> None:
        """The pause after a failed read is over."""
        self.mapping.errors[index].cooled()

    def finish_everything(self) -> None:
        """End all reads and writes, run all tasks, until nothing is left to do."""
        for _ in range(10_000):
            self.settle()
            if self.machine.reads:
                self.machine.end_read(*self.machine.reads[0])
            elif self.machine.writes:
                self.machine.end_write()
            elif self.machine.pauses and self.machine.pauses[-1].cooling:
                self.machine.pauses[-1].cooled()
            else:
                for mapping in {vma.mapping for vma in self.mm}:
                    for error in list(mapping.errors.values()):
                        if error.cooling:
                            error.cooled()
                if not self.scheduler.ready:
                    return
        raise AssertionError("there is no end to it")

    # -- what must hold ---------------------------------------------------------------

    def check(self) -> None:
        """What must hold between any two steps."""
        for mapping in {vma.mapping for vma in self.mm}:
            flags = mapping.flags
            uptodate = {index for index, state in enumerate(flags) if state & PG_UPTODATE}
            reading = {index for index, state in enumerate(flags) if state & PG_READING}
            assert mapping.dirty == sum(bool(state & PG_DIRTY) for state in flags)
            assert set(mapping.working_set) == uptodate
            assert len(mapping.working_set) == len(uptodate)
            assert not uptodate & reading
            assert all(flags[index] & PG_LOCKED for index in reading)
            assert reading == {at for of, at in self.machine.reads if of is mapping}
            held = {at for of, at in self.machine.memory if of is mapping}
            assert held == uptodate
            budget = mapping.budget
            assert budget.usage >= len(uptodate | reading) * mapping.page_size
            if budget.limit is not None:
                assert budget.usage <= budget.limit
            assert budget.parent is None or budget.usage <= budget.parent.usage
        for (vma, index), writable in self.machine.tables.items():
            state = vma.mapping.flags[index]
            assert state & PG_UPTODATE
            assert not writable or state & PG_DIRTY, f"unit {index} changes unseen"
            assert not writable or vma.writable

    def check_quiet(self) -> None:
        """What must hold when nobody runs and nobody waits."""
        self.check()
        assert not self.scheduler.ready
        assert not self.scheduler.alive
        for vma in self.mm:
            lock = vma.lock
            assert isinstance(lock, CountingLock)
            assert lock.reads_granted == lock.reads_ended, "V1"
            assert (lock.readers, lock.writer, list(lock.waiters)) == (0, False, [])
        usage = 0
        for mapping in {vma.mapping for vma in self.mm}:
            busy = [state for state in mapping.flags if state & (PG_LOCKED | PG_WRITEBACK)]
            reading = sum(bool(state & PG_READING) for state in busy)
            assert len(busy) == reading, "a unit stays locked"
            units = len(mapping.working_set) + reading
            assert mapping.budget.usage == units * mapping.page_size, "charges and units differ"
            usage += mapping.budget.usage
        assert self.total.usage == usage

"""One run of a scenario: what can happen next, and what it does.

A step is one of: a thread executes an operation; a task of the pager runs to its next
wait; one half of a read or write happens; a pause ends; and whatever the scenario
lets happen at any time.  Between two steps everything is at rest, so that is
where the promises are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import FrameType, GeneratorType
from typing import Any, Final, TypeAlias

from refault.fault import gup
from refault.fault.callers import FaultOutcome, user_fault
from refault.fault.gup import Foll
from refault.fault.reclaim import evict_units, reclaim
from refault.fault.results import VM_FAULT_ERROR, VM_FAULT_SIGBUS
from refault.fault.vmf import Fault
from refault.machine.simulated import PAGE, SimulatedMachine, Violation
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.page import (
    PG_DIRTY,
    PG_LOCKED,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
    page_flag_names,
)
from refault.memory.protection import Protection
from refault.memory.rwsem import RwSemaphore
from refault.memory.vma import Vma
from refault.memory.wait import Signal, Task, TaskState, Wait, Waits

from .scenario import Op, Scenario

__all__ = ["Step", "World"]

SPIN_LIMIT = 24


Step: TypeAlias = tuple[str, int]
"""Something that can happen next: what, and to which."""


class _Lock(RwSemaphore):
    """A vma lock that notices a task which takes it again and again without waiting."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def down_read_trylock(self) -> bool:
        self.taken += 1
        if self.taken > SPIN_LIMIT:
            raise Violation(f"V4: {self.taken} tries, and nothing was waited for")
        return super().down_read_trylock()


class _Task(Task):
    __slots__ = ("done", "generator", "waiting", "world")

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self.world = world
        self.generator: Generator[Wait, None, Any] | None = None
        self.done: Callable[[Any], None] | None = None
        self.waiting: Wait | None = None

    def wake(self) -> None:
        self.waiting = None
        self.world.ready.append(self)

    def send_signal(self, signal: Signal) -> None:
        super().send_signal(signal)
        wait = self.waiting
        if wait is not None and wait.queue is not None and self.interrupted(wait.state):
            wait.queue.tasks.remove(self)
            self.wake()


class _Thread:
    __slots__ = (
        "asleep",
        "end",
        "faults",
        "number",
        "ops",
        "pc",
        "signal",
        "vma",
    )

    def __init__(self, number: int, ops: tuple[Op, ...], vma: Vma) -> None:
        self.number = number
        self.ops = ops
        self.vma = vma
        self.pc = 0
        self.asleep: tuple[int, int] | None = None
        self.faults: dict[int, _Task] = {}
        self.signal: Signal | None = None
        self.end = ""


class World:
    """The state of one run.

    Parameters
    ----------
    scenario
        What to run.

    Attributes
    ----------
    machine, mapping, threads
        To look at.
    attempts
        How many tries each fault took that has ended.
    trace
        Called with a line for everything noteworthy, if set.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.trace: Callable[[str], None] | None = None
        self.ready: list[_Task] = []
        self.tasks: set[_Task] = set()
        self.attempts: list[int] = []
        self.machine = SimulatedMachine(self._woken, self._reclaim)
        limit = scenario.budget * PAGE if scenario.budget is not None else None
        budget = Budget(limit)
        self.mm = AddressSpace(budget)
        self.mapping = Mapping(
            1,
            "object",
            scenario.pages * PAGE,
            PAGE,
            budget,
            private=scenario.private,
            writable=not scenario.private,
            readahead=False,
        )
        self.vmas = [self._add_vma(number) for number in range(scenario.vmas)]
        self.threads = [
            _Thread(number, ops, self.vmas[number % len(self.vmas)])
            for number, ops in enumerate(scenario.threads)
        ]
        self.truth: list[Any] = [f"store {page}" for page in range(scenario.pages)]
        self.read_failures = {page: list(fails) for page, fails in scenario.read_failures.items()}
        self.write_failures = scenario.write_failures
        self.evictions = list(scenario.evictions)
        self.unmaps = list(scenario.unmaps)
        self.unmapping = 0
        self.signals = list(scenario.signals)
        self.protections = scenario.protections
        self.protection: Protection | None = None
        self.images: dict[int, Any] = {}
        self.instant: list[Any] = []
        self._begin()

    def _add_vma(self, number: int) -> Vma:
        length = self.scenario.pages * PAGE
        vma = Vma(self.mm, (number + 1) << 40, length, self.mapping, 0, writable=True)
        vma.lock = _Lock()
        self.machine.add_vma(self.mm, vma)
        return vma

    def _begin(self) -> None:
        scenario, mapping, machine = self.scenario, self.mapping, self.machine
        for page in range(scenario.pages):
            machine.stored[1, page] = f"store {page}"
        machine.cached = {(1, page) for page in scenario.cached}
        for page in sorted(scenario.swapped):
            self.truth[page] = machine.swapped[1, page] = f"before {page}"
            mapping.flags[page] |= PG_SWAPPED
        for page in sorted(scenario.dirty):
            self.truth[page] = machine.memory[1, page] = f"before {page}"
            if mapping.budget.try_charge(PAGE) is not None:
                raise ValueError("more dirty pages than the budget holds")
            mapping.set_uptodate(page)
            mapping.set_dirty(page)

    # -- what can happen ----------------------------------------------------------

    def steps(self) -> list[Step]:
        """Everything that can happen next, in a fixed order."""
        found: list[Step] = []
        for thread in self.threads:
            if not thread.end and thread.asleep is None:
                found.append(("op", thread.number))
        found.extend([("task", at) for at in range(len(self.ready))])
        for at, io in enumerate(self.machine.io):
            found.append(("io", at))
            if io.started and io.write and self.write_failures:
                found.append(("io fails", at))
        if self.machine.cooling:
            found.append(("cooled", 0))
        found.extend([("evict", at) for at in range(len(self.evictions))])
        if self.protection is None:
            if self.protections and not any(
                vma.lock.writer or vma.lock.readers for vma in self.vmas
            ):
                found.append(("protect", 0))
        else:
            found.extend([("copy", index) for index in sorted(self.protection.asked)])
            found.append(("copy all", 0))
            if self.scenario.releases:
                found.append(("release", 0))
        found.extend([("unmap", at) for at in range(len(self.unmaps))])
        for at, (number, _) in enumerate(self.signals):
            if not self.threads[number].end:
                found.append(("signal", at))
        return found

    def perform(self, step: Step) -> None:
        """Let one of `steps` happen."""
        _PERFORM[step[0]](self, step[1])

    def label(self, step: Step) -> str:
        """A step in words."""
        kind, at = step
        if kind == "op":
            thread = self.threads[at]
            op = thread.ops[thread.pc]
            pages = f"{op.first}" if op.last == op.first + 1 else f"{op.first}..{op.last - 1}"
            return f"thread {at}: {op.kind} {pages}"
        if kind == "task":
            return f"{self.ready[at].name} goes on"
        if kind.startswith("io"):
            return self.machine.io[at].label + (", failing" if kind == "io fails" else "")
        if kind == "cooled":
            return "the pause before the next try is over"
        if kind == "evict":
            return f"somebody evicts {self.evictions[at]}"
        if kind == "unmap":
            return f"range {self.unmaps[at]} is unmapped"
        if kind == "signal":
            return f"thread {self.signals[at][0]}: {self.signals[at][1]}"
        return {
            "protect": "the monitor protects all pages",
            "copy": f"the monitor copies page {at}",
            "copy all": "the monitor copies the rest and ends",
            "release": "the monitor ends without copying",
        }[kind]

    # -- threads --------------------------------------------------------------------

    def _execute(self, number: int) -> None:
        thread = self.threads[number]
        op = thread.ops[thread.pc]
        vma = thread.vma
        if vma.detached:
            self._end(thread, "SIGSEGV")
            return
        if op.kind not in ("load", "store"):
            self._gup(thread, op)
            return
        page = op.first
        entry = self.machine.entry(vma, page)
        if entry is None or (op.write and not entry):
            self._fault(thread, page, write=op.write, protected=entry is not None)
            return
        if op.write:
            self._check_before_image(page)
            value = f"thread {thread.number} op {thread.pc}"
            self.machine.store(vma, page, value)
            self.truth[page] = value
        else:
            self._check_read(thread, page, self.machine.load(vma, page))
        self._advance_thread(thread)

    def _check_read(self, thread: _Thread, page: int, value: Any) -> None:
        if value != self.truth[page]:
            raise Violation(
                f"thread {thread.number} reads {value!r} from page {page}, "
                f"which holds {self.truth[page]!r}"
            )

    def _advance_thread(self, thread: _Thread) -> None:
        thread.pc += 1
        if thread.pc == len(thread.ops):
            thread.end = "done"

    def _end(self, thread: _Thread, end: str) -> None:
        thread.end = end
        thread.asleep = None

    def _fault(self, thread: _Thread, page: int, *, write: bool, protected: bool) -> None:
        thread.asleep = (page, page + 1)
        if page in thread.faults:
            return  # the same fault again: the pager takes it for a duplicate
        task = thread.faults[page] = _Task(self, f"fault of thread {thread.number} on {page}")
        task.signal = thread.signal
        generator = user_fault(
            self.machine,
            self.mm,
            task,
            thread.vma.start + page * PAGE,
            write=write,
            protected=protected,
            policy=self.scenario.policy,
        )
        self._spawn(task, generator, lambda outcome: self._faulted(thread, page, outcome))

    def _faulted(self, thread: _Thread, page: int, outcome: FaultOutcome) -> None:
        del thread.faults[page]
        self.attempts.append(outcome.attempts)
        if self.trace is not None:
            self.trace(
                f"    fault of thread {thread.number} on page {page} ends after "
                f"{outcome.attempts} tries: {_result_words(outcome)}"
            )
        waits_here = thread.asleep is not None and thread.asleep[0] == page
        if outcome.interrupted and thread.signal is Signal.KILL:
            self._end(thread, "killed")
        elif not waits_here or thread.end:
            return  # somebody else's fault has woken it long ago
        elif outcome.vma is None or outcome.interrupted:
            # Back to user mode: a handler runs, and the access is made again.
            thread.signal = None
            thread.asleep = None
        elif outcome.result & VM_FAULT_ERROR:
            self._end(thread, "SIGBUS" if outcome.result & VM_FAULT_SIGBUS else "SIGSEGV")

    def _gup(self, thread: _Thread, op: Op) -> None:
        thread.asleep = (op.first, op.first)
        task = thread.faults[-1] = _Task(self, f"{op.kind} of thread {thread.number}")
        task.signal = thread.signal
        start = thread.vma.start + op.first * PAGE
        end = thread.vma.start + op.last * PAGE
        foll = Foll.INTERRUPTIBLE | Foll.REMOTE | (Foll.WRITE if op.write else Foll(0))
        if op.kind == "populate":
            work: Waits[Any] = gup.fault_in(self.machine, self.mm, task, start, end, foll)
        elif op.kind == "prefetch":
            work = gup.prefetch(self.machine, self.mm, task, start, end)
        else:
            work = gup.pin(self.machine, self.mm, task, start, end, foll)
        self._spawn(task, work, lambda outcome: self._gup_done(thread, op, end, outcome))

    def _gup_done(self, thread: _Thread, op: Op, end: int, outcome: Any) -> None:
        del thread.faults[-1]
        thread.asleep = None
        pinned: list[tuple[Vma, int]] = []
        if op.kind == "pin":
            outcome, pinned = outcome
        for vma, index in pinned:
            if not self.mapping.flags[index] & PG_UPTODATE:
                raise Violation(f"page {index} is pinned and not there")
            vma.mapping.unpin(index)
        if outcome.interrupted:
            if thread.signal is Signal.KILL:
                self._end(thread, "killed")
            thread.signal = None
            return
        if outcome.result & VM_FAULT_ERROR:
            self._end(thread, "SIGBUS" if outcome.result & VM_FAULT_SIGBUS else "SIGSEGV")
            return
        if outcome.done < end and not thread.vma.detached:
            raise Violation(f"{op.kind} ends early, and says neither error nor signal")
        self._advance_thread(thread)

    def _woken(self, vma: Vma, first: int, last: int) -> None:
        for thread in self.threads:
            if thread.vma is vma and thread.asleep is not None:
                low, high = thread.asleep
                if low < high and first <= low < last:
                    thread.asleep = None

    # -- tasks ------------------------------------------------------------------------

    def _spawn(
        self, task: _Task, generator: Generator[Wait, None, Any], done: Callable[[Any], None]
    ) -> None:
        task.generator, task.done = generator, done
        self.tasks.add(task)
        self._run(task)

    def _resume(self, at: int) -> None:
        self._run(self.ready.pop(at))

    def _run(self, task: _Task) -> None:
        assert task.generator is not None
        for _ in range(SPIN_LIMIT):
            for vma in self.vmas:
                vma.lock.taken = 0  # type: ignore[attr-defined]
            try:
                wait = task.generator.send(None)
            except StopIteration as stop:
                self.tasks.discard(task)
                if task.done is not None:
                    task.done(stop.value)
                return
            if self.trace is not None:
                state = wait.state.name.lower()
                self.trace(f"    {task.name} waits: {wait.reason.value} ({state})")
            if wait.queue is None:
                self.ready.append(task)
                return
            if not task.interrupted(wait.state):
                wait.queue.tasks.append(task)
                task.waiting = wait
                return
        raise Violation(f"V5: {task.name} goes on waiting although it was told to stop")

    # -- the world ---------------------------------------------------------------------

    def _advance(self, at: int, failure: str = "") -> None:
        io = self.machine.io[at]
        if io.started and not io.write:
            fails = self.read_failures.get(io.first)
            if fails:
                failure = fails.pop(0)
        if failure and io.write:
            self.write_failures -= 1
        self.machine.advance(io, failure)

    def _cooled(self, _: int) -> None:
        self.machine.cooling.popleft().cooled()

    def _reclaim(self, budget: Budget) -> None:
        if budget.reclaiming:
            return
        budget.reclaiming = True
        task = _Task(self, "reclaim")
        task.generator = reclaim(self.machine, budget, task)
        self.tasks.add(task)
        self.ready.append(task)

    def _evict(self, at: int) -> None:
        pages = self.evictions.pop(at)
        task = _Task(self, "evictor")
        work = evict_units(self.machine, self.mapping, pages, task, ghost=True)
        self._spawn(task, work, lambda _: None)

    def _unmap(self, at: int) -> None:
        vma = self.vmas[self.unmaps.pop(at)]
        task = _Task(self, "unmap")
        self.unmapping += 1

        def work() -> Waits[None]:
            yield from vma.lock.down_write(task, TaskState.UNINTERRUPTIBLE)
            self.mm.remove(vma)
            vma.lock.up_write()
            self.machine.tables[vma].clear()
            for thread in self.threads:
                if thread.vma is vma and not thread.faults:
                    thread.asleep = None

        def done(_: Any) -> None:
            self.unmapping -= 1

        self._spawn(task, work(), done)

    def _signal(self, at: int) -> None:
        number, kind = self.signals.pop(at)
        thread = self.threads[number]
        if not thread.faults:
            if kind == "kill":
                self._end(thread, "killed")
            return
        thread.signal = Signal.KILL if kind == "kill" else Signal.INTERRUPT
        for task in list(thread.faults.values()):
            task.send_signal(thread.signal)

    # -- the monitor that copies before a write -------------------------------------------

    def _protect(self, _: int) -> None:
        self.protections -= 1
        self.instant = list(self.truth)
        self.images = {}
        self.protection = Protection(range(self.mapping.pages))
        for first in range(self.mapping.pages):
            self.machine.write_protect(self.mapping, first, first + 1)
        self.mapping.protection = self.protection

    def _check_before_image(self, page: int) -> None:
        protection = self.protection
        if protection is not None and page in protection.units:
            raise Violation(f"page {page} is written before its old content was copied")

    def _image(self, index: int) -> None:
        key = (1, index)
        if self.mapping.flags[index] & PG_UPTODATE:
            value = self.machine.memory[key]
        elif self.mapping.flags[index] & PG_SWAPPED:
            value = self.machine.swapped[key]
        else:
            value = self.machine.stored[key]
        if value != self.instant[index]:
            raise Violation(f"the snapshot has {value!r}, the instant had {self.instant[index]!r}")
        self.images[index] = value

    def _copy(self, index: int) -> None:
        assert self.protection is not None
        self._image(index)
        self.protection.resolve(index)

    def _finish_copying(self, _: int) -> None:
        protection = self.protection
        assert protection is not None
        for index in sorted(protection.units):
            self._image(index)
        self._release()

    def _release(self, _: int = 0) -> None:
        assert self.protection is not None
        self.protection.release()
        self.mapping.protection = self.protection = None

    # -- the promises ----------------------------------------------------------------------

    def check(self) -> None:
        """What holds at every moment; raises `Violation`."""
        mapping = self.mapping
        for vma in self.vmas:
            for index, writable in self.machine.tables[vma].items():
                state = mapping.flags[index]
                if not state & PG_UPTODATE:
                    raise Violation(f"page {index} is mapped and not uptodate")
                if writable and not state & PG_DIRTY:
                    raise Violation(f"page {index} is writable and not dirty")
                if writable and self.protection is not None and index in self.protection.units:
                    raise Violation(f"page {index} is writable and protected")

    def check_end(self) -> None:
        """What holds when nothing can happen any more; raises `Violation`."""
        for thread in self.threads:
            if not thread.end:
                waits = [repr(task.waiting) for task in thread.faults.values()]
                what = ", ".join(waits) or "nobody will wake it"
                raise Violation(f"thread {thread.number} waits for ever: {what}")
            if thread.end not in self.scenario.ends():
                raise Violation(f"thread {thread.number} ends with {thread.end}")
        if self.tasks:
            names = ", ".join(sorted(f"{task.name}: {task.waiting!r}" for task in self.tasks))
            raise Violation(f"tasks wait for ever: {names}")
        if self.unmapping:
            raise Violation("V7: unmap never got the lock")
        for vma in self.vmas:
            if vma.lock.readers or vma.lock.writer or vma.lock.waiters:
                raise Violation(f"V1: the lock is left with {vma.lock.readers} readers")
        present = 0
        for index, state in enumerate(self.mapping.flags):
            if state & (PG_LOCKED | PG_READING | PG_WRITEBACK):
                raise Violation(f"page {index} is left {page_flag_names(state)}")
            present += bool(state & PG_UPTODATE)
            self._check_content(index, state)
        if self.mapping.budget.usage != present * PAGE:
            raise Violation(f"{self.mapping.budget.usage} bytes are charged for {present} pages")

    def _check_content(self, index: int, state: int) -> None:
        key = (1, index)
        if state & PG_UPTODATE and state & PG_DIRTY:
            value = self.machine.memory[key]
        elif state & PG_SWAPPED:
            value = self.machine.swapped[key]
        else:
            value = self.machine.stored[key]
        if value != self.truth[index]:
            raise Violation(f"page {index} ends as {value!r}; it should be {self.truth[index]!r}")

    # -- states ------------------------------------------------------------------------------

    def fingerprint(self) -> int:
        """A number that is equal for equal states."""
        mapping, machine = self.mapping, self.machine
        names = {id(task): task.name for task in self.tasks}
        protection = self.protection
        return hash(
            (
                bytes(mapping.flags),
                tuple(mapping.working_set),
                tuple(mapping.working_set.ghosts),
                tuple(sorted(machine.memory.items())),
                tuple(sorted(machine.stored.items())),
                tuple(sorted(machine.swapped.items())),
                tuple(tuple(sorted(table.items())) for table in machine.tables.values()),
                tuple((io.first, io.last, io.write, io.started, *io.captured) for io in machine.io),
                tuple(
                    (thread.pc, thread.asleep, thread.end, thread.signal, *thread.faults)
                    for thread in self.threads
                ),
                frozenset((task.name, task.signal, _position(task)) for task in self.tasks),
                tuple(names.get(id(task), "") for task in self.ready),
                tuple(
                    (vma.lock.readers, vma.lock.writer, len(vma.lock.waiters), vma.detached)
                    for vma in self.vmas
                ),
                tuple(
                    (page, error.cooling, error.permanent)
                    for page, error in sorted(mapping.errors.items())
                ),
                len(machine.cooling),
                tuple(sorted(mapping.pins.items())),
                mapping.budget.reclaiming,
                tuple(self.evictions),
                tuple(self.unmaps),
                tuple(self.signals),
                self.protections,
                tuple(map(len, self.read_failures.values())),
                self.write_failures,
                None
                if protection is None
                else (frozenset(protection.units), frozenset(protection.asked)),
                tuple(sorted(self.images)),
                tuple(self.truth),
            )
        )

    def describe(self) -> str:
        """The pages, locks and tasks, in one line each, for reports."""
        pages = " ".join(
            f"[{index}: {page_flag_names(state)}]" for index, state in enumerate(self.mapping.flags)
        )
        locks = ", ".join(
            f"{vma.lock.readers} readers{', a writer' if vma.lock.writer else ''}"
            f"{f', {len(vma.lock.waiters)} waiting' if vma.lock.waiters else ''}"
            for vma in self.vmas
        )
        return f"    pages {pages}  lock: {locks}"


_PERFORM: Final[dict[str, Callable[[World, int], None]]] = {
    "op": World._execute,
    "task": World._resume,
    "io": World._advance,
    "io fails": lambda world, at: world._advance(at, "error"),
    "cooled": World._cooled,
    "evict": World._evict,
    "protect": World._protect,
    "copy": World._copy,
    "copy all": World._finish_copying,
    "release": World._release,
    "unmap": World._unmap,
    "signal": World._signal,
}

_SKIP: Final = {"attempts", "begun"}


def _position(task: _Task) -> tuple[Any, ...]:
    """Where a task's generators stand, and what they remember."""
    found: list[Any] = [task.waiting.reason if task.waiting is not None else None]
    generator: Any = task.generator
    while isinstance(generator, GeneratorType):
        frame: FrameType | None = generator.gi_frame
        if frame is None:
            break
        found.append((frame.f_code.co_name, frame.f_lasti))
        for name, value in sorted(frame.f_locals.items()):
            if name in _SKIP:
                continue
            if isinstance(value, (int, str, type(None))):
                found.append((name, value))
            elif isinstance(value, Fault):
                found.append((value.flags, value.index, value.locked, value.protected))
            elif isinstance(value, (list, tuple)):
                found.append((name, tuple(v for v in value if isinstance(v, (int, str)))))
        generator = generator.gi_yieldfrom
    return tuple(found)


def _result_words(outcome: FaultOutcome) -> str:
    if outcome.interrupted:
        return "stopped by a signal"
    if outcome.result & VM_FAULT_SIGBUS:
        return "SIGBUS"
    if outcome.result & VM_FAULT_ERROR:
        return "SIGSEGV"
    return "done" if outcome.vma is not None else "nothing is mapped there"

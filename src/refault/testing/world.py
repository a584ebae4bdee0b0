"""One run of a scenario: what can happen next, and what it does.

A step is one of: a thread executes an operation; a task of the pager runs to its next
wait; a read ends, or one half of a write happens; a pause ends; and whatever the scenario
lets happen at any time.  Between two steps everything is at rest, so that is
where the promises are checked; see `promises`.

What a page holds is a number: which page it is, and how often it had been written.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, TypeAlias

from refault.fault import gup
from refault.fault.callers import FaultOutcome, user_fault
from refault.fault.gup import Foll
from refault.fault.reclaim import evict_units, reclaim, sync_units
from refault.fault.results import VM_FAULT_ERROR, VM_FAULT_RETRY, VM_FAULT_SIGBUS
from refault.fault.snapshots import copy_before_write, end_snapshot, instant, prepare
from refault.machine.simulated import PAGE, SimulatedMachine, Violation
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.page import PG_SWAPPED, PG_UPTODATE
from refault.memory.protection import Images
from refault.memory.vma import Vma
from refault.memory.wait import Signal, TaskState, Wait, Waits

from .page_states import Transition, WatchedMapping
from .scenario import Op, Scenario
from .tasks import SimulatedTask, WatchedLock

__all__ = ["SimulatedThread", "Step", "World", "content", "content_words"]

SPIN_LIMIT: Final = 24
FAILED: Final = VM_FAULT_ERROR | VM_FAULT_RETRY

Step: TypeAlias = tuple[str, int]
"""Something that can happen next: what, and to which."""


def content(page: int, version: int) -> int:
    """What a page holds after it was written so many times."""
    return (page << 20) + version + 1


def content_words(value: Any) -> str:
    """A page's content in words."""
    if not isinstance(value, int):
        return str(value)
    if value == 0:
        return "zeros"
    page, version = divmod(value - 1, 1 << 20)
    return f"page {page} as written {version} times"


class SimulatedThread:
    """A thread of the program.

    Attributes
    ----------
    pc
        The number of its next operation.
    asleep
        Units ``[first, last)`` whose mapping wakes it; None: it runs.
    faults
        Tasks that work for it, by page; -1 for a request.
    end
        How it ended, or "".
    """

    __slots__ = ("asleep", "end", "faults", "number", "ops", "pc", "signal", "vma")

    def __init__(self, number: int, ops: tuple[Op, ...], vma: Vma) -> None:
        self.number = number
        self.ops = ops
        self.vma = vma
        self.pc = 0
        self.asleep: tuple[int, int] | None = None
        self.faults: dict[int, SimulatedTask] = {}
        self.signal: Signal | None = None
        self.end = ""


class SimulatedSnapshot:
    """A snapshot, and what it must be.

    Attributes
    ----------
    truth
        What each page held at its instant.
    written
        What has been written since.
    """

    __slots__ = ("images", "truth", "written")

    def __init__(self, images: Images, truth: list[int]) -> None:
        self.images = images
        self.truth = truth
        self.written: set[int] = set()

    def lacks(self) -> list[tuple[int, int]]:
        """The pages that it has no copy of, and what they must hold."""
        return [
            (page, truth) for page, truth in enumerate(self.truth) if page not in self.images.units
        ]

    def check_write(self, page: int) -> None:
        """A page is written now."""
        self.written.add(page)
        image = self.images.units.get(page)
        if image is None:
            raise Violation(f"page {page} is written before its old content was copied")
        self.check_content(page, image.content)

    def check_content(self, page: int, value: Any) -> None:
        """The snapshot gets this for a page."""
        if value != self.truth[page]:
            raise Violation(
                f"the snapshot gets {content_words(value)}; at its instant it was "
                f"{content_words(self.truth[page])}"
            )

    def check_written(self, said: set[int]) -> None:
        """These pages are said to have been written since."""
        missing = self.written - said
        if missing:
            raise Violation(f"page {min(missing)} was written, and nobody noted it")


class World:
    """The state of one run.

    Parameters
    ----------
    scenario
        What to run.
    watch
        Whether every change of a page's state is looked at; False: not before
        `watch_pages`; None: never.

    Attributes
    ----------
    machine, mapping, threads
        To look at.
    attempts
        How many tries each fault took that has ended.
    ended
        How threads ended, in the order they did.
    writer_waits
        For every unmap that got the lock: how many steps it waited.
    transitions
        Rows of `page_states.TRANSITIONS` that were seen.
    trace
        Called with a line for everything noteworthy, if set.
    """

    def __init__(self, scenario: Scenario, *, watch: bool | None = True) -> None:
        self.scenario = scenario
        self.trace: Callable[[str], None] | None = None
        self.ready: list[SimulatedTask] = []
        self.tasks: set[SimulatedTask] = set()
        self.current: SimulatedTask | None = None
        self.steps_made = 0
        self.attempts: list[int] = []
        self.ended: list[str] = []
        self.writer_waits: list[int] = []
        self.transitions: set[Transition] = set()
        self.machine = SimulatedMachine(self._woken, self._reclaim, scenario.copies)
        limit = scenario.budget * PAGE if scenario.budget is not None else None
        budget = Budget(limit)
        self.mm = AddressSpace(budget)
        self.mapping = (Mapping if watch is None else WatchedMapping)(
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
            SimulatedThread(number, ops, self.vmas[number % len(self.vmas)])
            for number, ops in enumerate(scenario.threads)
        ]
        self.truth = [(page << 20) + 1 for page in range(scenario.pages)]
        self.read_failures = {page: list(fails) for page, fails in scenario.read_failures.items()}
        self.write_failures = scenario.write_failures
        self.evictions = list(scenario.evictions)
        self.flushes = scenario.flushes
        self.goals: list[list[int]] = []
        self.unmaps = list(scenario.unmaps)
        self.unmapping = 0
        self.signals = list(scenario.signals)
        self.snapshots_left = scenario.snapshots
        self.snapshots: list[SimulatedSnapshot] = []
        self._begin()
        if watch:
            self.watch_pages()

    def watch_pages(self) -> None:
        """From now on look at every change of a page's state."""
        assert isinstance(self.mapping, WatchedMapping)
        self.mapping.watch(self.transitions)

    def _add_vma(self, number: int) -> Vma:
        length = self.scenario.pages * PAGE
        vma = Vma(self.mm, (number + 1) << 40, length, self.mapping, 0, writable=True)
        vma.lock = WatchedLock(self)
        self.machine.add_vma(self.mm, vma)
        return vma

    def _begin(self) -> None:
        scenario, mapping, machine = self.scenario, self.mapping, self.machine
        machine.stored = {(1, page): value for page, value in enumerate(self.truth)}
        machine.cached = {(1, page) for page in scenario.cached}
        for page in sorted(scenario.swapped):
            self.truth[page] += 1
            machine.swapped[1, page] = self.truth[page]
            mapping.flags[page] |= PG_SWAPPED
        for page in sorted(scenario.dirty):
            self.truth[page] += 1
            machine.memory[1, page] = self.truth[page]
            if mapping.budget.try_charge(PAGE) is not None:
                raise ValueError("more dirty pages than the budget holds")
            mapping.set_uptodate(page)
            mapping.set_dirty(page)

    # -- what can happen ----------------------------------------------------------

    def steps(self) -> list[Step]:
        """Everything that can happen next, in a fixed order."""
        found: list[Step] = [
            ("op", thread.number)
            for thread in self.threads
            if thread.asleep is None and not thread.end
        ]
        found += [("task", at) for at in range(len(self.ready))]
        found += [("io", at) for at in range(len(self.machine.io))]
        return found + self._rare_steps()

    def _rare_steps(self) -> list[Step]:
        found: list[Step] = []
        if self.write_failures:
            found += [
                ("io fails", at)
                for at, each in enumerate(self.machine.io)
                if each.started and each.write
            ]
        found += [("cooled", at) for at in range(len(self.machine.cooling))]
        found += [("evict", at) for at in range(len(self.evictions))]
        if self.flushes:
            found.append(("flush", 0))
        if self.snapshots_left:
            found.append(("snapshot", 0))
        found += [("close", at) for at in range(len(self.snapshots))]
        if self.machine.room is not None:
            found += [("move copy", at) for at in range(len(self.machine.copies))]
        found += [("unmap", at) for at in range(len(self.unmaps))]
        for at, (number, _) in enumerate(self.signals):
            if not self.threads[number].end:
                found.append(("signal", at))
        return found

    def draw(self, random: Callable[[], float]) -> Step | None:
        """One of `steps`, each as likely as any other; None if there is none.

        The same as choosing from the list, without making it.

        Parameters
        ----------
        random
            Gives numbers in [0, 1).
        """
        threads = [
            thread.number for thread in self.threads if thread.asleep is None and not thread.end
        ]
        ready, io = len(self.ready), self.machine.io
        if (
            self.write_failures
            or self.machine.cooling
            or self.evictions
            or self.flushes
            or self.snapshots
            or self.snapshots_left
            or (self.machine.room is not None and self.machine.copies)
            or self.unmaps
            or self.signals
        ):
            rest = self._rare_steps()
        else:
            rest = []
        at = int(random() * (len(threads) + ready + len(io) + len(rest)))
        if at < len(threads):
            return "op", threads[at]
        at -= len(threads)
        if at < ready:
            return "task", at
        at -= ready
        if at < len(io):
            return "io", at
        at -= len(io)
        return rest[at] if rest else None

    def perform(self, step: Step) -> None:
        """Let one of `steps` happen."""
        self.steps_made += 1
        _PERFORM[step[0]](self, step[1])

    def running(self) -> SimulatedTask:
        """The task that runs now."""
        assert self.current is not None, "a lock is taken outside of any task"
        return self.current

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
        entry = self.machine.tables[vma].get(page)
        if entry is None or (op.write and not entry):
            self._fault(thread, page, write=op.write, protected=entry is not None)
            return
        if op.write:
            for snapshot in self.snapshots:
                snapshot.check_write(page)
            self.truth[page] += 1
            self.machine.store(vma, page, self.truth[page])
        else:
            value = self.machine.load(vma, page)
            if value != self.truth[page]:
                raise Violation(
                    f"thread {number} reads from page {page}: {content_words(value)}; "
                    f"it should be {content_words(self.truth[page])}"
                )
        self._advance_thread(thread)

    def _advance_thread(self, thread: SimulatedThread) -> None:
        thread.pc += 1
        if thread.pc == len(thread.ops):
            self._end(thread, "done")

    def _end(self, thread: SimulatedThread, end: str) -> None:
        thread.end = end
        thread.asleep = None
        self.ended.append(end)
        if end not in self.scenario.ends:
            raise Violation(f"thread {thread.number} ends with {end}")

    def _fault(self, thread: SimulatedThread, page: int, *, write: bool, protected: bool) -> None:
        thread.asleep = (page, page + 1)
        if page in thread.faults:
            return  # the same fault again: the pager takes it for a duplicate
        task = thread.faults[page] = SimulatedTask(
            self,
            f"the fault of thread {thread.number} on page {page}",
            listens=TaskState.INTERRUPTIBLE,
        )
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
        self._spawn(
            task, generator, lambda outcome: self._faulted(thread, page, outcome, write=write)
        )

    def _faulted(
        self, thread: SimulatedThread, page: int, outcome: FaultOutcome, *, write: bool
    ) -> None:
        del thread.faults[page]
        self.attempts.append(outcome.attempts)
        if self.trace is not None:
            tries = f"{outcome.attempts} {'try' if outcome.attempts == 1 else 'tries'}"
            self.trace(
                f"the fault of thread {thread.number} on page {page} ends after "
                f"{tries}: {_result_words(outcome)}"
            )
        if outcome.vma is not None and not outcome.interrupted and not outcome.result & FAILED:
            entry = self.machine.tables[thread.vma].get(page)
            if entry is None or (write and not entry):
                raise Violation(
                    f"the fault of thread {thread.number} ends well, and page {page} is not mapped "
                    "as it was needed"
                )
        waits_here = thread.asleep == (page, page + 1)
        if outcome.interrupted and thread.signal is Signal.KILL and not thread.end:
            self._end(thread, "killed")
        elif not waits_here or thread.end:
            return  # somebody else's fault has woken it long ago
        elif outcome.vma is None or outcome.interrupted:
            # Back to user mode: a handler runs, and the access is made again.
            thread.signal = None
            thread.asleep = None
        elif outcome.result & VM_FAULT_ERROR:
            self._end(thread, "SIGBUS" if outcome.result & VM_FAULT_SIGBUS else "SIGSEGV")

    def _gup(self, thread: SimulatedThread, op: Op) -> None:
        thread.asleep = (op.first, op.first)
        nowait = op.kind == "prefetch"
        task = thread.faults[-1] = SimulatedTask(
            self,
            f"{op.kind} of thread {thread.number}",
            listens=TaskState.KILLABLE if nowait else TaskState.INTERRUPTIBLE,
        )
        task.signal = thread.signal
        start = thread.vma.start + op.first * PAGE
        end = thread.vma.start + op.last * PAGE
        foll = Foll.INTERRUPTIBLE | Foll.REMOTE
        if op.write:
            foll |= Foll.WRITE
        if op.kind == "populate":
            work: Waits[Any] = gup.fault_in(self.machine, self.mm, task, start, end, foll)
        elif nowait:
            work = gup.prefetch(self.machine, self.mm, task, start, end)
        else:
            work = gup.pin(self.machine, self.mm, task, start, end, foll)
        self._spawn(task, work, lambda outcome: self._gup_done(thread, op, end, outcome))

    def _gup_done(self, thread: SimulatedThread, op: Op, end: int, outcome: Any) -> None:
        del thread.faults[-1]
        thread.asleep = None
        pinned: list[tuple[Vma, int]] = []
        if op.kind == "pin":
            outcome, pinned = outcome
        for vma, index in pinned:
            if not self.mapping.flags[index] & PG_UPTODATE:
                raise Violation(f"page {index} is pinned and not there")
            vma.mapping.unpin(index)
        if thread.end:
            return  # killed while another of its faults was still going on
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
        if op.kind == "pin" and len(pinned) != op.last - op.first and not thread.vma.detached:
            raise Violation(
                f"pin of thread {thread.number} ends well and holds {len(pinned)} pages"
            )
        self._advance_thread(thread)

    def _woken(self, vma: Vma, first: int, last: int) -> None:
        if self.current is not None and self.current.held is not vma.lock:
            raise Violation(f"V3: {self.current.name} maps a page without the lock of the range")
        for thread in self.threads:
            if thread.asleep is not None and thread.vma is vma:
                low, high = thread.asleep
                if low < high and first <= low < last:
                    thread.asleep = None

    # -- tasks ------------------------------------------------------------------------

    def _spawn(
        self,
        task: SimulatedTask,
        generator: Generator[Wait, None, Any],
        done: Callable[[Any], None],
    ) -> None:
        task.generator, task.done = generator, done
        self.tasks.add(task)
        self._run(task)

    def _resume(self, at: int) -> None:
        self._run(self.ready.pop(at))

    def _run(self, task: SimulatedTask) -> None:
        send = task.generator.send  # type: ignore[union-attr]
        self.current = task
        try:
            for _ in range(SPIN_LIMIT):
                try:
                    wait = send(None)
                except StopIteration as stop:
                    self._finished(task, stop.value)
                    return
                if self.trace is not None:
                    self.trace(f"{task.name} waits for {_wait_words(wait, task)}")
                if wait.queue is None:
                    task.rested = True
                    self.ready.append(task)
                    return
                if task.signal is None or not task.interrupted(wait.state):
                    task.rested = True
                    wait.queue.tasks.append(task)
                    task.waiting = wait
                    return
        finally:
            self.current = None
        raise Violation(f"V5: {task.name} goes on waiting although it was told to stop")

    def _finished(self, task: SimulatedTask, value: Any) -> None:
        self.tasks.discard(task)
        if task.held is not None:
            raise Violation(f"V1: {task.name} ends and holds the lock still")
        if task.done is not None:
            task.done(value)

    # -- the world ---------------------------------------------------------------------

    def _advance(self, at: int, failure: str = "") -> None:
        io = self.machine.io[at]
        if io.write:
            if failure:
                self.write_failures -= 1
        else:
            fails = self.read_failures.get(io.first)
            if fails:
                failure = fails.pop(0)
        self.machine.advance(io, failure)

    def _cooled(self, at: int) -> None:
        self.machine.cooling.pop(at).cooled()

    def _reclaim(self, budget: Budget) -> None:
        if budget.reclaiming:
            return
        budget.reclaiming = True
        task = SimulatedTask(self, "reclaim")
        task.generator = reclaim(self.machine, budget, task)
        self.tasks.add(task)
        self.ready.append(task)

    def _evict(self, at: int) -> None:
        pages = self.evictions.pop(at)
        task = SimulatedTask(self, f"the eviction of {pages}")
        work = evict_units(self.machine, self.mapping, pages, task, ghost=True)
        self._spawn(task, work, lambda _: None)

    def _flush(self, _: int) -> None:
        goal = list(self.truth)
        self.goals.append(goal)
        task = SimulatedTask(self, f"flush {self.scenario.flushes - self.flushes + 1}")
        self.flushes -= 1
        work = sync_units(self.machine, self.mapping, 0, self.mapping.pages, task)
        self._spawn(task, work, lambda failed: self._flushed(goal, failed))

    def _flushed(self, goal: list[int], failed: BaseException | None) -> None:
        self.goals = [other for other in self.goals if other is not goal]
        if failed is not None:
            return
        place = self.machine.swapped if self.scenario.private else self.machine.stored
        for page, value in enumerate(goal):
            held = place.get((1, page), self.machine.stored[1, page])
            if held < value:
                raise Violation(f"flush ends, and page {page} is stored as it was before")

    def _unmap(self, at: int) -> None:
        number = self.unmaps.pop(at)
        vma = self.vmas[number]
        task = SimulatedTask(self, f"unmap of range {number}")
        self.unmapping += 1
        began = self.steps_made

        def work() -> Waits[None]:
            yield from vma.lock.down_write(task, TaskState.UNINTERRUPTIBLE)
            self.writer_waits.append(self.steps_made - began)
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
        if thread.signal is not Signal.KILL:
            thread.signal = Signal.KILL if kind == "kill" else Signal.INTERRUPT
        for task in list(thread.faults.values()):
            task.send_signal(thread.signal)

    # -- snapshots -----------------------------------------------------------------------

    def _snapshot(self, _: int) -> None:
        number = self.scenario.snapshots - self.snapshots_left + 1
        self.snapshots_left -= 1
        task = SimulatedTask(self, f"snapshot {number}")
        self._spawn(task, self._take(task), self._taken)

    def _take(self, task: SimulatedTask) -> Waits[SimulatedSnapshot]:
        ready = yield from prepare(self.machine, [self.mapping], task, few=0, step=1)
        if not ready:
            raise Violation("a snapshot gives up without a signal")
        (images,) = instant(self.machine, [self.mapping], images=True)
        for vma in self.vmas:
            for page, writable in self.machine.tables[vma].items():
                if writable:
                    raise Violation(f"page {page} is writable at an instant")
        return SimulatedSnapshot(images, list(self.truth))

    def _taken(self, snapshot: SimulatedSnapshot) -> None:
        self.snapshots.append(snapshot)
        protection = self.mapping.protection
        assert protection is not None
        if len(protection.snapshots) == 1:
            monitor = SimulatedTask(self, "the monitor")
            work = copy_before_write(self.machine, self.mapping, protection, monitor)
            self._spawn(monitor, work, lambda _: None)

    def _close(self, at: int) -> None:
        snapshot = self.snapshots.pop(at)
        for page in range(self.mapping.pages):
            image = snapshot.images.units.get(page)
            snapshot.check_content(page, self._content(page) if image is None else image.content)
        written = self.mapping.written
        assert written is not None
        snapshot.check_written(written.since(snapshot.images.instant))
        end_snapshot(self.machine, self.mapping, snapshot.images)
        written.release(snapshot.images.instant)
        self.mapping.untrack()

    def _content(self, page: int) -> Any:
        """What a page holds now, wherever it is."""
        key, flags = (1, page), self.mapping.flags[page]
        if flags & PG_UPTODATE:
            return self.machine.memory[key]
        return self.machine.swapped[key] if flags & PG_SWAPPED else self.machine.stored[key]


_PERFORM: Final[dict[str, Callable[[World, int], None]]] = {
    "op": World._execute,
    "task": World._resume,
    "io": World._advance,
    "io fails": lambda world, at: world._advance(at, "error"),
    "cooled": World._cooled,
    "evict": World._evict,
    "flush": World._flush,
    "snapshot": World._snapshot,
    "close": World._close,
    "move copy": lambda world, at: world.machine.move_copy(at),
    "unmap": World._unmap,
    "signal": World._signal,
}


def _wait_words(wait: Wait, task: SimulatedTask) -> str:
    if wait.queue is None:
        return "its next turn"
    lock = "with the lock" if task.held is not None else "without the lock"
    return f"{wait.reason.value} ({wait.state.name.lower()}), {lock}"


def _result_words(outcome: FaultOutcome) -> str:
    if outcome.interrupted:
        return "stopped by a signal"
    if outcome.result & VM_FAULT_SIGBUS:
        return "SIGBUS"
    if outcome.result & VM_FAULT_ERROR:
        return "SIGSEGV"
    return "done" if outcome.vma is not None else "nothing is mapped there"

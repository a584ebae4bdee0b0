"""When two states are the same.

The explorer visits every state once.  So what is in a fingerprint decides what is explored: with
too much in it the same future is explored again and again, with too little something is hidden.
What is left out, and why that hides nothing:

* *Values.*  The fault path moves contents and never looks at them, so only which of the places
  that a page's content can be in (store, swap, memory, on its way out, at the instant of a
  snapshot, what it should be) hold the same value matters, and which is older; so each
  page's values are numbered by age.
* *Order* of the ready tasks, of reads and writes under way, of pauses, of what is still to be
  evicted, unmapped or signalled, and of tasks in one wait queue: any of them may be next.
* *Dead variables* of sleeping generators, see `liveness`.  ``attempts``, ``major`` and ``reason``
  are counted and never decide anything; but so that the worst number of tries is found,
  ``attempts`` counts up to `MOST_TRIES`.
* *How a thread ended*, once it was seen to be allowed.
* *Which* reader waits behind which other one for a lock: readers that wait behind the same writer
  are let in together.
* The order of eviction and its ghosts, without a budget: nobody asks for them.
* The images that a snapshot has already got: each was compared when it was taken.

Nothing else of what the fault path can see is left out.  What cannot be told apart here cannot be
told apart by any later step, so skipping the second one of two equal states skips no behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import FrameType, GeneratorType
from typing import TYPE_CHECKING, Any

from refault.fault.vmf import Fault
from refault.machine.simulated import HALF
from refault.memory.budget import Budget
from refault.memory.mapping import PageError
from refault.memory.protection import Protection
from refault.memory.rwsem import RwSemaphore, _Ticket
from refault.memory.vma import Vma
from refault.memory.wait import WaitQueue

from .liveness import live_locals

if TYPE_CHECKING:
    from .tasks import SimulatedTask
    from .world import World

__all__ = ["fingerprint", "frames", "queue_names"]

MOST_TRIES = 6
_COUNTED = frozenset({"attempts", "major", "ahead", "began"})
_PLAIN = (int, str, type(None))


def fingerprint(world: World) -> int:
    """A number that is equal for equal states.

    Parameters
    ----------
    world
        Between two steps.

    Returns
    -------
    int
        Different ones for different states, but for one chance in 2**64 for each pair.
    """
    mapping, machine = world.mapping, world.machine
    limited = mapping.budget.limit is not None
    values = _Values(world)
    queues = queue_names(world)
    ready = set(world.ready)
    return hash(
        (
            bytes(mapping.flags),
            mapping.working_set.state() if limited else None,
            values.truth,
            values.contents(),
            tuple(tuple(sorted(machine.tables[vma].items())) for vma in world.vmas),
            frozenset(
                (io.first, io.last, io.write, io.started, io.swap, values.captured(io))
                for io in machine.io
            ),
            tuple(
                (thread.pc, thread.asleep, thread.signal, *sorted(thread.faults))
                if not thread.end
                else (-1, thread.signal if thread.faults else None, *sorted(thread.faults))
                for thread in world.threads
            ),
            frozenset(
                (task.name, task.signal, task in ready, _position(task, queues))
                for task in world.tasks
            ),
            tuple(
                (vma.lock.readers, vma.lock.writer, _waiters(vma.lock), vma.detached)
                for vma in world.vmas
            ),
            tuple(
                (page, error.cooling, error.permanent)
                for page, error in sorted(mapping.errors.items())
            ),
            tuple(sorted(mapping.write_errors)),
            tuple(sorted(_pause(world, error) for error in machine.cooling)),
            tuple(sorted(mapping.pins.items())),
            (mapping.reclaiming, mapping.budget.reclaiming),
            mapping.budget.usage,
            tuple(sorted(world.evictions)),
            tuple(sorted(world.unmaps)),
            tuple(sorted(world.signals)),
            world.snapshots_left,
            tuple(map(len, world.read_failures.values())),
            world.write_failures,
            world.flushes,
            tuple(map(values.each, world.goals)),
            _tracking(world),
            tuple(
                (
                    frozenset(snapshot.images.units),
                    frozenset(snapshot.written),
                    tuple(values.name(page, truth) for page, truth in snapshot.lacks()),
                )
                for snapshot in world.snapshots
            ),
        )
    )


def _tracking(world: World) -> tuple[Any, ...]:
    """Who writes what, who asks for copies, and which copies are in memory."""
    written, protection = world.mapping.written, world.mapping.protection
    machine = world.machine
    return (
        None
        if written is None
        else (
            frozenset(written.writable),
            written.known,
            written.takers,
            tuple(map(frozenset, written._sets.values())),
        ),
        None if protection is None else frozenset(protection.asked),
        None
        if machine.room is None
        else tuple(
            (page, at)
            for at, snapshot in enumerate(world.snapshots)
            for page, image in sorted(snapshot.images.units.items())
            if image in machine.copies
        ),
    )


class _Values:
    """Numbers for contents: 0 is the oldest that a page has anywhere."""

    def __init__(self, world: World) -> None:
        self.machine = world.machine
        found: list[set[Any]] = [{value} for value in world.truth]
        for place in (self.machine.memory, self.machine.stored, self.machine.swapped):
            for (_, page), value in place.items():
                found[page].add(value)
        for io in self.machine.io:
            for at, value in enumerate(io.captured):
                found[io.first + at].add(value)
        for goal in world.goals:
            for page, value in enumerate(goal):
                found[page].add(value)
        for snapshot in world.snapshots:
            for page, truth in snapshot.lacks():
                found[page].add(truth)
        self.names = [
            {value: at for at, value in enumerate(sorted(values - {HALF, 0}))} | {HALF: -1, 0: -2}
            for values in found
        ]
        self.truth = tuple(self.name(page, value) for page, value in enumerate(world.truth))

    def name(self, page: int, value: Any) -> int:
        return self.names[page][value]

    def each(self, values: Sequence[Any]) -> tuple[int, ...]:
        return tuple(self.name(page, value) for page, value in enumerate(values))

    def contents(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        machine = self.machine
        return tuple(
            tuple((page, self.name(page, value)) for (_, page), value in sorted(place.items()))
            for place in (machine.memory, machine.stored, machine.swapped)
        )

    def captured(self, io: Any) -> tuple[int, ...]:
        return tuple(self.name(io.first + at, value) for at, value in enumerate(io.captured))


def _waiters(lock: RwSemaphore) -> tuple[int, ...]:
    """Who waits for a lock: how many readers before the first writer, the second, and so on."""
    counts = [0]
    for ticket in lock.waiters:
        if ticket.write:
            counts.append(0)
        else:
            counts[-1] += 1
    return tuple(counts)


def _pause(world: World, error: PageError) -> int:
    """The page that a pause is for; -1: a write."""
    for page, other in world.mapping.errors.items():
        if other is error:
            return page
    return -1


def queue_names(world: World) -> dict[int, str]:
    """Name every wait queue that somebody will wake, by its identity."""
    mapping = world.mapping
    names = {id(queue): f"page {page}" for page, queue in mapping._queues.items()}
    budget: Budget | None = mapping.budget
    while budget is not None:
        names[id(budget.freed)] = "memory"
        budget = budget.parent
    for error in world.machine.cooling:
        names[id(error.over)] = f"pause {_pause(world, error)}"
    names[id(world.machine.copies_freed)] = "copies"
    if mapping.protection is not None:
        names[id(mapping.protection.questions)] = "questions"
        for page, queue in mapping.protection._queues.items():
            names[id(queue)] = f"monitor {page}"
    for vma in world.vmas:
        writers = 0
        for ticket in vma.lock.waiters:
            names[id(ticket.queue)] = f"lock, behind {writers}"
            writers += ticket.write
    return names


def frames(task: SimulatedTask) -> list[FrameType]:
    """The frames of a task's generators, outermost first."""
    found: list[FrameType] = []
    generator: Any = task.generator
    while isinstance(generator, GeneratorType):
        frame: FrameType | None = generator.gi_frame
        if frame is None:
            break
        found.append(frame)
        generator = generator.gi_yieldfrom
    return found


def _position(task: SimulatedTask, queues: dict[int, str]) -> tuple[Any, ...]:
    """Where a task's generators stand, and what they remember that still matters."""
    wait = task.waiting
    found: list[Any] = [None]
    if wait is not None:
        found[0] = (wait.reason, wait.state, queues.get(id(wait.queue)))
    for frame in frames(task):
        found.append((frame.f_code.co_name, frame.f_lasti))
        values = frame.f_locals
        for name in live_locals(frame.f_code, frame.f_lasti):
            if name in values and name not in _COUNTED:
                value = values[name]
                found.append(value if isinstance(value, _PLAIN) else _canonical(value, queues))
        if "attempts" in values:
            found.append(min(values["attempts"], MOST_TRIES))
    return tuple(found)


def _canonical(value: Any, queues: dict[int, str]) -> Any:
    """What of a value can matter; None for what is the same in all states."""
    if isinstance(value, Fault):
        return (value.flags, value.index, value.locked, value.protected, value.populate)
    if isinstance(value, (list, tuple)):
        return tuple(
            each if isinstance(each, _PLAIN) else _canonical(each, queues) for each in value
        )
    if isinstance(value, (set, frozenset)):
        return frozenset(
            each if isinstance(each, _PLAIN) else _canonical(each, queues) for each in value
        )
    if isinstance(value, dict):
        return _canonical(sorted(value.items()), queues)
    if isinstance(value, _Ticket):
        return (value.write, value.granted, queues.get(id(value.queue)))
    if isinstance(value, Vma):
        return (value.start, value.detached)
    if isinstance(value, PageError):
        return (value.cooling, value.permanent)
    if isinstance(value, Protection):
        return len(value.snapshots)
    if isinstance(value, WaitQueue):
        return queues.get(id(value))
    if isinstance(value, BaseException):
        return str(value)
    return None

"""What must hold between any two steps, and at the end.

V1 to V10 are the rules of the protocol.  Some are checked where they happen, by `tasks`, `world`
and the simulated machine; those that can be seen from outside are here.

====  ===========================================================  ===================
V1    the lock is given up once for each time it is taken          `tasks`, here
V2    TRIED only together with ALLOW_RETRY                         here
V3    nobody uses a range after giving up its lock                 `world`, machine
V4    no try without a reason: it waited since the last one        `tasks`
V5    no try while a signal is pending that it listens to          `tasks`, `world`
V6    the first try gives the lock up before it sleeps, later      here
      ones keep it; with RETRY_NOWAIT nobody sleeps
V7    no reader overtakes a writer that waits                      `tasks`
V8    COMPLETED never with RETRY_NOWAIT                            nobody returns it
V9    only a try that has the lock maps a page                     `world`
V10   the number of tries is at most the number of waits plus one  `tasks`
====  ===========================================================  ===================

And the promises of refault: no thread reads a byte that neither the store nor an earlier write put
there; a page that is mapped is complete, one that is writable is dirty; resident never exceeds
the budget, and what is charged is what is there; whoever sleeps waits for something that is still
to come, with somebody to say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refault.fault.flags import (
    FAULT_FLAG_RETRY_NOWAIT,
    fault_flag_allow_retry_first,
    illegal_flags,
)
from refault.fault.vmf import Fault
from refault.machine.simulated import PAGE, Violation
from refault.memory.page import (
    PG_DIRTY,
    PG_LOCKED,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
    page_flag_names,
)
from refault.memory.rwsem import _Ticket
from refault.memory.wait import TaskState, WaitReason

from .fingerprint import frames, queue_names
from .world import content_words

if TYPE_CHECKING:
    from .tasks import SimulatedTask
    from .world import World

__all__ = ["check", "check_end"]

KEEPS_LOCK = frozenset({WaitReason.PAGE_LOCK, WaitReason.READ, WaitReason.MEMORY})
"""What a later try waits for with the lock held."""

_SLEEPS_AT_MOST = {
    WaitReason.PAGE_LOCK: TaskState.KILLABLE,
    WaitReason.WRITEBACK: TaskState.UNINTERRUPTIBLE,
}
"""Waits that not every signal ends."""


def check(world: World) -> None:
    """What holds at every moment.

    Parameters
    ----------
    world
        Between two steps.

    Raises
    ------
    Violation
    """
    _check_pages(world)
    _check_charges(world)
    _check_locks(world)
    queues = queue_names(world)
    for task in world.tasks:
        if task.waiting is not None:
            _check_sleeper(world, task, queues)
    for thread in world.threads:
        if thread.asleep is not None and not thread.faults and not thread.vma.detached:
            raise Violation(f"thread {thread.number} sleeps, and nobody works for it")


def _check_pages(world: World) -> None:
    flags, protection = world.mapping.flags, world.mapping.protection
    written = world.mapping.written
    for vma in world.vmas:
        for index, writable in world.machine.tables[vma].items():
            if not flags[index] & PG_UPTODATE:
                raise Violation(f"page {index} is mapped and not complete")
            if writable and not flags[index] & PG_DIRTY:
                raise Violation(f"page {index} is writable and not dirty")
            if writable and protection is not None and protection.holds(index):
                raise Violation(f"page {index} is writable and protected")
            if writable and written is not None and written.known and index not in written.writable:
                raise Violation(f"page {index} is writable, and nobody notes who writes")


def _check_charges(world: World) -> None:
    budget = world.mapping.budget
    charged = sum(bool(state & (PG_UPTODATE | PG_READING)) for state in world.mapping.flags)
    if budget.usage != charged * PAGE:
        raise Violation(f"{budget.usage // PAGE} pages are charged, {charged} are there")
    if len(world.machine.memory) > charged:
        raise Violation("more pages have memory than are charged")
    if budget.limit is not None and budget.peak > budget.limit:
        raise Violation(f"{budget.peak // PAGE} pages were charged at once, over the budget")


def _check_locks(world: World) -> None:
    held: dict[int, int] = {}
    for task in world.tasks:
        if task.held is not None:
            held[id(task.held)] = held.get(id(task.held), 0) + 1
        if task.waiting is None and task in world.ready:
            for frame in frames(task):
                ticket = frame.f_locals.get("ticket")
                if isinstance(ticket, _Ticket) and ticket.granted and not ticket.write:
                    lock = id(frame.f_locals["self"])
                    held[lock] = held.get(lock, 0) + 1
                    break
    for vma in world.vmas:
        if vma.lock.readers != held.get(id(vma.lock), 0):
            raise Violation(
                f"V1: the lock counts {vma.lock.readers} readers, "
                f"{held.get(id(vma.lock), 0)} tasks hold it"
            )


def _check_sleeper(world: World, task: SimulatedTask, queues: dict[int, str]) -> None:
    wait = task.waiting
    assert wait is not None
    name = queues.get(id(wait.queue))
    if name is None:
        raise Violation(f"{task.name} waits for {wait.reason.value}, and nobody will wake it")
    kind, _, number = name.partition(" ")
    if kind in ("page", "monitor"):
        state = world.mapping.flags[int(number)]
        if wait.reason is WaitReason.PAGE_LOCK and not state & PG_LOCKED:
            raise Violation(f"{task.name} waits for a page lock that nobody holds")
        if wait.reason is WaitReason.READ and not state & PG_READING:
            raise Violation(f"{task.name} waits for a read that nobody makes")
        if wait.reason is WaitReason.WRITEBACK and not state & PG_WRITEBACK:
            raise Violation(f"{task.name} waits for a write that nobody makes")
        protection = world.mapping.protection
        if kind == "monitor" and (protection is None or not protection.holds(int(number))):
            raise Violation(f"{task.name} waits for a copy that was made")
    if task.interrupted(_SLEEPS_AT_MOST.get(wait.reason, task.listens)) and task.interrupted(
        task.listens
    ):
        raise Violation(f"V5: {task.name} sleeps for {wait.reason.value} although it was signalled")
    attempt = _attempt(task)
    if attempt is not None and wait.reason is not WaitReason.ADDRESS_SPACE:
        _check_attempt(task, attempt, wait.reason)


def _attempt(task: SimulatedTask) -> Fault | None:
    """The attempt that a task is in the middle of."""
    for frame in reversed(frames(task)):
        vmf = frame.f_locals.get("vmf")
        if isinstance(vmf, Fault):
            return vmf
    return None


def _check_attempt(task: SimulatedTask, vmf: Fault, reason: WaitReason) -> None:
    bad = illegal_flags(vmf.flags)
    if bad is not None:
        raise Violation(f"V2: {task.name}: {bad}")
    if vmf.flags & FAULT_FLAG_RETRY_NOWAIT:
        raise Violation(f"V6: {task.name} waits for {reason.value} in spite of RETRY_NOWAIT")
    first = fault_flag_allow_retry_first(vmf.flags)
    if first and task.held is not None:
        raise Violation(f"V6: the first try of {task.name} sleeps and keeps the lock")
    if not first and (task.held is None) is (reason in KEEPS_LOCK):
        word = "gives up" if task.held is None else "keeps"
        raise Violation(f"V6: a later try of {task.name} waits for {reason.value}, {word} the lock")


def check_end(world: World) -> None:
    """What holds when nothing can happen any more.

    Parameters
    ----------
    world
        Without a step.

    Raises
    ------
    Violation
    """
    for task in sorted(world.tasks, key=lambda task: task.name):
        raise Violation(f"{task.name} waits for ever: {task.waiting!r}")
    for thread in world.threads:
        if not thread.end:
            raise Violation(f"thread {thread.number} waits for ever: nobody will wake it")
    if world.unmapping:
        raise Violation("V7: unmap never got the lock")
    for vma in world.vmas:
        if vma.lock.readers or vma.lock.writer or vma.lock.waiters:
            raise Violation(f"V1: the lock is left with {vma.lock.readers} readers")
    for index, state in enumerate(world.mapping.flags):
        if state & (PG_LOCKED | PG_READING | PG_WRITEBACK):
            raise Violation(f"page {index} is left {page_flag_names(state)}")
        _check_content(world, index, state)
    _check_charges(world)


def _check_content(world: World, index: int, state: int) -> None:
    key = (1, index)
    if state & PG_UPTODATE and state & PG_DIRTY:
        value = world.machine.memory[key]
    elif state & PG_SWAPPED:
        value = world.machine.swapped[key]
    else:
        value = world.machine.stored[key]
    if value != world.truth[index]:
        raise Violation(
            f"page {index} ends as {content_words(value)}; "
            f"it should be {content_words(world.truth[index])}"
        )

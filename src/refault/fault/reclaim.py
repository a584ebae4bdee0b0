"""Where memory comes from when the budget is full.

Source: the kernel's mm/vmscan.c.  A clean unit is dropped at once, by whoever
needs the room.  A dirty one must be written back first; that is done by one
task per budget in the background (``kswapd``), in batches, so that no fault
writes.

To evict a unit: lock it; write-protect it, so that from now on no thread can change
it; write it back; take it out of every page table and free its memory; unlock
it.  Threads that touch it meanwhile wait for the page lock, and then fault it in
again.  If the write fails the unit stays, dirty as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.page import PG_DIRTY, PG_LOCKED, PG_UPTODATE, PG_WRITEBACK
from refault.memory.wait import RESCHEDULE, Task, TaskState, Wait, WaitReason, Waits

from .machine import Machine

__all__ = [
    "drop_units",
    "evict_units",
    "make_room",
    "reclaim",
    "runs",
    "shrink_clean",
    "sync_units",
    "wake_if_pressed",
    "wanted",
]

BATCH_BYTES = 4 << 20
BATCH_UNITS = 512
LOOK_AT = 64


def runs(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Join sorted indexes to runs ``[first, last)``."""
    first = last = -1
    for index in indexes:
        if index == last:
            last += 1
        else:
            if last > first:
                yield first, last
            first, last = index, index + 1
    if last > first:
        yield first, last


def _batch(mapping: Mapping) -> int:
    return max(1, min(BATCH_UNITS, BATCH_BYTES // mapping.page_size))


def _by_size(budget: Budget) -> list[Mapping]:
    """The mappings to take from, the largest first."""
    if len(budget.mappings) == 1:
        return budget.mappings
    resident = [mapping for mapping in budget.mappings if mapping.working_set]
    return sorted(resident, key=lambda mapping: mapping.resident, reverse=True)


def drop_units(machine: Machine, mapping: Mapping, indexes: list[int], *, ghost: bool) -> None:
    """Free clean units; the caller has made sure that nobody else works on them."""
    if indexes:
        machine.punch(mapping, sorted(indexes))
        mapping.drop(indexes, ghost=ghost)


def shrink_clean(machine: Machine, budget: Budget, count: int = 1) -> bool:
    """Drop old clean units; False if the oldest units are all dirty or busy.

    Parameters
    ----------
    machine
        Carries it out.
    budget
        Which is full.
    count
        The most to drop.

    Returns
    -------
    bool
        Whether anything was dropped.
    """
    for mapping in _by_size(budget):
        victims = mapping.working_set.victims(count, mapping.droppable)
        if victims:
            drop_units(machine, mapping, victims, ghost=True)
            return True
    return False


def make_room(machine: Machine, mapping: Mapping, first: int, last: int) -> None:
    """Drop clean units with one call for all of ``[first, last)``, which will be charged singly."""
    present = PG_UPTODATE | PG_LOCKED
    units = sum(not state & present for state in mapping.flags[first:last])
    level: Budget | None = mapping.budget
    size = mapping.page_size
    while level is not None:
        missing = 0 if level.limit is None else level.usage + units * size - level.limit
        if missing > 0:
            shrink_clean(machine, level, -(-missing // size))
        level = level.parent


def _choose(budget: Budget, wanted: int) -> tuple[Mapping, list[int]] | None:
    """Units to evict next; None only if there is not one in all the mappings.

    As many as the low mark has room for at least: while a batch is written back others take
    what is free, and it would be a little batch each time.
    """
    wanted = max(wanted, budget.low_free)
    mappings = [mapping for mapping in _by_size(budget) if not mapping.reclaiming]
    for look_at in (LOOK_AT, None):
        for mapping in mappings:
            count = min(_batch(mapping), -(-wanted // mapping.page_size))
            victims = mapping.working_set.victims(count, mapping.evictable, look_at=look_at)
            if victims:
                return mapping, victims
    return None


def wake_if_pressed(machine: Machine, mapping: Mapping) -> None:
    """A unit has been charged: reclaim begins ahead of need, if little is free."""
    budget = mapping.budget
    if budget.pressed(mapping.page_size) and not budget.reclaiming:
        machine.wake_reclaim(budget)


def wanted(budget: Budget) -> int:
    """Bytes that are still to be freed: up to twice the low mark, but any unit must fit."""
    if budget.limit is None:
        return 0
    room = max(2 * budget.low_free, max((m.page_size for m in budget.mappings), default=1))
    return room - (budget.limit - budget.usage)


def reclaim(machine: Machine, budget: Budget, task: Task) -> Waits[None]:
    """Evict until twice the low mark is free: the background task of one budget.

    If there is nothing to evict it ends; whoever waits for room is woken as soon as a
    unit is unlocked, unpinned or freed, and calls it again.  While it waits for the
    store of one of several mappings, another one may be called for the others: a slow
    store must not delay another region.

    Parameters
    ----------
    machine
        Carries it out.
    budget
        Which is nearly or entirely full.
    task
        The background task.
    """
    budget.reclaiming = mine = True
    try:
        while not task.fatal_signal_pending():
            missing = wanted(budget)
            chosen = _choose(budget, missing) if missing > 0 else None
            if chosen is None:
                return
            mapping, victims = chosen
            mapping.reclaiming = True
            budget.reclaiming = mine = len(budget.mappings) == 1
            if not mine:
                budget.freed.wake_all()  # who still waits asks for the next mapping's units
            try:
                failed = yield from evict_units(machine, mapping, victims, task, ghost=True)
                if failed is not None:
                    pause = machine.write_failed(mapping, failed)
                    while pause.cooling and not task.fatal_signal_pending():
                        yield Wait(pause.over, TaskState.KILLABLE, WaitReason.STORE_ERROR)
            finally:
                mapping.reclaiming = False
            if budget.reclaiming and not mine:
                return
            budget.reclaiming = mine = True
            if wanted(budget) <= 0:
                return  # now, and not after others have run: they always take a little again
            yield RESCHEDULE
    finally:
        if mine:
            budget.reclaiming = False


def evict_units(
    machine: Machine, mapping: Mapping, indexes: Iterable[int], task: Task, *, ghost: bool
) -> Waits[BaseException | None]:
    """Write back what is dirty of some units and free them all.

    Units that are locked, pinned, absent or being written are left alone.

    Returns
    -------
    BaseException or None
        Why a unit could not be written back; such units stay, dirty.
    """
    flags = mapping.flags
    clean: list[int] = []
    dirty: list[int] = []
    for index in sorted(set(indexes)):
        state = flags[index]
        if state & PG_UPTODATE and mapping.evictable(index):
            (dirty if state & PG_DIRTY else clean).append(index)
    drop_units(machine, mapping, clean, ghost=ghost)
    dirty = [index for index in dirty if mapping.trylock_page(index)]
    if not dirty:
        return None
    failed = yield from write_units(machine, mapping, dirty, task)
    gone = [index for index in dirty if not flags[index] & PG_DIRTY]
    drop_units(machine, mapping, gone, ghost=ghost)
    mapping.unlock_pages(dirty)
    return failed


def write_units(
    machine: Machine, mapping: Mapping, dirty: list[int], task: Task
) -> Waits[BaseException | None]:
    """Protect dirty units, write them, and wait until they are written.

    Parameters
    ----------
    dirty
        Sorted indexes of units that are dirty and not under writeback.

    Returns
    -------
    BaseException or None
        The error of a write that failed; its units are dirty again.
    """
    found = list(runs(dirty))
    machine.write_protect(mapping, found)
    mapping.begin_writeback(dirty)
    for first, last in found:
        machine.submit_write(mapping, first, last)
    return (yield from wait_on_writeback(mapping, dirty))


def wait_on_writeback(mapping: Mapping, indexes: list[int]) -> Waits[BaseException | None]:
    """Wait until none of some units is being written any more.

    Returns
    -------
    BaseException or None
        An error of the last write of one of them, whoever began it.
    """
    failed: BaseException | None = None
    flags, errors = mapping.flags, mapping.write_errors
    for index in indexes:
        while flags[index] & PG_WRITEBACK:
            yield Wait(mapping.page_queue(index), TaskState.UNINTERRUPTIBLE, WaitReason.WRITEBACK)
        if errors:
            failed = failed or errors.get(index)
    return failed


def _changed_and_locked(mapping: Mapping, indexes: list[int]) -> int | None:
    """One of some units that is dirty or being written, and that somebody is about to evict."""
    for index in indexes:
        state = mapping.flags[index]
        if state & PG_LOCKED and state & (PG_DIRTY | PG_WRITEBACK):
            return index
    return None


def sync_units(
    machine: Machine, mapping: Mapping, first: int, last: int, task: Task
) -> Waits[BaseException | None]:
    """Write back all dirty units of ``[first, last)``, and keep them resident.

    A unit that is changed again while it is written becomes dirty again and is not
    waited for: what was written before the call is in the store when it returns.

    Returns
    -------
    BaseException or None
        The first error.
    """
    with mapping.holding():
        return (yield from _sync_units(machine, mapping, first, last, task))


def _sync_units(
    machine: Machine, mapping: Mapping, first: int, last: int, task: Task
) -> Waits[BaseException | None]:
    failed: BaseException | None = None
    indexes = sorted(
        index
        for index in mapping.working_set
        if first <= index < last and mapping.flags[index] & (PG_DIRTY | PG_WRITEBACK)
    )
    batch = _batch(mapping) * 4
    for at in range(0, len(indexes), batch):
        part = indexes[at : at + batch]
        yield from wait_on_writeback(mapping, part)
        while (held := _changed_and_locked(mapping, part)) is not None:
            yield Wait(mapping.page_queue(held), TaskState.UNINTERRUPTIBLE, WaitReason.PAGE_LOCK)
        # A write that somebody began while we waited writes all that we must; a second one at the
        # same time could end first, and leave the older content in the store.
        begun = [index for index in part if mapping.flags[index] & PG_WRITEBACK]
        dirty = [
            index for index in part if mapping.flags[index] & (PG_DIRTY | PG_WRITEBACK) == PG_DIRTY
        ]
        if dirty:
            error = yield from write_units(machine, mapping, dirty, task)
            failed = failed or error
        error = yield from wait_on_writeback(mapping, begun)
        failed = failed or error
        if task.signal_pending():
            return failed
        yield RESCHEDULE
    return failed

"""Changing the size of a mapping's page units while threads use it.

The numbers of units change, and the state bytes are others.  So whoever remembers either over a
wait must not be in the middle of it:

* a fault holds the lock of its vma for reading as long as it does: we hold it for writing;
* a read, an eviction, a writeback holds the units it works on locked, or under writeback: we wait
  until none is;
* whoever goes through many units with waits in between says so (`Mapping.holding`), and so does a
  pin: then it is not the time.

While we wait with the locks held, all faults of the mapping wait for us.  So that wait can be
ended with a signal, and whoever calls sets a time limit: a store may take any time to answer.  For
the same reason the locks are taken only if that needs no waiting: behind a writer who waits for
one slow fault all others would wait, too.
"""

from __future__ import annotations

from refault.memory.mapping import Mapping
from refault.memory.page import PG_DIRTY
from refault.memory.units import broken, worked_on
from refault.memory.vma import Vma
from refault.memory.wait import RESCHEDULE, Task, TaskState, Wait, WaitReason, Waits

from .machine import Machine
from .reclaim import drop_units, evict_units, runs

__all__ = ["change_unit", "clear_the_way", "let_in", "lock_out"]

CLEAR_AT_ONCE = 256


def lock_out(mapping: Mapping, task: Task) -> Waits[list[Vma] | None]:
    """Wait until nobody holds the number of a unit or the state bytes, and let nobody in.

    Returns
    -------
    list of Vma or None
        For `let_in`.  None: it is not possible now; try again later.
    """
    locked: list[Vma] = []
    vmas = list(mapping.vmas)
    for vma in vmas:
        if not vma.lock.down_write_trylock():
            let_in(locked)
            return None
        vma.mm.withdraw(vma)
        locked.append(vma)
    while mapping.can_change() and mapping.vmas == vmas and not task.signal_pending():
        index = worked_on(mapping)
        if index is None:
            return locked
        yield Wait(mapping.page_queue(index), TaskState.INTERRUPTIBLE, WaitReason.PAGE_LOCK)
    let_in(locked)
    return None


def let_in(locked: list[Vma]) -> None:
    """Undo `lock_out`."""
    for vma in locked:
        vma.mm.restore(vma)
        vma.lock.up_write()


def clear_the_way(machine: Machine, mapping: Mapping, page_size: int, task: Task) -> Waits[None]:
    """Evict most of what cannot be a part of larger units, while everybody goes on."""
    with mapping.holding():
        units = broken(mapping, page_size)
        for at in range(0, len(units), CLEAR_AT_ONCE):
            if task.signal_pending() or mapping.closed:
                return
            part = units[at : at + CLEAR_AT_ONCE]
            failed = yield from evict_units(machine, mapping, part, task, ghost=False)
            if failed is not None:
                return
            yield RESCHEDULE


def change_unit(machine: Machine, mapping: Mapping, page_size: int, task: Task) -> Waits[bool]:
    """Change the size of a mapping's units.

    Parameters
    ----------
    machine
        Carries it out.
    mapping
        The caller has made sure that its budget has room for two such units.
    page_size
        The new size.
    task
        A signal ends the attempt.

    Returns
    -------
    bool
        False: it was not possible now, and nothing has changed but what is resident.
    """
    locked = yield from lock_out(mapping, task)
    if locked is None:
        return False
    try:
        units = broken(mapping, page_size)
        dirty = [index for index in units if mapping.flags[index] & PG_DIRTY]
        if dirty:
            # Nobody can change them any more: what is written now stays written.
            found = list(runs(dirty))
            machine.write_protect(mapping, found)
            mapping.begin_writeback(dirty)
            for first, last in found:
                machine.submit_write(mapping, first, last)
            while (index := worked_on(mapping)) is not None:
                yield Wait(mapping.page_queue(index), TaskState.INTERRUPTIBLE, WaitReason.WRITEBACK)
                if task.signal_pending():
                    return False
            units = broken(mapping, page_size)
            if mapping.vmas != locked or not mapping.can_change():
                return False
            if any(mapping.flags[index] & PG_DIRTY for index in units):
                return False  # it could not be written
        drop_units(machine, mapping, units, ghost=False)
        mapping.set_page_size(page_size)
        return True
    finally:
        let_in(locked)

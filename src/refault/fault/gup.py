"""Bringing pages in for somebody else: `populate`, `pin`, `prefetch`, readahead.

Source: the kernel's mm/gup.c.  The mail left it to a follow-up ("GUP code is not
touched yet and will be covered in follow up patch"): commit 4426e945.  The same
handler is called, with ALLOW_RETRY as often as needed; what differs is who waits and
which signals count.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from refault.memory.address_space import AddressSpace
from refault.memory.page import PG_AHEAD, PG_LOCKED, PG_READAHEAD, PG_READING, PG_UPTODATE
from refault.memory.vma import Vma
from refault.memory.wait import RESCHEDULE, Task, TaskState, Waits

from .callers import count_retry, lock_vma
from .flags import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_INTERRUPTIBLE,
    FAULT_FLAG_KILLABLE,
    FAULT_FLAG_REMOTE,
    FAULT_FLAG_RETRY_NOWAIT,
    FAULT_FLAG_TRIED,
    FAULT_FLAG_WRITE,
)
from .handlers import handle_mm_fault
from .machine import Machine
from .results import VM_FAULT_COMPLETED, VM_FAULT_ERROR, VM_FAULT_RETRY
from .vmf import Fault

__all__ = ["Foll", "GupOutcome", "fault_in", "pin", "prefetch", "readahead"]

AHEAD_BYTES = 4 << 20


class Foll(enum.IntFlag, boundary=enum.KEEP):
    """How pages are to be brought in.  Source: ``FOLL_*`` of include/linux/mm_types.h.

    The values are our own: the kernel's are private to it and change.
    """

    WRITE = 0x1
    """The pages are to be written."""
    NOWAIT = 0x2
    """Begin what would have to wait, and go on."""
    INTERRUPTIBLE = 0x4
    """Any signal ends it; else only a fatal one."""
    REMOTE = 0x8
    """The access is not the faulting thread's own."""


class GupOutcome(NamedTuple):
    """What came of it.

    Attributes
    ----------
    done
        Address up to which all pages were brought in.
    result
        `VmFault` bits of the fault that failed, or 0.
    interrupted
        Whether a signal ended it.
    """

    done: int
    result: int
    interrupted: bool


def fault_flags(foll: Foll) -> int:
    """Translate `Foll` to `FaultFlag` bits.  Source: ``faultin_page``.

    Parameters
    ----------
    foll
        How pages are to be brought in.

    Returns
    -------
    int
        Never USER: the fault is not a thread's own.
    """
    flags = FAULT_FLAG_ALLOW_RETRY
    if foll & Foll.NOWAIT:
        flags |= FAULT_FLAG_RETRY_NOWAIT
    else:
        flags |= FAULT_FLAG_KILLABLE
        if foll & Foll.INTERRUPTIBLE:
            flags |= FAULT_FLAG_INTERRUPTIBLE
    if foll & Foll.WRITE:
        flags |= FAULT_FLAG_WRITE
    if foll & Foll.REMOTE:
        flags |= FAULT_FLAG_REMOTE
    return flags


def fault_in(
    machine: Machine,
    mm: AddressSpace,
    task: Task,
    start: int,
    end: int,
    foll: Foll,
    on_page: Callable[[Vma, int], None] | None = None,
) -> Waits[GupOutcome]:
    """Bring in the pages of ``[start, end)``, retrying each as often as it takes.

    Parameters
    ----------
    machine, mm, task
        As for `refault.fault.callers.user_fault`.
    start, end
        Addresses; all of them must be mapped.
    foll
        How.
    on_page
        Called for every unit at the moment it is present, before anything else can happen
        to it.

    Returns
    -------
    GupOutcome

    Notes
    -----
    Source: ``__get_user_pages_locked``: after the lock was lost, first the signals,
    then the lock again, then one page with TRIED; the pages after it begin without.
    """
    flags = fault_flags(foll)
    state = TaskState.INTERRUPTIBLE if foll & Foll.INTERRUPTIBLE else TaskState.KILLABLE
    address = begun = start
    tried = 0
    while address < end:
        if task.interrupted(state):
            return GupOutcome(address, 0, True)
        vma = yield from lock_vma(mm, address, task, state)
        if vma is None:
            return GupOutcome(address, 0, task.interrupted(state))
        if begun < end and begun - address <= AHEAD_BYTES // 2 and not foll & Foll.NOWAIT:
            begun = yield from _begin_ahead(machine, vma, task, max(begun, address), end)
        vmf = Fault(machine, task, vma, vma.index_of(address), flags | tried)
        result = yield from handle_mm_fault(vmf)
        if result & VM_FAULT_RETRY:
            count_retry(vmf)
            if vmf.locked:
                vma.lock.up_read()
                address = vma.unit_range(vmf.index, vmf.index + 1)[1]
                yield RESCHEDULE
            else:
                tried = FAULT_FLAG_TRIED
            continue
        if result & VM_FAULT_COMPLETED:
            tried = FAULT_FLAG_TRIED
            continue
        if not result & VM_FAULT_ERROR and on_page is not None:
            on_page(vma, vmf.index)
        vma.lock.up_read()
        if result & VM_FAULT_ERROR:
            return GupOutcome(address, result, False)
        tried = 0
        address = vma.unit_range(vmf.index, vmf.index + 1)[1]
        yield RESCHEDULE
    return GupOutcome(end, 0, False)


def _begin_ahead(machine: Machine, vma: Vma, task: Task, start: int, end: int) -> Waits[int]:
    """Begin the reads of the next few units, so that slow stores are asked side by side."""
    room = AHEAD_BYTES
    limit = vma.mapping.budget.limit
    if limit is not None:
        room = min(room, limit // 4)
    end = min(end, start + room, vma.end)
    first, last = vma.units(start - vma.start, end - vma.start)
    yield from readahead(machine, vma, task, first, last)
    return end


def pin(
    machine: Machine, mm: AddressSpace, task: Task, start: int, end: int, foll: Foll
) -> Waits[tuple[GupOutcome, list[tuple[Vma, int]]]]:
    """Bring pages in and keep each resident from the moment it is there.

    Returns
    -------
    GupOutcome, list of (Vma, int)
        The units that are pinned, also when it failed: the caller unpins them.

    Notes
    -----
    Source: ``pin_user_pages`` (FOLL_PIN).
    """
    pinned: list[tuple[Vma, int]] = []

    def keep(vma: Vma, index: int) -> None:
        vma.mapping.pin(index)
        pinned.append((vma, index))

    outcome = yield from fault_in(machine, mm, task, start, end, foll, keep)
    return outcome, pinned


def prefetch(
    machine: Machine, mm: AddressSpace, task: Task, start: int, end: int
) -> Waits[GupOutcome]:
    """Begin to bring pages in, and wait for none of them (RETRY_NOWAIT).

    Parameters
    ----------
    machine, mm, task, start, end
        As for `fault_in`.

    Returns
    -------
    GupOutcome
    """
    return (yield from fault_in(machine, mm, task, start, end, Foll.NOWAIT | Foll.REMOTE))


def readahead(
    machine: Machine, vma: Vma, task: Task, first: int, last: int, *, mark: int = 0
) -> Waits[int]:
    """Begin to read units into memory without mapping them.

    Each goes through the fault path with RETRY_NOWAIT.

    Parameters
    ----------
    vma
        Its lock is held by the caller.
    first, last
        Units ``[first, last)``.
    mark
        Which of those that are begun asks for the next window when it is touched
        (`refault.memory.readahead`): 1 the first, -1 the last, 0 none.

    Returns
    -------
    int
        How many were begun or are there now.

    Notes
    -----
    Source: ``page_cache_ra_unbounded``; the kernel skips it when TRIED, and so do we,
    since only the first fault of a page reaches it.
    """
    mapping = vma.mapping
    flags = fault_flags(Foll.NOWAIT | Foll.REMOTE)
    begun, marked = 0, None
    for index in range(first, min(last, mapping.pages)):
        if mapping.flags[index] & (PG_UPTODATE | PG_LOCKED) or index in mapping.errors:
            continue
        vmf = Fault(machine, task, vma, index, flags, populate=False)
        yield from handle_mm_fault(vmf)
        if not mapping.flags[index] & (PG_UPTODATE | PG_READING):
            break  # there is no room: what comes behind would have none either
        mapping.flags[index] |= PG_AHEAD
        if mark and (mark < 0 or not begun):
            marked = index
        mapping.counters.readahead += 1
        begun += 1
    if marked is not None and mapping.flags[marked] & PG_AHEAD:
        mapping.flags[marked] |= PG_READAHEAD
    return begun

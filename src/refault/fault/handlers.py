"""One attempt to handle a fault.

`handle_mm_fault` is entered with the lock of the vma held and keeps the rule of
`refault.fault.results`: RETRY without RETRY_NOWAIT means that the lock was given up,
exactly once; whatever else it returns, the lock is held.

The situations, in the order they are looked at:

==============================  ==================================================
the unit is present             map it; a write makes it dirty and writable
somebody reads it               wait for that read (`wait_on_read`)
somebody evicts it              wait for the page lock (`lock_page_or_retry`)
its store failed a moment ago   give the lock up, wait until the store may be asked
                                again, RETRY: at any try, so that nobody is held up
there is no room for it         evict what is clean; else wait for the writeback
                                (`charge_page`)
it is in store or swap          read it at once if that needs no waiting; else begin
                                the read and wait for it
==============================  ==================================================

Every read begins as one that nobody waits for, and that it is waited for is said at one place,
where the wait begins (`Machine.demand_read`): readahead, prefetches and working sets come with
RETRY_NOWAIT and never get there.

Waiting follows the mail.  With RETRY_NOWAIT nobody waits.  The first try gives
the lock up and returns RETRY when it wakes.  Later tries keep it, and when they
wake they look again, in place.

The wait for a read is what a userfaultfd monitor is to the kernel: a
store may take any time to answer.  So it obeys INTERRUPTIBLE, which a wait for
the page lock does not (``userfaultfd_get_blocking_state`` against
``__folio_lock_or_retry``).
"""

from __future__ import annotations

from refault.memory.budget import Budget
from refault.memory.page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READAHEAD,
    PG_READING,
    PG_UPTODATE,
)
from refault.memory.protection import Protection
from refault.memory.wait import Wait, WaitQueue, WaitReason, Waits

from .flags import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_RETRY_NOWAIT,
    FAULT_FLAG_USER,
    FAULT_FLAG_WRITE,
    fault_flag_allow_retry_first,
    illegal_flags,
)
from .locks import LOOK_AGAIN, lock_page_or_retry
from .reclaim import shrink_clean, wake_if_pressed
from .results import VM_FAULT_MAJOR, VM_FAULT_RETRY, VM_FAULT_SIGBUS, VM_FAULT_SIGSEGV
from .userfault import handle_userfault
from .vmf import Fault, release_fault_lock

__all__ = ["handle_mm_fault", "sanitize_fault"]

FAULT_AROUND = 16
"""Units that a read fault maps at once, itself included, if they are there already."""


def sanitize_fault(vmf: Fault) -> str | None:
    """Say which of I1..I6 the attempt breaks, or None.

    Parameters
    ----------
    vmf
        The attempt.

    Returns
    -------
    str or None

    Notes
    -----
    Source: ``sanitize_fault_flags``; see `refault.fault.flags.illegal_flags` for
    those that the flags alone decide.
    """
    flags = vmf.flags
    bad = illegal_flags(flags)
    if bad is not None:
        return bad
    if flags & FAULT_FLAG_WRITE and not vmf.vma.writable:
        return "I5: WRITE on a vma that may not be written"
    if flags & FAULT_FLAG_USER and flags & FAULT_FLAG_RETRY_NOWAIT:
        return "I6: a thread's own fault cannot be RETRY_NOWAIT, it has nowhere to go"
    return None


def handle_mm_fault(vmf: Fault) -> Waits[int]:
    """Make one attempt to handle a fault.

    Parameters
    ----------
    vmf
        The attempt; the lock of its vma is held for reading.

    Returns
    -------
    int
        `VmFault` bits.  After RETRY (without RETRY_NOWAIT) and COMPLETED the lock is
        gone and the vma must not be touched.

    Notes
    -----
    Source: ``handle_mm_fault`` of mm/memory.c, and the mail for what may be retried.
    """
    if sanitize_fault(vmf) is not None:
        return VM_FAULT_SIGSEGV
    flags, index = vmf.mapping.flags, vmf.index
    if flags[index] & (PG_UPTODATE | PG_LOCKED) == PG_UPTODATE:
        protection = write_protection(vmf)
        if protection is not None:
            return (yield from handle_userfault(vmf, protection))
        return finish_fault(vmf)
    major = 0
    # What the message said of the page table entry may be over once the unit was absent or locked.
    vmf.protected = None
    while True:
        if flags[index] & PG_READING:
            major = VM_FAULT_MAJOR
            if not vmf.flags & FAULT_FLAG_RETRY_NOWAIT:
                vmf.machine.demand_read(vmf.mapping, index)
            stop = yield from wait_for(
                vmf, vmf.mapping.page_queue(index), WaitReason.READ, in_place=True
            )
            if stop:
                return stop | major
            continue
        stop = yield from lock_page_or_retry(vmf)
        if stop == LOOK_AGAIN:
            continue
        if stop:
            return stop
        if not flags[index] & PG_UPTODATE:
            stop = yield from fill_page(vmf)
            if stop == LOOK_AGAIN:
                continue
            if stop:
                return stop
            major = VM_FAULT_MAJOR
            # Absent until now, and ours: nobody can have mapped it.
            vmf.protected = False
        protection = write_protection(vmf)
        if protection is not None:
            vmf.mapping.unlock_page(index)
            return major | (yield from handle_userfault(vmf, protection))
        result = finish_fault(vmf)
        vmf.mapping.unlock_page(index)
        return result | major


def write_protection(vmf: Fault) -> Protection | None:
    """What the fault's unit must be copied for before it is written, if anything."""
    protection = vmf.mapping.protection
    if protection is None or not vmf.flags & FAULT_FLAG_WRITE:
        return None
    return protection if protection.holds(vmf.index) else None


def finish_fault(vmf: Fault) -> int:
    """Map an uptodate unit as the fault needs it.  The fault lock is held; nothing waits."""
    mapping, index, vma = vmf.mapping, vmf.index, vmf.vma
    write = vmf.flags & FAULT_FLAG_WRITE
    if write:
        mapping.wrote(index)
    if not vmf.populate:
        return 0
    flags = mapping.flags
    writable = bool(write or (vma.writable and mapping.may_write(index)))
    first, last = index, index + 1
    if not write and not vmf.protected and not (writable and mapping.written is not None):
        first, last = fault_around(vmf)
    for mapped in range(first, last):
        flags[mapped] &= ~(PG_AHEAD | PG_READAHEAD)
    vmf.machine.map_units(vma, first, last, writable=writable, protected=vmf.protected)
    return 0


def fault_around(vmf: Fault) -> tuple[int, int]:
    """Find the units on either side of this one that can be mapped in the same call.

    Source: ``do_fault_around``; but only units that were read ahead and that no fault has
    mapped yet are taken.  To map one again costs as much as a fault: measured, a dense
    shuffled read of 64 KiB units was 4 times slower.  Units that differ in being dirty are not
    taken either: one call maps all of them writable or all of them protected.
    """
    vma, flags, index = vmf.vma, vmf.mapping.flags, vmf.index
    want = PG_UPTODATE | PG_AHEAD | (flags[index] & PG_DIRTY)
    mask = PG_UPTODATE | PG_AHEAD | PG_LOCKED | PG_DIRTY | PG_READAHEAD
    first, last = index, index + 1
    stop = min(vmf.mapping.pages, index + FAULT_AROUND, vma.index_of(vma.end - 1) + 1)
    while last < stop and flags[last] & mask == want:
        last += 1
    start = max(last - FAULT_AROUND, vma.index_of(vma.start))
    while first > start and flags[first - 1] & mask == want:
        first -= 1
    return first, last


def fill_page(vmf: Fault) -> Waits[int]:
    """Bring a unit in, or begin to.

    Parameters
    ----------
    vmf
        The attempt; the unit is locked by it and not uptodate.

    Returns
    -------
    int
        0: the unit is uptodate and still locked by us.  `LOOK_AGAIN`: it is not ours any more,
        its read has begun or has failed, or there was no room for it.  Else what to return; the
        unit is unlocked.
    """
    mapping, index, machine = vmf.mapping, vmf.index, vmf.machine
    error = mapping.errors.get(index)
    if error is not None:
        if error.permanent:
            mapping.unlock_page(index)
            return VM_FAULT_SIGBUS
        if error.cooling:
            mapping.unlock_page(index)
            if not vmf.flags & FAULT_FLAG_ALLOW_RETRY:
                return VM_FAULT_SIGBUS
            return (yield from wait_for(vmf, error.over, WaitReason.STORE_ERROR, in_place=False))
    full = charge_page(vmf)
    if full is not None:
        # Nobody sleeps for memory with a page lock: others would wait for it, and not for memory.
        mapping.unlock_page(index)
        stop = yield from wait_for(vmf, full.freed, WaitReason.MEMORY, in_place=True)
        return stop or LOOK_AGAIN
    if not vmf.flags & FAULT_FLAG_RETRY_NOWAIT:
        try:
            filled = machine.read_now(mapping, index)
        except Exception as failure:
            mapping.begin_read(index)
            mapping.end_read(index, failure, permanent=bool(getattr(failure, "permanent", False)))
            machine.read_failed(mapping, index)
            return LOOK_AGAIN
        if filled:
            mapping.set_uptodate(index)
            return 0
    mapping.begin_read(index)
    machine.submit_read(mapping, index)
    return LOOK_AGAIN


def charge_page(vmf: Fault) -> Budget | None:
    """Find room for a unit under the budget.

    Clean units are dropped at once.  If all the rest is dirty, their writeback is
    begun.

    Returns
    -------
    Budget or None
        None: charged.  Else which budget is full; nothing is charged.
    """
    budget = vmf.mapping.budget
    while True:
        full = budget.try_charge(vmf.mapping.page_size)
        if full is None:
            wake_if_pressed(vmf.machine, vmf.mapping)
            return None
        if shrink_clean(vmf.machine, full):
            continue
        if not full.reclaiming:
            vmf.machine.wake_reclaim(full)
        return full


def wait_for(vmf: Fault, queue: WaitQueue, reason: WaitReason, *, in_place: bool) -> Waits[int]:
    """Wait on `queue` as the fault's flags allow.

    Parameters
    ----------
    vmf
        The attempt; its lock is held.
    queue, reason
        What is waited for.
    in_place
        Whether a later try may wait with the lock held and go on where it is.  False: the lock
        is given up at any try.

    Returns
    -------
    int
        0: waited in place, the lock is held, look again.  RETRY: the lock is held with
        RETRY_NOWAIT and given up otherwise.

    Notes
    -----
    Source: the mail ("we'll drop the mmap_sem only in the first attempt of page
    fault and we'll keep it in follow up retries"); ``handle_userfault``.
    """
    vmf.reason = reason
    if vmf.flags & FAULT_FLAG_RETRY_NOWAIT:
        return VM_FAULT_RETRY
    state = vmf.wait_state()
    if not in_place or fault_flag_allow_retry_first(vmf.flags):
        release_fault_lock(vmf)
        yield Wait(queue, state, reason)
        return VM_FAULT_RETRY
    yield Wait(queue, state, reason)
    if vmf.task.interrupted(state):
        release_fault_lock(vmf)
        return VM_FAULT_RETRY
    return 0

"""Who calls the fault handler, and calls it again: the fault of a thread.

Source: the arch handlers that the mail changed (``do_user_addr_fault`` on x86,
``do_page_fault`` on arm64).  A RETRY keeps ALLOW_RETRY and adds TRIED; there is no
limit to how often, and no new fault is needed in between.  Before every retry
the pending signals are looked at.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from refault.memory.address_space import AddressSpace
from refault.memory.vma import Vma
from refault.memory.wait import Task, TaskState, WaitReason, Waits

from .flags import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_DEFAULT,
    FAULT_FLAG_TRIED,
    FAULT_FLAG_USER,
    FAULT_FLAG_WRITE,
)
from .handlers import handle_mm_fault
from .machine import Machine
from .results import VM_FAULT_COMPLETED, VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_RETRY
from .signals import fault_signal_pending
from .vmf import Fault

__all__ = [
    "FaultOutcome",
    "RetryPolicy",
    "flags_after_retry",
    "count_retry",
    "lock_vma",
    "user_fault",
]


class RetryPolicy(enum.Enum):
    """How often a fault may be retried."""

    MULTIPLE = "multiple"
    """As often as it takes: the mail."""
    SINGLE = "single"
    """Once: the kernel before the mail.  Kept to show what it cost."""


def flags_after_retry(flags: int, policy: RetryPolicy) -> int:
    """Flags of the next try, after a RETRY.

    Parameters
    ----------
    flags
        Of the try that returned RETRY.
    policy
        MULTIPLE keeps ALLOW_RETRY and adds TRIED.  SINGLE takes ALLOW_RETRY away, as the kernel
        did before; it also set TRIED, which is the combination that the mail forbids, so
        we do not.

    Returns
    -------
    int
    """
    if policy is RetryPolicy.SINGLE:
        return flags & ~FAULT_FLAG_ALLOW_RETRY
    return flags | FAULT_FLAG_TRIED


class FaultOutcome(NamedTuple):
    """How a fault ended.

    Attributes
    ----------
    result
        `VmFault` bits of the last attempt.
    attempts
        How many there were.
    interrupted
        True if a signal stopped it before a retry.
    vma
        Where the last attempt looked; None: nothing is mapped there.  Not to be
        relied on: its lock is not held any more.
    """

    result: int
    attempts: int
    interrupted: bool
    vma: Vma | None


def lock_vma(mm: AddressSpace, address: int, task: Task, state: TaskState) -> Waits[Vma | None]:
    """Find the vma of an address and take its lock for reading.

    Returns
    -------
    Vma or None
        None: nothing is mapped there, or a signal ended the wait.

    Notes
    -----
    V9: whoever slept looks the vma up again, under its lock.
    """
    while True:
        vma = mm.find(address)
        if vma is None or vma.lock.down_read_trylock():
            return vma
        if not (yield from vma.lock.down_read(task, state)):
            return None
        if not vma.detached:
            vma.mapping.counters.retries_address_space += 1
            return vma
        vma.lock.up_read()


def count_retry(vmf: Fault) -> None:
    """Enter a retry in the statistics of its mapping, under its reason."""
    counters, reason = vmf.mapping.counters, vmf.reason
    if reason is WaitReason.READ:
        counters.retries_read += 1
    elif reason is WaitReason.PAGE_LOCK:
        counters.retries_page_lock += 1
    elif reason is WaitReason.MEMORY:
        counters.retries_memory += 1
    elif reason is WaitReason.STORE_ERROR:
        counters.retries_store_error += 1
    elif reason is WaitReason.WRITE_PROTECT:
        counters.retries_write_protect += 1


def user_fault(
    machine: Machine,
    mm: AddressSpace,
    task: Task,
    address: int,
    *,
    write: bool,
    protected: bool | None = None,
    policy: RetryPolicy = RetryPolicy.MULTIPLE,
) -> Waits[FaultOutcome]:
    """Handle the fault of a thread, from the first attempt to the last.

    Parameters
    ----------
    machine
        Carries out what the handlers decide.
    mm
        The address space of the faulting process.
    task
        The faulting thread.
    address
        Where it faulted.
    write
        Whether it writes.
    protected
        Whether the page is there and only write-protected.
    policy
        Whether a second RETRY may be followed by a third try.

    Returns
    -------
    FaultOutcome

    Notes
    -----
    Source: ``do_user_addr_fault`` with the mail's change: "goto retry" with TRIED set
    and ALLOW_RETRY kept.
    """
    flags = FAULT_FLAG_DEFAULT | FAULT_FLAG_USER
    if write:
        flags |= FAULT_FLAG_WRITE
    attempts = 0
    major = 0
    while True:
        vma = mm.find(address)
        if vma is not None and not vma.lock.down_read_trylock():
            vma = yield from lock_vma(mm, address, task, TaskState.INTERRUPTIBLE)
        if vma is None:
            return FaultOutcome(0, attempts, task.signal_pending(), None)
        attempts += 1
        if protected and attempts == 1:
            vma.mapping.counters.write_protect_faults += 1
        vmf = Fault(machine, task, vma, vma.index_of(address), flags, protected)
        result = yield from handle_mm_fault(vmf)
        major |= result & VM_FAULT_MAJOR
        if result & VM_FAULT_RETRY:
            count_retry(vmf)
        if fault_signal_pending(result, task, user=True):
            account_fault(vma, attempts, None)
            return FaultOutcome(result, attempts, True, vma)
        if result & VM_FAULT_COMPLETED:
            account_fault(vma, attempts, major)
            return FaultOutcome(result, attempts, False, vma)
        if result & VM_FAULT_RETRY:
            flags = flags_after_retry(flags, policy)
            # Meanwhile the page may have been mapped or evicted.
            protected = None
            continue
        vma.lock.up_read()
        account_fault(vma, attempts, None if result & VM_FAULT_ERROR else major)
        return FaultOutcome(result, attempts, False, vma)


def account_fault(vma: Vma, attempts: int, major: int | None) -> None:
    """Count a fault that ended.  Source: ``mm_account_fault``, but MAJOR means a read only.

    The kernel counts every fault that needed a second try as major, because then it
    cannot tell any more.  We can.
    """
    counters = vma.mapping.counters
    counters.faults += 1
    counters.attempts += attempts
    if attempts > counters.max_attempts:
        counters.max_attempts = attempts
    if major:
        counters.major += 1
    elif major is not None:
        counters.minor += 1

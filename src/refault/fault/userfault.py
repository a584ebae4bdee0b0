"""A fault that a monitor must resolve.

Source: ``handle_userfault`` (fs/userfaultfd.c), for whose write protection the mail
was made: "in that work there will always be an explicit userfault
writeprotect retry for protected pages, and if that cannot resolve the page
fault [...] then we'll possibly need a 3rd retry".  A unit that is swapped out and
write-protected needs three tries: one that reads it, one that asks the monitor, one
that succeeds.  Where only one retry is allowed, the second ends in SIGBUS.
"""

from __future__ import annotations

from refault.memory.protection import Protection
from refault.memory.wait import Wait, WaitReason, Waits

from .flags import FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_RETRY_NOWAIT
from .results import VM_FAULT_RETRY, VM_FAULT_SIGBUS
from .vmf import Fault, release_fault_lock

__all__ = ["handle_userfault"]


def handle_userfault(vmf: Fault, protection: Protection) -> Waits[int]:
    """Ask the monitor for a protected unit and wait for its answer.

    Parameters
    ----------
    vmf
        The attempt; its lock is held, the unit is not locked by it.
    protection
        What the unit is protected by.

    Returns
    -------
    int
        SIGBUS without ALLOW_RETRY (the lock is held); RETRY with the lock held for
        RETRY_NOWAIT, and given up otherwise: at any try, since a monitor may take any time.

    Notes
    -----
    Source: the order of decisions of ``handle_userfault``, section 3.1.  The fault enters the
    queue before the lock is given up, so no answer can be missed.
    """
    vmf.reason = WaitReason.WRITE_PROTECT
    if not vmf.flags & FAULT_FLAG_ALLOW_RETRY:
        return VM_FAULT_SIGBUS
    if vmf.flags & FAULT_FLAG_RETRY_NOWAIT:
        return VM_FAULT_RETRY
    queue = protection.ask(vmf.index)
    release_fault_lock(vmf)
    yield Wait(queue, vmf.wait_state(), WaitReason.WRITE_PROTECT)
    return VM_FAULT_RETRY

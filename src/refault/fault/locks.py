"""What a fault does when the page it needs is locked.

Source: ``__folio_lock_or_retry`` of the kernel's mm/filemap.c, which the mail
changed: only the first attempt gives the fault lock up; follow-up attempts keep
it while they wait.

A page is locked while it is being read, evicted or written back by somebody
else.  The five rows of `PAGE_LOCK_RULES` say what happens then; the code below
does what the row says and nothing else, and the documentation prints the rows.

Two things that surprise, and are so in the kernel too: TRIED together with
RETRY_NOWAIT is not treated as nowait here (rows 4 and 5 sleep), and INTERRUPTIBLE has
no effect: only a fatal signal ends a wait for a page lock.  So whoever must be
interruptible does not come here to wait for a slow store, and leaves if a read of the
page begins meanwhile; see `handlers`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from refault.memory.page import PG_READING
from refault.memory.wait import TaskState, Wait, WaitReason, Waits

from .flags import (
    FAULT_FLAG_KILLABLE,
    FAULT_FLAG_RETRY_NOWAIT,
    fault_flag_allow_retry_first,
)
from .results import VM_FAULT_RETRY
from .vmf import Fault, release_fault_lock

__all__ = ["LOOK_AGAIN", "PAGE_LOCK_RULES", "PageLockRule", "lock_page_or_retry", "page_lock_rule"]

LOOK_AGAIN: Final = -1
"""Not a result: the state of the unit has changed, and the attempt goes on."""


class PageLockRule(NamedTuple):
    """One row: what a fault does if the page is locked.

    Attributes
    ----------
    row
        Its number in the table.
    when
        The flags it is for, in words.
    waits
        How deeply it sleeps; None: not at all.
    drops_lock
        Whether the fault lock is given up before the wait.
    takes_page
        Whether it waits until the page lock is its own.  If not, it returns RETRY
        after the wait, whatever became of the page.
    """

    row: int
    when: str
    waits: TaskState | None
    drops_lock: bool
    takes_page: bool


PAGE_LOCK_RULES: Final = (
    PageLockRule(1, "first try, RETRY_NOWAIT", None, False, False),
    PageLockRule(2, "first try, KILLABLE", TaskState.KILLABLE, True, False),
    PageLockRule(3, "first try, not KILLABLE", TaskState.UNINTERRUPTIBLE, True, False),
    PageLockRule(4, "not the first try, KILLABLE", TaskState.KILLABLE, False, True),
    PageLockRule(5, "not the first try, not KILLABLE", TaskState.UNINTERRUPTIBLE, False, True),
)
"""The rows, in the order they are tried."""


def page_lock_rule(flags: int) -> PageLockRule:
    """Choose the row of `PAGE_LOCK_RULES` for a fault with `flags`.

    Parameters
    ----------
    flags
        `FaultFlag` bits.

    Returns
    -------
    PageLockRule
    """
    if fault_flag_allow_retry_first(flags):
        if flags & FAULT_FLAG_RETRY_NOWAIT:
            return PAGE_LOCK_RULES[0]
        return PAGE_LOCK_RULES[1 if flags & FAULT_FLAG_KILLABLE else 2]
    return PAGE_LOCK_RULES[3 if flags & FAULT_FLAG_KILLABLE else 4]


def lock_page_or_retry(vmf: Fault) -> Waits[int]:
    """Lock the fault's page, or wait as its flags say and ask for a retry.

    Parameters
    ----------
    vmf
        The attempt; its fault lock is held.

    Returns
    -------
    int
        0: the page is locked by us and the fault lock is held.  `VmFault.RETRY`: the
        page is not ours; the fault lock is held in row 1 and given up in all
        others.  `LOOK_AGAIN`: the page is being read now, which is another
        kind of wait; the fault lock is held.

    Notes
    -----
    Source: section 2.3 of the protocol, ``__folio_lock_or_retry``.
    """
    mapping, index = vmf.mapping, vmf.index
    if mapping.trylock_page(index):
        return 0
    rule = page_lock_rule(vmf.flags)
    vmf.reason = WaitReason.PAGE_LOCK
    if rule.waits is None:
        return VM_FAULT_RETRY
    if rule.drops_lock:
        release_fault_lock(vmf)
        yield Wait(mapping.page_queue(index), rule.waits, WaitReason.PAGE_LOCK)
        return VM_FAULT_RETRY
    while not mapping.trylock_page(index):
        if mapping.flags[index] & PG_READING:
            return LOOK_AGAIN
        yield Wait(mapping.page_queue(index), rule.waits, WaitReason.PAGE_LOCK)
        if rule.waits is TaskState.KILLABLE and vmf.task.fatal_signal_pending():
            release_fault_lock(vmf)
            return VM_FAULT_RETRY
    return 0

"""What a page fault allows: the `FAULT_FLAG_*` bits.

Source: the mail "[PATCH v3 04/28] mm: allow VM_FAULT_RETRY for multiple times"
(include/linux/mm.h there, include/linux/mm_types.h today).  The values are the
kernel's, so that a number in a trace means the same in both.

About `ALLOW_RETRY` and `TRIED`: whether a fault may be retried, and whether it
already has been, is said by these two together.  There are three legal
combinations, and one that must never be used; they are the table
`RETRY_COMBINATIONS`, which is also what ``refault explain`` prints.

A fault can be retried any number of times: it begins with combination (a) and goes
on with combination (b) for as long as it takes.  Before each retry the caller
looks for pending signals, so that a fault that is retried can still be
interrupted (`refault.fault.signals.fault_signal_pending`).
"""

from __future__ import annotations

import enum
import functools
from typing import Final, NamedTuple

__all__ = [
    "FAULT_FLAG_ALLOW_RETRY",
    "FAULT_FLAG_DEFAULT",
    "FAULT_FLAG_INSTRUCTION",
    "FAULT_FLAG_INTERRUPTIBLE",
    "FAULT_FLAG_KILLABLE",
    "FAULT_FLAG_MKWRITE",
    "FAULT_FLAG_REMOTE",
    "FAULT_FLAG_RETRY_NOWAIT",
    "FAULT_FLAG_TRIED",
    "FAULT_FLAG_USER",
    "FAULT_FLAG_WRITE",
    "RETRY_COMBINATIONS",
    "FaultFlag",
    "RetryCombination",
    "fault_flag_allow_retry_first",
    "illegal_flags",
    "retry_combination",
]


class FaultFlag(enum.IntFlag, boundary=enum.KEEP):
    """Flags of one attempt to handle a fault.

    Source: the first nine and their values are the mail's; INTERRUPTIBLE came
    with the merged series (commit c270a7ee, 5.7).
    """

    WRITE = 0x01
    """The fault was a write access."""
    MKWRITE = 0x02
    """The fault makes an existing, read-only entry writable."""
    ALLOW_RETRY = 0x04
    """The handler may give the lock up, wait, and ask to be called again."""
    RETRY_NOWAIT = 0x08
    """Do not wait, and do not give the lock up, where a retry would be needed."""
    KILLABLE = 0x10
    """A fatal signal ends the waits of this fault."""
    TRIED = 0x20
    """We have tried once."""
    USER = 0x40
    """The fault comes from the faulting thread itself, in user mode."""
    REMOTE = 0x80
    """The access is not the faulting thread's own."""
    INSTRUCTION = 0x100
    """The fault was an instruction fetch."""
    INTERRUPTIBLE = 0x200
    """Any signal ends the waits of this fault."""

    DEFAULT = ALLOW_RETRY | KILLABLE | INTERRUPTIBLE
    """What an ordinary fault begins with (``FAULT_FLAG_DEFAULT``)."""


# The same as plain numbers, for the path that runs at every fault: an operation on
# IntFlag costs ten times one on int.
FAULT_FLAG_WRITE: Final = 0x01
FAULT_FLAG_MKWRITE: Final = 0x02
FAULT_FLAG_ALLOW_RETRY: Final = 0x04
FAULT_FLAG_RETRY_NOWAIT: Final = 0x08
FAULT_FLAG_KILLABLE: Final = 0x10
FAULT_FLAG_TRIED: Final = 0x20
FAULT_FLAG_USER: Final = 0x40
FAULT_FLAG_REMOTE: Final = 0x80
FAULT_FLAG_INSTRUCTION: Final = 0x100
FAULT_FLAG_INTERRUPTIBLE: Final = 0x200
FAULT_FLAG_DEFAULT: Final = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE | FAULT_FLAG_INTERRUPTIBLE


class RetryCombination(NamedTuple):
    """One row of the mail's table of `ALLOW_RETRY` and `TRIED`."""

    letter: str
    allow_retry: bool
    tried: bool
    legal: bool
    meaning: str


RETRY_COMBINATIONS: Final = (
    RetryCombination("a", True, False, True, "may be retried, and this is the first try"),
    RetryCombination("b", True, True, True, "may be retried, and has been tried at least once"),
    RetryCombination("c", False, False, True, "may not be retried at all"),
    RetryCombination("", False, True, False, "forbidden: tried, yet not allowed to be retried"),
)
"""The combinations (a), (b), (c) and the forbidden one.  Source: the mail."""


def retry_combination(flags: int) -> RetryCombination:
    """Tell which row of `RETRY_COMBINATIONS` `flags` belong to.

    Parameters
    ----------
    flags
        `FaultFlag` bits.

    Returns
    -------
    RetryCombination
    """
    allow = bool(flags & FAULT_FLAG_ALLOW_RETRY)
    tried = bool(flags & FAULT_FLAG_TRIED)
    return next(row for row in RETRY_COMBINATIONS if (row.allow_retry, row.tried) == (allow, tried))


def fault_flag_allow_retry_first(flags: int) -> bool:
    """Tell whether a fault may be retried and this is its first attempt.

    Used where the first attempt is treated differently: it is polite and gives
    the lock up before it waits, so that others who want the lock are not
    starved; later attempts keep it, so that they get somewhere.

    Parameters
    ----------
    flags
        `FaultFlag` bits.

    Returns
    -------
    bool
        True for combination (a) of `RETRY_COMBINATIONS`; False otherwise.

    Notes
    -----
    Source: the mail; its reviewer asked for this form of documentation.
    """
    return flags & (FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED) == FAULT_FLAG_ALLOW_RETRY


# Every pair (I1, I4): if the first bits are set, the second must be too.
_ILLEGAL: Final = (
    ("I1", FAULT_FLAG_TRIED, FAULT_FLAG_ALLOW_RETRY, "TRIED without ALLOW_RETRY"),
    ("I4", FAULT_FLAG_RETRY_NOWAIT, FAULT_FLAG_ALLOW_RETRY, "RETRY_NOWAIT without ALLOW_RETRY"),
)

KERNEL_ONLY: Final = {
    "I2": (0x400, "UNSHARE: there are no copy-on-write mappings here to unshare"),
    "I3": (0x1000, "VMA_LOCK: every fault here holds the lock of its vma; there is no other"),
}
"""Flags of later kernels that I2 and I3 forbid in combinations; here they never exist."""


@functools.cache
def illegal_flags(flags: int) -> str | None:
    """Say which rule `flags` break, or None if they are legal.

    Parameters
    ----------
    flags
        `FaultFlag` bits.

    Returns
    -------
    str or None
        For instance ``"I1: TRIED without ALLOW_RETRY"``.

    Notes
    -----
    Source: I1 is the mail's ("illegal and should never be used"); I2 and I3 are
    ``sanitize_fault_flags``, I4 is ``handle_userfault``.  I5 needs the vma and
    stands in `refault.fault.handlers.sanitize_fault`, I6 (a faulting thread's own fault never
    has RETRY_NOWAIT) likewise.
    """
    for rule, bits, needed, text in _ILLEGAL:
        if flags & bits and not flags & needed:
            return f"{rule}: {text}"
    for rule, (bit, text) in KERNEL_ONLY.items():
        if flags & bit:
            return f"{rule}: {text}"
    return None

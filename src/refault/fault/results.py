"""What came of one attempt to handle a fault: the `VM_FAULT_*` bits.

Source: include/linux/mm_types.h; the values are the kernel's.

The rule that every handler keeps and every caller relies on:

* RETRY from a fault without RETRY_NOWAIT, or COMPLETED: the lock was given up,
  exactly once.  Nobody may touch the vma any more.
* RETRY from a fault with RETRY_NOWAIT: the lock is held.
* anything else: the lock is held.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = [
    "VM_FAULT_COMPLETED",
    "VM_FAULT_ERROR",
    "VM_FAULT_LOCKED",
    "VM_FAULT_MAJOR",
    "VM_FAULT_NOPAGE",
    "VM_FAULT_OOM",
    "VM_FAULT_RETRY",
    "VM_FAULT_SIGBUS",
    "VM_FAULT_SIGSEGV",
    "VmFault",
]


class VmFault(enum.IntFlag, boundary=enum.KEEP):
    """Bits that `handle_mm_fault` returns.  Source: ``enum vm_fault_reason``."""

    OOM = 0x1
    """There is no memory, and none will come."""
    SIGBUS = 0x2
    """The page cannot be had; the access must fail loudly."""
    MAJOR = 0x4
    """A store or swap had to be read."""
    HWPOISON = 0x10
    """The memory itself is broken."""
    HWPOISON_LARGE = 0x20
    """Likewise, in a large page."""
    SIGSEGV = 0x40
    """The access is not allowed here."""
    NOPAGE = 0x100
    """The handler installed the page itself."""
    LOCKED = 0x200
    """The page is returned locked."""
    RETRY = 0x400
    """The handler waited, or would have had to: try again."""
    FALLBACK = 0x800
    """A large page is not possible; try small ones."""
    DONE_COW = 0x1000
    """The page has been copied before the write."""
    NEEDDSYNC = 0x2000
    """The file system must be synchronised first."""
    COMPLETED = 0x4000
    """Done, and the lock was given up."""

    ERROR = OOM | SIGBUS | SIGSEGV | HWPOISON | HWPOISON_LARGE | FALLBACK
    """Any of the ways to fail."""


VM_FAULT_OOM: Final = 0x1
VM_FAULT_SIGBUS: Final = 0x2
VM_FAULT_MAJOR: Final = 0x4
VM_FAULT_SIGSEGV: Final = 0x40
VM_FAULT_NOPAGE: Final = 0x100
VM_FAULT_LOCKED: Final = 0x200
VM_FAULT_RETRY: Final = 0x400
VM_FAULT_COMPLETED: Final = 0x4000
VM_FAULT_ERROR: Final = 0x1 | 0x2 | 0x40 | 0x10 | 0x20 | 0x800

"""What one attempt to handle a fault knows; and how it gives its lock up."""

from __future__ import annotations

from refault.memory.vma import Vma
from refault.memory.wait import Task, TaskState, WaitReason

from .flags import FAULT_FLAG_INTERRUPTIBLE, FAULT_FLAG_KILLABLE
from .machine import Machine

__all__ = ["Fault", "release_fault_lock"]


class Fault:
    """One attempt.  Source: the kernel's `struct vm_fault`.

    Parameters
    ----------
    machine
        What carries out what the fault path asks for.
    task
        Who it is handled for; its signals end the waits.
    vma, index
        Where: the unit `index` of the vma's mapping.
    flags
        `FaultFlag` bits of this attempt.
    protected
        The entry is present and write-protected (a WP message said so); False:
        it is missing; None: not known.

    Attributes
    ----------
    locked
        Whether this attempt still holds the lock of the vma.
    reason
        Why RETRY is returned, for the statistics.
    populate
        False: bring the unit in, but do not map it (readahead).
    """

    __slots__ = (
        "flags",
        "index",
        "locked",
        "machine",
        "mapping",
        "populate",
        "protected",
        "reason",
        "task",
        "vma",
    )

    def __init__(
        self,
        machine: Machine,
        task: Task,
        vma: Vma,
        index: int,
        flags: int,
        protected: bool | None = None,
        populate: bool = True,
    ) -> None:
        self.machine = machine
        self.task = task
        self.vma = vma
        self.mapping = vma.mapping
        self.index = index
        self.flags = flags
        self.protected = protected
        self.populate = populate
        self.locked = True
        self.reason: WaitReason | None = None

    def wait_state(self) -> TaskState:
        """How deeply this fault may sleep.  Source: ``userfaultfd_get_blocking_state``."""
        if self.flags & FAULT_FLAG_INTERRUPTIBLE:
            return TaskState.INTERRUPTIBLE
        if self.flags & FAULT_FLAG_KILLABLE:
            return TaskState.KILLABLE
        return TaskState.UNINTERRUPTIBLE


def release_fault_lock(vmf: Fault) -> None:
    """Give up the lock of the vma; after that the attempt may only return RETRY.

    Raises
    ------
    AssertionError
        The attempt does not hold the lock any more (V1).
    """
    if not vmf.locked:
        raise AssertionError("V1: the fault lock was given up twice")
    vmf.locked = False
    vmf.vma.lock.up_read()

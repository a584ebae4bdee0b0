"""The instant of a snapshot, and the copies that are made before a write.

Some facts about the instant
----------------------------
* It is consistent if no unit of any of the mappings can be changed between the moment at which the
  first of them is protected for good and the one at which the last of them is.  A write that
  comes too late for its unit waits for us, and so does all that its thread would do after it.  So
  if a snapshot has a write, it has all that was written before.
* To protect present memory takes 18 to 36 ms a GiB.  So what is dirty is protected in rounds while
  everybody goes on (pre-copy, as in the migration of virtual machines): each round protects
  what was written during the one before, and is shorter.  Clean units are protected anyway.
* The last round, and the beginning of the snapshot, are one step of this generator's caller: no
  fault is served meanwhile, and none is between the look at the protection and the mapping, since
  that is one step, too (`refault.fault.handlers`).  So the lock of the vmas is not needed.  To take
  it for writing would make every fault of a region wait for a single one that keeps it for reading
  while its store answers: as all later tries do.
* Who writes to memory without the page tables of the process is not seen: a device that was given
  the pages (O_DIRECT, RDMA, io_uring's registered buffers) before they were protected.
"""

from __future__ import annotations

from collections.abc import Sequence

from refault.memory.mapping import Mapping
from refault.memory.page import PG_UPTODATE
from refault.memory.protection import Images, Protection
from refault.memory.tracking import Written
from refault.memory.units import dirty
from refault.memory.wait import RESCHEDULE, Task, TaskState, Wait, WaitQueue, WaitReason, Waits

from .machine import Machine
from .reclaim import runs

__all__ = ["abandon", "copy_before_write", "end_snapshot", "instant", "prepare"]

STEP_BYTES = 16 << 20
STEP_UNITS = 256
"""What is protected before others get a turn."""
SCAN_UNITS = 16 << 10
FEW_UNITS = 32
ROUNDS = 12
"""So many rounds at most; one that is followed by no shorter one is the last but one."""


def prepare(
    machine: Machine,
    mappings: Sequence[Mapping],
    task: Task,
    *,
    few: int = FEW_UNITS,
    step: int = STEP_UNITS,
) -> Waits[bool]:
    """Protect nearly everything that is writable, while everybody goes on.

    Parameters
    ----------
    few
        So many units may be left for `instant`.
    step
        The most units that are protected before others get a turn.

    Returns
    -------
    bool
        Whether the caller must call `instant`, in the same step.  False: a signal is pending, and
        nothing is to be done.
    """
    for mapping in mappings:
        mapping.holders += 1
        mapping.track().takers += 1
    for mapping in mappings:
        if not _written(mapping).known:
            # Whatever is mapped writable from now on is in `writable`; what was, is dirty.
            for first in range(0, mapping.pages, SCAN_UNITS):
                found = dirty(mapping, first, first + SCAN_UNITS)
                yield from _protect(machine, mapping, found, step)
                yield RESCHEDULE
            _written(mapping).known = True
    before = None
    for _ in range(ROUNDS):
        left = sum(len(_written(mapping).writable) for mapping in mappings)
        if left <= few or (before is not None and left >= before):
            break
        before = left
        for mapping in mappings:
            yield from _protect(machine, mapping, sorted(_written(mapping).writable), step)
        if task.signal_pending():
            break
    if task.signal_pending():
        abandon(mappings)
        return False
    return True


def _written(mapping: Mapping) -> Written:
    assert mapping.written is not None
    return mapping.written


def _protect(machine: Machine, mapping: Mapping, units: list[int], step: int) -> Waits[None]:
    step = max(1, min(step, STEP_BYTES // mapping.page_size))
    for at in range(0, len(units), step):
        protect_units(machine, mapping, units[at : at + step])
        yield RESCHEDULE


def protect_units(machine: Machine, mapping: Mapping, units: list[int]) -> None:
    """Let units be written with a fault only; what is absent is so anyway."""
    machine.write_protect(mapping, list(runs(i for i in units if mapping.flags[i] & PG_UPTODATE)))
    _written(mapping).writable.difference_update(units)


def abandon(mappings: Sequence[Mapping]) -> None:
    """Undo what `prepare` has done."""
    for mapping in mappings:
        mapping.holders -= 1
        _written(mapping).takers -= 1
        mapping.untrack()


def instant(machine: Machine, mappings: Sequence[Mapping], *, images: bool) -> list[Images]:
    """Take one instant of all the mappings: the short last round.

    Parameters
    ----------
    images
        Whether it is for a snapshot: old content is copied before it is changed.  Otherwise it is
        a mark, and only what is written is noted.

    Returns
    -------
    list of Images
        One for each mapping; its instant is held, see `Written.release`.
    """
    for mapping in mappings:
        protect_units(machine, mapping, sorted(_written(mapping).writable))
    found = []
    for mapping in mappings:
        shot = Images(_written(mapping).advance())
        if images:
            if mapping.protection is None:
                mapping.protection = Protection()
            mapping.protection.begin(shot)
            mapping.gate()
        found.append(shot)
    abandon(mappings)
    return found


def end_snapshot(machine: Machine, mapping: Mapping, images: Images) -> None:
    """A snapshot of a mapping ends: free its copies, and let writers go on."""
    protection = mapping.protection
    assert protection is not None
    for image in protection.end(images):
        machine.free_image(image)
    if not protection.snapshots:
        mapping.protection = None
    mapping.gate()


def copy_before_write(
    machine: Machine, mapping: Mapping, protection: Protection, task: Task
) -> Waits[None]:
    """Answer the writers who ask for protected units, until the last snapshot has ended.

    A unit that was evicted meanwhile cannot be copied: its writer tries again, which brings it in,
    and asks again.  If there is no room for copies, all writers wait until there is.
    """
    while protection.snapshots and not task.fatal_signal_pending():
        full: WaitQueue | None = None
        for index in sorted(protection.asked):
            if not protection.holds(index) or not mapping.flags[index] & PG_UPTODATE:
                protection.answer(index)
                continue
            image = machine.copy_unit(mapping, index)
            if isinstance(image, WaitQueue):
                full = image
                break
            protection.save(index, image)
        yield Wait(full or protection.questions, TaskState.KILLABLE, WaitReason.WRITE_PROTECT)

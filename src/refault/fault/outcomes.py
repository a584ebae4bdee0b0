"""What the fault path does where it need not wait, found out by running it.

Most faults need nothing but one read and one call of the kernel.  Native code serves those
(`refault.machine.server`), and must not have a second copy of the rules for it.  So it has a
table instead: for each state that a unit can be in and each kind of fault, what `user_fault` has
done when it was tried with a unit in this state.  This is how the table is made: the fault path
itself runs, on a machine that writes down what it is asked for.

A write to a unit that a snapshot protects waits for one thing only, the monitor's copy.  So there
the monitor runs, too (`copy_before_write`), as soon as the fault waits for it, and the fault goes
on as soon as it is answered.  That is one of the orders in which the two may run, and the shortest:
nobody else comes in between.  What else may come in between is the explorer's part.

Where it yields for anything else, fails, or asks for anything that a table cannot say, there is no
outcome; such a fault is for the fault path itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Counters, Mapping, PageError
from refault.memory.page import PG_DIRTY, PG_SWAPPED, PG_UPTODATE
from refault.memory.protection import Image, Images, Protection
from refault.memory.vma import Vma
from refault.memory.wait import Task, WaitQueue, Waits

from .callers import FaultOutcome, user_fault
from .machine import Runs
from .results import VM_FAULT_ERROR
from .snapshots import copy_before_write

__all__ = ["Outcome", "outcome"]

_PAGE = 4096
_START = 1 << 20


class Outcome(NamedTuple):
    """What one fault comes to.

    Attributes
    ----------
    reads
        The unit's content is needed first; then it is charged, and enters the working set.
    copies
        Then the content is copied for a snapshot, before anything is mapped.
    writable, protected
        How it is mapped, see `refault.fault.machine.Machine.map_units`.
    state
        The unit's state afterwards.
    dirty
        How many more units are dirty.
    counters
        What is added to the counters of the mapping, by name.
    """

    reads: bool
    copies: bool
    writable: bool
    protected: bool | None
    state: int
    dirty: int
    counters: tuple[tuple[str, int], ...]

    @property
    def attempts(self) -> int:
        """How many it took."""
        return dict(self.counters)["attempts"]


class _NotInATable(Exception):
    """The fault path asked for something else than a read, a copy and a mapping, in this order."""


class _Recorder:
    """A machine that writes down what it is asked for, and does nothing."""

    def __init__(self) -> None:
        self.reads = 0
        self.copies = 0
        self.mapped: list[tuple[bool, bool | None]] = []

    def map_units(
        self, vma: Vma, first: int, last: int, *, writable: bool, protected: bool | None
    ) -> None:
        self.mapped.append((writable, protected))

    def read_now(self, mapping: Mapping, index: int) -> bool:
        if self.copies or self.mapped:
            raise _NotInATable
        self.reads += 1
        return True

    def write_protect(self, mapping: Mapping, runs: Runs) -> None:
        raise _NotInATable

    def punch(self, mapping: Mapping, indexes: Sequence[int]) -> None:
        raise _NotInATable

    def submit_read(self, mapping: Mapping, index: int) -> None:
        raise _NotInATable

    def demand_read(self, mapping: Mapping, index: int) -> None:
        raise _NotInATable

    def submit_write(self, mapping: Mapping, first: int, last: int) -> None:
        raise _NotInATable

    def read_failed(self, mapping: Mapping, index: int) -> None:
        raise _NotInATable

    def write_failed(self, mapping: Mapping, error: BaseException) -> PageError:
        raise _NotInATable

    def wake_reclaim(self, budget: Budget) -> None:
        raise _NotInATable

    def copy_unit(self, mapping: Mapping, index: int) -> Image | WaitQueue:
        if self.mapped:
            raise _NotInATable
        self.copies += 1
        return Image(None)

    def free_image(self, image: Image) -> None:
        raise _NotInATable


def outcome(
    state: int, *, write: bool, protected: bool, writable_vma: bool, copies: bool = False
) -> Outcome | None:
    """Try a fault of a thread.

    Parameters
    ----------
    state
        The unit's state byte.
    write, protected
        The fault, as in `refault.fault.callers.user_fault`.
    writable_vma
        Whether its vma may be written.
    copies
        Whether a snapshot needs the unit's content: see `Protection.holds`.

    Returns
    -------
    Outcome or None
        None: it waits, or fails, or does what a table cannot say.  What is outside of
        the unit's state (its neighbours, errors, room, ghosts) was as plain as can be.
    """
    if not state & PG_UPTODATE and state & ~PG_SWAPPED:
        return None  # it waits, or there is no such state
    mapping = Mapping(1, "one unit", _PAGE, _PAGE, Budget(None), private=False, writable=True)
    if state & PG_UPTODATE:
        mapping.budget.try_charge(_PAGE)
        mapping.set_uptodate(0)
    mapping.dirty = int(bool(state & PG_DIRTY))
    mapping.flags[0] = state
    protection = Protection()
    if copies:
        mapping.protection = protection
        protection.begin(Images(mapping.track().advance()))
    mm = AddressSpace(Budget(None))
    mm.insert(Vma(mm, _START, _PAGE, mapping, 0, writable=writable_vma))
    before, dirty = _counted(mapping.counters), mapping.dirty
    machine = _Recorder()
    fault = user_fault(machine, mm, Task(), _START, write=write, protected=protected)
    monitor = copy_before_write(machine, mapping, protection, Task())
    try:
        result = _run(fault, monitor, protection)
    except (_NotInATable, AssertionError):
        return None
    finally:
        fault.close()
        monitor.close()
    if result is None or result.result & VM_FAULT_ERROR:
        return None
    if len(machine.mapped) != 1 or machine.reads > 1 or machine.copies != copies:
        return None
    after = _counted(mapping.counters)
    return Outcome(
        bool(machine.reads),
        copies,
        *machine.mapped[0],
        mapping.flags[0],
        mapping.dirty - dirty,
        tuple((name, after[name] - before[name]) for name in after if after[name] > before[name]),
    )


def _run(
    fault: Waits[FaultOutcome], monitor: Waits[None], protection: Protection
) -> FaultOutcome | None:
    """Run a fault, and the monitor whenever it is asked; None if anything else is waited for."""
    while True:
        try:
            next(fault)
        except StopIteration as stop:
            result: FaultOutcome = stop.value
            return result
        if not protection.asked:
            return None
        next(monitor)


def _counted(counters: Counters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in counters.__slots__ if name != "max_attempts"}

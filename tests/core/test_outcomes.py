"""The table that native code serves from: made by the fault path, and only where nothing waits."""

from __future__ import annotations

import itertools

import pytest

from refault.fault import handlers, outcomes
from refault.fault.machine import Machine
from refault.fault.outcomes import Outcome, outcome
from refault.memory.mapping import Mapping
from refault.memory.page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READAHEAD,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from refault.memory.protection import Image, Protection
from refault.memory.wait import Task, Waits

READ = {"write": False, "protected": False, "writable_vma": True}
WRITE = {"write": True, "protected": False, "writable_vma": True}
PROTECTED = {"write": True, "protected": True, "writable_vma": True}


def test_first_read() -> None:
    assert outcome(0, **READ) == Outcome(
        reads=True,
        copies=False,
        writable=False,
        protected=False,
        state=PG_UPTODATE,
        dirty=0,
        counters=(("attempts", 1), ("faults", 1), ("major", 1)),
    )


def test_first_write_is_one_fault() -> None:
    found = outcome(0, **WRITE)
    assert found is not None
    assert (found.reads, found.writable, found.dirty) == (True, True, 1)
    assert found.state == PG_UPTODATE | PG_DIRTY


def test_write_to_a_clean_page() -> None:
    found = outcome(PG_UPTODATE, **PROTECTED)
    assert found == Outcome(
        reads=False,
        copies=False,
        writable=True,
        protected=True,
        state=PG_UPTODATE | PG_DIRTY,
        dirty=1,
        counters=(("attempts", 1), ("faults", 1), ("minor", 1), ("write_protect_faults", 1)),
    )


def test_write_to_a_page_that_a_snapshot_needs() -> None:
    """Two tries: the first one asks the monitor, which copies, and the second one maps."""
    counters = (("attempts", 2), ("faults", 1), ("minor", 1), ("retries_write_protect", 1))
    found = outcome(PG_UPTODATE, **PROTECTED, copies=True)
    assert found == Outcome(
        reads=False,
        copies=True,
        writable=True,
        protected=None,
        state=PG_UPTODATE | PG_DIRTY,
        dirty=1,
        counters=(*counters, ("write_protect_faults", 1)),
    )
    assert found.attempts == 2
    found = outcome(PG_UPTODATE | PG_DIRTY, **WRITE, copies=True)
    assert found is not None
    assert (found.copies, found.dirty, found.counters) == (True, 0, counters)
    found = outcome(0, **WRITE, copies=True)
    assert found is not None
    assert (found.reads, found.copies, dict(found.counters)["major"]) == (True, True, 1)


def test_a_reader_needs_no_copy() -> None:
    assert outcome(PG_UPTODATE, **READ, copies=True) is None, "the table is not asked there"


@pytest.mark.parametrize("order", ["no copy", "two copies"])
def test_what_the_monitor_does_otherwise_is_in_no_table(
    monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    def monitor(
        machine: Machine, mapping: Mapping, protection: Protection, task: Task
    ) -> Waits[None]:
        if order == "two copies":
            machine.copy_unit(mapping, 0)
            machine.copy_unit(mapping, 0)
        protection.save(0, Image(None))
        yield handlers.Wait(None, 0, None)  # type: ignore[arg-type]

    monkeypatch.setattr(outcomes, "copy_before_write", monitor)
    assert outcome(PG_UPTODATE, **PROTECTED, copies=True) is None


def test_a_copy_after_the_mapping_is_in_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault path that lets somebody write first: native code does not repeat that."""
    real = handlers.write_protection

    def too_late(vmf: handlers.Fault) -> Protection | None:
        protection = real(vmf)
        if protection is not None:
            handlers.finish_fault(vmf)
        return protection

    monkeypatch.setattr(handlers, "write_protection", too_late)
    assert outcome(PG_UPTODATE, **PROTECTED, copies=True) is None


def test_dirty_page_that_another_range_reads() -> None:
    found = outcome(PG_UPTODATE | PG_DIRTY, **READ)
    assert found is not None
    assert found.writable
    assert not found.dirty
    found = outcome(PG_UPTODATE | PG_DIRTY, write=False, protected=False, writable_vma=False)
    assert found is not None
    assert not found.writable


def test_marks_of_readahead_come_off() -> None:
    found = outcome(PG_UPTODATE | PG_AHEAD | PG_READAHEAD, **READ)
    assert found is not None
    assert found.state == PG_UPTODATE


def test_where_somebody_works_on_the_unit_there_is_none() -> None:
    for state in range(256):
        if state & PG_LOCKED:
            for write, protected, writable in itertools.product([False, True], repeat=3):
                assert (
                    outcome(state, write=write, protected=protected, writable_vma=writable) is None
                )


@pytest.mark.parametrize("state", [0, PG_UPTODATE])
def test_forbidden_write_has_none(state: int) -> None:
    assert outcome(state, write=True, protected=False, writable_vma=False) is None


def test_states_that_cannot_be_have_none() -> None:
    assert outcome(PG_DIRTY, **READ) is None
    assert outcome(PG_WRITEBACK, **WRITE) is None
    assert outcome(PG_SWAPPED, **READ) is not None


def test_all_outcomes_are_few() -> None:
    """Native code counts how often each was used; there is room for 32."""
    every = {
        found._replace(state=0)
        for state in range(256)
        for write, protected, writable, copies in itertools.product([False, True], repeat=4)
        if (
            found := outcome(
                state, write=write, protected=protected, writable_vma=writable, copies=copies
            )
        )
    }
    assert 10 <= len(every) <= 24


def test_it_is_the_fault_path_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(vmf: handlers.Fault) -> int:
        return 0x2

    monkeypatch.setattr(handlers, "finish_fault", fails)
    assert outcome(PG_UPTODATE, **READ) is None

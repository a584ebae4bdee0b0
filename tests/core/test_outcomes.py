"""The table that native code serves from: made by the fault path, and only where nothing waits."""

from __future__ import annotations

import itertools

import pytest

from refault.fault import handlers
from refault.fault.outcomes import Outcome, outcome
from refault.memory.page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READAHEAD,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
)

READ = {"write": False, "protected": False, "writable_vma": True}
WRITE = {"write": True, "protected": False, "writable_vma": True}
PROTECTED = {"write": True, "protected": True, "writable_vma": True}


def test_first_read() -> None:
    assert outcome(0, **READ) == Outcome(
        reads=True,
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
        writable=True,
        protected=True,
        state=PG_UPTODATE | PG_DIRTY,
        dirty=1,
        counters=(("attempts", 1), ("faults", 1), ("minor", 1), ("write_protect_faults", 1)),
    )


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
        for write, protected, writable in itertools.product([False, True], repeat=3)
        if (found := outcome(state, write=write, protected=protected, writable_vma=writable))
    }
    assert 6 <= len(every) <= 16


def test_it_is_the_fault_path_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(vmf: handlers.Fault) -> int:
        return 0x2

    monkeypatch.setattr(handlers, "finish_fault", fails)
    assert outcome(PG_UPTODATE, **READ) is None

"""Units of another size: nothing is lost, states are right, the budget is exact."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fake_machine import PAGE, Run, StoreFailed, World
from refault.fault.reclaim import sync_units
from refault.fault.units import change_unit, clear_the_way
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READAHEAD,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
)
from refault.memory.units import broken, convert, swapped, worked_on
from refault.memory.vma import Vma
from refault.memory.wait import Signal, WaitReason

PARTS = 4
LARGE = PARTS * PAGE


def make(pages: int, page_size: int = PAGE, *, tail: int = 0, private: bool = False) -> Mapping:
    """A mapping of so many 4 KiB pages and a few bytes."""
    size = pages * PAGE + tail
    total = Budget(None)
    budget = Budget(None, total)
    return Mapping(1, "it", size, page_size, budget, private=private, writable=True)


def bring_in(mapping: Mapping, index: int, state: int = 0) -> None:
    """As a fault does it."""
    assert mapping.trylock_page(index)
    assert mapping.budget.try_charge(mapping.page_size) is None
    mapping.set_uptodate(index)
    mapping.unlock_page(index)
    if state & PG_DIRTY:
        mapping.set_dirty(index)
    mapping.flags[index] |= state


def check(mapping: Mapping) -> None:
    """What always holds."""
    resident = [i for i in range(mapping.pages) if mapping.flags[i] & PG_UPTODATE]
    assert sorted(mapping.working_set) == resident
    assert mapping.budget.usage == len(resident) * mapping.page_size
    assert mapping.budget.parent is not None
    assert mapping.budget.parent.usage == mapping.budget.usage
    assert mapping.dirty == sum(bool(state & PG_DIRTY) for state in mapping.flags)
    assert len(mapping.flags) == mapping.pages == -(-mapping.size // mapping.page_size)
    assert 1 << mapping.page_shift == mapping.page_size


STATES = st.sampled_from((0, PG_DIRTY, PG_AHEAD, PG_READAHEAD | PG_AHEAD, PG_DIRTY | PG_SWAPPED))


@settings(max_examples=300, deadline=None)
@given(
    pages=st.integers(1, 40),
    tail=st.sampled_from((0, 1, PAGE - 1)),
    units=st.dictionaries(st.integers(0, 9), STATES, max_size=10),
    order=st.randoms(use_true_random=False),
)
def test_split(pages: int, tail: int, units: dict[int, int], order: object) -> None:
    mapping = make(pages, LARGE, tail=tail)
    indexes = [index for index in units if index < mapping.pages]
    for index in indexes:
        bring_in(mapping, index, units[index])
    before = list(mapping.working_set)
    assert broken(mapping, PAGE) == []
    mapping.set_page_size(PAGE)
    check(mapping)
    parts = [p for i in before for p in range(i * PARTS, min((i + 1) * PARTS, mapping.pages))]
    assert list(mapping.working_set) == parts
    for part in range(mapping.pages):
        wanted = units.get(part // PARTS)
        state = 0 if wanted is None else (wanted & ~PG_READAHEAD) | PG_UPTODATE
        assert mapping.flags[part] == state
    assert mapping.counters.unit_changes == 1


@settings(max_examples=300, deadline=None)
@given(
    pages=st.integers(1, 40),
    tail=st.sampled_from((0, 1)),
    parts=st.lists(st.integers(0, 40), unique=True),
    states=st.lists(STATES, min_size=41, max_size=41),
    whole=st.lists(st.integers(0, 9), unique=True),
)
def test_merge(
    pages: int, tail: int, parts: list[int], states: list[int], whole: list[int]
) -> None:
    mapping = make(pages, PAGE, tail=tail)
    wanted = dict.fromkeys(p for w in whole for p in range(w * PARTS, (w + 1) * PARTS))
    wanted |= dict.fromkeys(parts)
    for index in wanted:
        if index < mapping.pages:
            bring_in(mapping, index, states[index])
    there = set(mapping.working_set)
    small = list(mapping.working_set)
    full = {
        large
        for large in range(11)
        if all(p in there for p in range(large * PARTS, (large + 1) * PARTS))
    }
    found = broken(mapping, LARGE)
    assert found == sorted(index for index in there if index // PARTS not in full)
    if found:
        usage = mapping.budget.usage
        with pytest.raises(AssertionError):
            mapping.set_page_size(LARGE)
        assert (mapping.page_size, mapping.budget.usage) == (PAGE, usage)
        assert list(mapping.working_set) == small
        for index in found:
            if mapping.flags[index] & PG_DIRTY:
                mapping.begin_writeback([index])
                mapping.end_writeback([index], None)
        mapping.drop(found, ghost=False)
    mapping.set_page_size(LARGE)
    check(mapping)
    assert set(mapping.working_set) == full
    # A large unit is as old as its oldest part.
    assert list(mapping.working_set) == list(
        dict.fromkeys(i // PARTS for i in small if i // PARTS in full)
    )
    for large in full:
        each = [states[part] for part in range(large * PARTS, (large + 1) * PARTS)]
        state = mapping.flags[large]
        assert bool(state & PG_DIRTY) == any(one & PG_DIRTY for one in each)
        assert bool(state & PG_AHEAD) == all(one & PG_AHEAD for one in each)
        assert not state & (PG_READAHEAD | PG_LOCKED)
    # And back: the same pages, each of them dirty if any of its large unit was.
    mapping.set_page_size(PAGE)
    check(mapping)
    assert set(mapping.working_set) == {p for w in full for p in range(w * PARTS, (w + 1) * PARTS)}


@pytest.mark.parametrize("bit", [PG_LOCKED, PG_READING, PG_WRITEBACK])
@pytest.mark.parametrize("index", [0, 7, (1 << 20) + 5])
def test_not_while_somebody_works_on_a_unit(bit: int, index: int) -> None:
    mapping = make((1 << 20) + 8)
    assert worked_on(mapping) is None
    mapping.flags[index] |= bit
    assert worked_on(mapping) == index
    with pytest.raises(AssertionError):
        convert(mapping, LARGE)


def test_not_while_numbers_are_remembered() -> None:
    mapping = make(16)
    for name, value in (("holders", 1), ("closed", True), ("written", object())):
        before = getattr(mapping, name)
        setattr(mapping, name, value)
        assert not mapping.can_change(), name
        setattr(mapping, name, before)
    mapping.pin(3)
    assert not mapping.can_change()
    mapping.unpin(3)
    mapping.set_error(3, StoreFailed(), permanent=True)
    assert not mapping.can_change()
    mapping.errors.clear()
    assert mapping.can_change()


def test_what_is_in_swap_keeps_its_units() -> None:
    for private in (True, False):
        mapping = make(16, private=private)
        bring_in(mapping, 5, PG_DIRTY)
        mapping.begin_writeback([5])
        mapping.end_writeback([5], None)
        mapping.drop([5], ghost=False)
        assert swapped(mapping) == private
        assert mapping.can_change() != private


def test_why_it_could_not_be_written_is_still_known() -> None:
    mapping = make(16, LARGE)
    bring_in(mapping, 2, PG_DIRTY)
    mapping.begin_writeback([2])
    failure = StoreFailed()
    mapping.end_writeback([2], failure)
    mapping.set_page_size(PAGE)
    assert mapping.write_errors == dict.fromkeys(range(8, 12), failure)
    mapping.set_page_size(LARGE)
    assert mapping.write_errors == {2: failure}
    assert mapping.flags[2] & PG_DIRTY


# -- while threads use it -------------------------------------------------------------------


def change(world: World, page_size: int) -> Run:
    return world.run(lambda t: change_unit(world.machine, world.mapping, page_size, t), "units")


def quiet(world: World) -> None:
    """The locks are free, and native code serves again what it served before."""
    for vma in world.mm:
        assert (vma.lock.readers, vma.lock.writer, list(vma.lock.waiters)) == (0, False, [])
    assert world.withdrawn == []  # type: ignore[attr-defined]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Of 32 small units, with two vmas; it knows which vmas are withdrawn."""
    made = World()
    made.add_vma(made.mapping, 1 << 30)
    withdrawn: list[Vma] = []
    made.withdrawn = withdrawn  # type: ignore[attr-defined]
    monkeypatch.setattr(AddressSpace, "withdraw", lambda _, vma: withdrawn.append(vma))
    monkeypatch.setattr(AddressSpace, "restore", lambda _, vma: withdrawn.remove(vma))
    return made


def test_what_is_not_whole_goes_and_what_is_dirty_of_it_is_written(world: World) -> None:
    world.fill([5], dirty=True)
    world.fill([4, 6, 7])
    world.fill([12], dirty=True)
    world.fill([16, 17, 18])
    changing = change(world, LARGE)
    assert changing.waits_for is WaitReason.WRITEBACK
    assert [(first, last) for _, first, last, _ in world.machine.writes] == [(12, 13)]
    assert len(world.withdrawn) == 2  # type: ignore[attr-defined]
    # Meanwhile nobody gets in, and whoever waits finds the new units.
    late = world.fault(12)
    assert late.waits_for is WaitReason.ADDRESS_SPACE
    world.machine.end_write()
    changing.step()
    assert changing.result is True
    assert world.mapping.page_size == LARGE
    assert list(world.mapping.working_set) == [1]
    assert world.mapping.flags[1] == PG_UPTODATE | PG_DIRTY
    assert world.budget.usage == LARGE
    quiet_lock = world.vma.lock
    world.machine.answers[3] = True
    late.step()
    assert late.result.attempts == 1
    assert list(world.mapping.working_set) == [1, 3]
    assert quiet_lock.readers == 0
    quiet(world)


def test_a_write_that_fails_ends_it(world: World) -> None:
    world.fill([12], dirty=True)
    changing = change(world, LARGE)
    world.machine.end_write(error=StoreFailed())
    world.settle()
    assert changing.result is False
    assert world.mapping.page_size == PAGE
    assert world.mapping.flags[12] & PG_DIRTY
    world.check()
    quiet(world)


def test_it_waits_for_reads_that_run(world: World) -> None:
    reading = world.fault(3)
    assert reading.waits_for is WaitReason.READ
    changing = change(world, LARGE)
    assert changing.waits_for is WaitReason.PAGE_LOCK
    world.end_read(3)
    reading.step()
    assert reading.waits_for is WaitReason.ADDRESS_SPACE
    changing.step()
    # The unit is a part of none that is whole.
    assert changing.result is True
    assert not world.mapping.working_set
    world.machine.answers[0] = True
    reading.step()
    assert list(world.mapping.working_set) == [0]
    quiet(world)


def test_a_signal_ends_the_wait_for_a_store_that_hangs(world: World) -> None:
    world.fault(3)
    changing = change(world, LARGE)
    changing.task.send_signal(Signal.DEADLINE)
    changing.step()
    assert changing.result is False
    assert world.mapping.page_size == PAGE
    quiet(world)


def test_a_signal_ends_the_wait_for_a_write(world: World) -> None:
    world.fill([3], dirty=True)
    changing = change(world, LARGE)
    changing.task.send_signal(Signal.DEADLINE)
    changing.step()
    assert changing.result is False
    world.check()
    quiet(world)
    world.machine.end_write()
    assert world.mapping.flags[3] == PG_UPTODATE
    world.check()


def test_it_never_waits_for_a_lock(world: World) -> None:
    """Behind a writer who waits all faults would wait."""
    for vma in world.mapping.vmas:
        assert vma.lock.down_read_trylock()
        assert change(world, LARGE).result is False
        vma.lock.up_read()
        quiet(world)
    assert change(world, LARGE).result is True


def test_not_in_the_middle_of_a_flush(world: World) -> None:
    world.fill(range(8), dirty=True)
    sync = world.run(lambda t: sync_units(world.machine, world.mapping, 0, 8, t))
    assert change(world, LARGE).result is False
    world.finish_everything()
    assert sync.finished
    assert change(world, LARGE).result is True
    assert world.mapping.holders == 0


def test_a_vma_that_came_meanwhile_is_not_locked(world: World) -> None:
    world.fault(3)
    changing = change(world, LARGE)
    world.add_vma(world.mapping, 1 << 31)
    world.end_read(3)
    world.settle()
    assert changing.result is False
    quiet(world)


def test_nor_one_that_came_during_a_write(world: World) -> None:
    world.fill([3], dirty=True)
    changing = change(world, LARGE)
    world.add_vma(world.mapping, 1 << 31)
    world.machine.end_write()
    world.settle()
    assert changing.result is False
    world.check()
    quiet(world)


def test_the_way_is_cleared_while_everybody_goes_on(world: World) -> None:
    world.fill(range(4, 8))
    world.fill([9, 12], dirty=True)
    clearing = world.run(lambda t: clear_the_way(world.machine, world.mapping, LARGE, t))
    assert clearing.waits_for is WaitReason.WRITEBACK
    world.fill([20], dirty=True)
    assert change(world, LARGE).result is False
    while world.machine.writes:
        world.machine.end_write()
    world.settle()
    assert clearing.finished
    assert sorted(world.mapping.working_set) == [4, 5, 6, 7, 20]
    assert world.mapping.holders == 0
    world.check()
    quiet(world)

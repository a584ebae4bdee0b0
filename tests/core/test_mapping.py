"""`Mapping`, `Vma`, `AddressSpace`: states of units, sizes, who is where."""

from __future__ import annotations

import os
import random

import pytest

from helpers.fake_machine import PAGE, StoreFailed, World
from refault.machine.linux import LinuxMapping
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping, PageError
from refault.memory.page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
    PG_WRITEBACK,
    page_flag_names,
)
from refault.memory.vma import Vma
from refault.memory.wait import Task
from refault.native import available


class Sleeper(Task):
    __slots__ = ("woken",)

    def __init__(self) -> None:
        super().__init__("sleeper")
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def make(size: int = 10 * PAGE, *, private: bool = False, limit: int | None = None) -> Mapping:
    return Mapping(1, "it", size, PAGE, Budget(limit), private=private, writable=True)


def charged(mapping: Mapping, index: int) -> None:
    assert mapping.trylock_page(index)
    assert mapping.budget.try_charge(PAGE) is None


def test_size_need_not_be_whole_units() -> None:
    mapping = make(2 * PAGE + 5)
    assert mapping.pages == 3
    assert mapping.index_bytes(0) == (0, PAGE)
    assert mapping.index_bytes(2) == (2 * PAGE, 2 * PAGE + 5)
    mapping.grow(4 * PAGE)
    assert mapping.pages == len(mapping.flags) == 4
    assert mapping.index_bytes(2) == (2 * PAGE, 3 * PAGE)


def test_page_size_is_a_power_of_two() -> None:
    with pytest.raises(AssertionError):
        Mapping(1, "it", 100, 3000, Budget(None), private=False, writable=True)


def test_mapping_is_known_to_all_its_budgets() -> None:
    total = Budget(None)
    mapping = Mapping(1, "it", PAGE, PAGE, Budget(None, total), private=False, writable=True)
    assert mapping.budget.mappings == total.mappings == [mapping]


def test_page_lock() -> None:
    mapping = make()
    assert mapping.trylock_page(3)
    assert not mapping.trylock_page(3)
    assert mapping.trylock_page(4)
    sleeper = Sleeper()
    mapping.page_queue(3).tasks.append(sleeper)
    mapping.unlock_page(4)
    assert not sleeper.woken
    mapping.unlock_page(3)
    assert sleeper.woken == 1
    with pytest.raises(AssertionError):
        mapping.unlock_page(3)
    mapping.wake_page(3)
    assert sleeper.woken == 1


@pytest.mark.parametrize("state", [PG_UPTODATE, 0])
def test_unlocking_wakes_who_waits_for_room_if_there_is_something_to_evict(state: int) -> None:
    mapping = make()
    assert mapping.trylock_page(3)
    mapping.flags[3] |= state
    sleeper = Sleeper()
    mapping.budget.freed.tasks.append(sleeper)
    mapping.unlock_page(3)
    assert sleeper.woken == bool(state)


def test_read_that_ends_well() -> None:
    mapping = make()
    charged(mapping, 3)
    mapping.begin_read(3)
    assert mapping.flags[3] == PG_LOCKED | PG_READING
    sleeper = Sleeper()
    mapping.page_queue(3).tasks.append(sleeper)
    mapping.end_read(3, None)
    assert mapping.flags[3] == PG_UPTODATE
    assert sleeper.woken == 1
    assert 3 in mapping.working_set
    assert mapping.resident == PAGE


def test_read_that_fails_again_and_again() -> None:
    mapping = make()
    for tries in (1, 2, 3):
        charged(mapping, 3)
        mapping.begin_read(3)
        mapping.end_read(3, StoreFailed())
        error = mapping.errors[3]
        assert (error.tries, error.cooling, error.permanent) == (tries, True, False)
        assert mapping.flags[3] == 0
        assert mapping.resident == 0
    assert mapping.counters.store_errors == 3
    charged(mapping, 3)
    mapping.begin_read(3)
    mapping.end_read(3, None)
    assert not mapping.errors


def test_pause() -> None:
    error = PageError(StoreFailed(), permanent=False, tries=1)
    sleeper = Sleeper()
    error.over.tasks.append(sleeper)
    error.cooled()
    assert not error.cooling
    assert sleeper.woken == 1
    assert not PageError(StoreFailed(), permanent=True, tries=1).cooling


def test_dirty_is_counted_once() -> None:
    mapping = make()
    mapping.set_dirty(3)
    mapping.set_dirty(3)
    assert mapping.dirty == 1
    mapping.begin_writeback([3])
    mapping.end_writeback([3], None)
    mapping.begin_writeback([3])
    assert mapping.dirty == 0


@pytest.mark.parametrize("private", [False, True])
def test_writeback_that_ends_well(private: bool) -> None:
    mapping = make(private=private)
    mapping.flags[3] = PG_UPTODATE
    mapping.set_dirty(3)
    mapping.begin_writeback([3])
    assert mapping.flags[3] == PG_UPTODATE | PG_WRITEBACK
    sleeper, waiter = Sleeper(), Sleeper()
    mapping.page_queue(3).tasks.append(sleeper)
    mapping.budget.freed.tasks.append(waiter)
    mapping.end_writeback([3], None)
    assert mapping.flags[3] == PG_UPTODATE | (PG_SWAPPED if private else 0)
    assert (sleeper.woken, waiter.woken, mapping.dirty) == (1, 1, 0)


def test_writeback_that_fails_leaves_it_dirty() -> None:
    mapping = make(private=True)
    mapping.flags[3] = PG_UPTODATE
    mapping.set_dirty(3)
    mapping.begin_writeback([3])
    failure = StoreFailed()
    mapping.end_writeback([3], failure)
    assert mapping.flags[3] == PG_UPTODATE | PG_DIRTY
    assert mapping.dirty == 1
    assert mapping.write_errors == {3: failure}
    mapping.begin_writeback([3])
    assert not mapping.write_errors


def test_nothing_is_written_twice_at_once() -> None:
    """The write that ends last would decide what the store holds."""
    mapping = make()
    mapping.set_dirty(3)
    mapping.begin_writeback([3])
    mapping.set_dirty(3)
    with pytest.raises(AssertionError):
        mapping.begin_writeback([3])


@pytest.mark.parametrize("state", [PG_DIRTY, PG_WRITEBACK])
def test_changes_are_not_dropped(state: int) -> None:
    mapping = make()
    mapping.flags[3] = PG_UPTODATE | state
    with pytest.raises(AssertionError):
        mapping.drop([3], ghost=True)


@pytest.mark.skipif(not available(), reason="there is no native library, or it is not wanted")
@pytest.mark.parametrize("dirty_at", [None, 0, 40, 199])
@pytest.mark.parametrize("ahead", [False, True])
def test_native_code_enters_the_same_states(dirty_at: int | None, ahead: bool) -> None:
    dice = random.Random(1)
    states = [state & ~(PG_DIRTY | PG_WRITEBACK) for state in dice.choices(range(256), k=300)]
    if not ahead:
        states = [state & ~PG_AHEAD for state in states]
    indexes = dice.sample(range(300), 200)
    if dirty_at is not None:
        states[indexes[dirty_at]] |= PG_DIRTY
    touched = bytes(dice.choices([0, 7, 254, 255], k=300))
    found = []
    for kind in (Mapping, LinuxMapping):
        more = {"store": None, "swap": None} if kind is LinuxMapping else {}
        mapping = kind(
            1, "it", 300 * PAGE, PAGE, Budget(None), private=False, writable=True, **more
        )
        mapping.flags[:] = bytes(states)
        mapping.touched[:] = touched
        if dirty_at is None:
            wasted = mapping._clear(indexes)
            assert wasted == sum(bool(states[index] & PG_AHEAD) for index in indexes)
        else:
            with pytest.raises(AssertionError, match=f"unit {indexes[dirty_at]} of it"):
                mapping._clear(indexes)
        found.append((bytes(mapping.flags), bytes(mapping.touched)))
        if isinstance(mapping, LinuxMapping):
            os.close(mapping.memfd)
    assert found[0] == found[1]


def test_drop_and_refault() -> None:
    mapping = make(limit=4 * PAGE)
    for _ in range(2):
        charged(mapping, 3)
        mapping.set_uptodate(3)
        mapping.unlock_page(3)
        state = mapping.flags[3]
        mapping.drop([3], ghost=True)
        assert mapping.flags[3] == 0
        assert mapping.resident == 0
    assert state == PG_UPTODATE
    assert mapping.counters.refaults == 1
    assert mapping.counters.evictions == 2


@pytest.mark.parametrize("ghost", [True, False])
def test_what_was_read_in_vain_makes_the_lowest_level_larger(ghost: bool) -> None:
    """If it was evicted; not if it was dropped because somebody wanted that."""
    mapping = make(limit=4 * PAGE)
    for index in range(3):
        charged(mapping, index)
        mapping.set_uptodate(index)
        mapping.unlock_page(index)
    mapping.flags[0] |= PG_AHEAD
    mapping.flags[1] |= PG_AHEAD
    mapping.drop([0, 1, 2], ghost=ghost)
    assert mapping.working_set.wanted == (2 if ghost else 0)


def test_swap_keeps_what_was_dropped() -> None:
    mapping = make(private=True)
    charged(mapping, 3)
    mapping.set_uptodate(3)
    mapping.set_dirty(3)
    mapping.begin_writeback([3])
    mapping.end_writeback([3], None)
    mapping.drop([3], ghost=False)
    assert mapping.flags[3] == PG_LOCKED | PG_SWAPPED
    assert mapping.counters.evictions == 0


@pytest.mark.parametrize(
    ("state", "evictable", "droppable"),
    [
        (PG_UPTODATE, True, True),
        (PG_UPTODATE | PG_AHEAD | PG_SWAPPED, True, True),
        (PG_UPTODATE | PG_DIRTY, True, False),
        (PG_UPTODATE | PG_LOCKED, False, False),
        (PG_UPTODATE | PG_WRITEBACK, False, False),
    ],
)
def test_who_may_go(state: int, evictable: bool, droppable: bool) -> None:
    mapping = make()
    mapping.flags[3] = state
    assert mapping.evictable(3) is evictable
    assert mapping.droppable(3) is droppable
    mapping.pin(3)
    assert not mapping.evictable(3)
    assert not mapping.droppable(3)


def test_last_unpin_wakes_who_waits_for_room() -> None:
    mapping = make()
    mapping.pin(3)
    mapping.pin(3)
    sleeper = Sleeper()
    mapping.budget.freed.tasks.append(sleeper)
    mapping.unpin(3)
    assert not sleeper.woken
    mapping.unpin(3)
    assert sleeper.woken == 1


def test_states_have_names() -> None:
    assert page_flag_names(0) == "absent"
    assert page_flag_names(PG_UPTODATE | PG_DIRTY) == "uptodate|dirty"
    assert len(page_flag_names(0xFF).split("|")) == 8


def test_readahead_is_optional() -> None:
    assert make().readahead is not None
    mapping = Mapping(
        1, "it", PAGE, PAGE, Budget(None), private=False, writable=True, readahead=False
    )
    assert mapping.readahead is None


# -- vmas ----------------------------------------------------------------------------------


def test_vma_of_a_part() -> None:
    """A vma need not begin or end at a unit: offset and length are multiples of 4096 only."""
    mapping = Mapping(1, "it", 1 << 20, 1 << 16, Budget(None), private=False, writable=True)
    vma = Vma(AddressSpace(Budget(None)), 0x10000, 0x20000, mapping, 0x3000, writable=True)
    assert vma.index_of(0x10000) == 0
    assert vma.index_of(0x10000 + 0xD000 - 1) == 0
    assert vma.index_of(0x10000 + 0xD000) == 1
    assert vma.unit_range(0, 1) == (0x10000, 0x1D000)
    assert vma.unit_range(1, 3) == (0x1D000, 0x30000)
    assert vma.units(0, 0x20000) == (0, 3)
    assert vma.units(0xCFFF, 0xD001) == (0, 2)
    assert vma.units(5, 5) == (0, 0)


def test_address_space() -> None:
    world = World(4)
    other = world.add_mapping(4, None)
    with pytest.raises(AssertionError):
        world.add_vma(other, world.vma.end - PAGE)
    with pytest.raises(AssertionError):
        world.add_vma(other, world.vma.start - PAGE)
    with pytest.raises(AssertionError):
        world.add_vma(other, world.vma.start)
    above = world.add_vma(other, world.vma.end)
    below = world.add_vma(other, world.vma.start - 4 * PAGE)
    assert list(world.mm) == [below, world.vma, above]
    assert world.mm.find(below.start - 1) is None
    assert world.mm.find(below.start) is below
    assert world.mm.find(world.vma.start - 1) is below
    assert world.mm.find(world.vma.end - 1) is world.vma
    assert world.mm.find(above.end) is None
    assert other.vmas == [above, below]
    world.mm.remove(below)
    assert below.detached
    assert world.mm.find(below.start) is None
    assert (len(world.mm), other.vmas) == (2, [above])
    with pytest.raises(AssertionError):
        world.mm.remove(below)

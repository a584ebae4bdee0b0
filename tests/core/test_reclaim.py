"""Where memory comes from: dropping, evicting, writing back, and syncing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fake_machine import PAGE, START, Run, StoreFailed, World
from refault.fault.callers import user_fault
from refault.fault.reclaim import (
    evict_units,
    make_room,
    reclaim,
    runs,
    shrink_clean,
    sync_units,
)
from refault.memory.page import PG_DIRTY, PG_LOCKED, PG_SWAPPED, PG_UPTODATE, PG_WRITEBACK
from refault.memory.unitlists import LEVELS
from refault.memory.wait import Signal, WaitReason


def evict(world: World, indexes, *, ghost: bool = True) -> Run:
    return world.run(lambda t: evict_units(world.machine, world.mapping, indexes, t, ghost=ghost))


def sync(world: World, first: int = 0, last: int = 1000) -> Run:
    return world.run(lambda t: sync_units(world.machine, world.mapping, first, last, t), "sync")


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ([], []),
        ([3], [(3, 4)]),
        ([0, 1, 2], [(0, 3)]),
        ([0, 2, 3, 7], [(0, 1), (2, 4), (7, 8)]),
    ],
)
def test_runs(indexes: list[int], expected: list[tuple[int, int]]) -> None:
    assert list(runs(indexes)) == expected


@given(st.sets(st.integers(0, 40)))
def test_runs_are_the_same_set(indexes: set[int]) -> None:
    found = list(runs(sorted(indexes)))
    assert [index for first, last in found for index in range(first, last)] == sorted(indexes)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


# -- several mappings under one budget -------------------------------------------------------


def test_a_store_that_hangs_does_not_hold_up_the_others() -> None:
    """The largest mapping is taken from first; its store never answers; the next one is asked."""
    world = World()
    other = world.add_mapping(32, None)
    theirs = world.add_vma(other, START * 2)
    world.fill(range(4), dirty=True)
    world.machine.answers = dict.fromkeys(range(32), True)
    at = itertools.count(theirs.start, PAGE)

    def write() -> Run:
        address = next(at)
        return world.run(
            lambda task: user_fault(world.machine, world.mm, task, address, write=True)
        )

    assert write().finished
    assert write().finished
    world.total.set_limit(6 * PAGE)
    waiting = write()
    assert waiting.waits_for is WaitReason.MEMORY
    world.settle()
    asked = {mapping for mapping, *_ in world.machine.writes}
    assert asked == {world.mapping, other}, "one reclaim each"
    world.machine.end_write(next(n for n, w in enumerate(world.machine.writes) if w[0] is other))
    world.settle()
    assert waiting.finished, "the hanging write is still under way"
    assert world.mapping.reclaiming
    assert world.machine.writes[0][0] is world.mapping
    world.finish_everything()
    world.check_quiet()


# -- dropping what is clean ----------------------------------------------------------------


def test_oldest_clean_unit_goes_first() -> None:
    world = World()
    world.fill([5], dirty=True)
    world.fill([6, 7])
    assert shrink_clean(world.machine, world.budget)
    assert world.machine.calls == [("punch", 6, 7)]
    assert world.mapping.flags[6] == 0
    world.mapping.pin(7)
    assert not shrink_clean(world.machine, world.budget)
    world.check_quiet()


def test_room_for_a_window_is_made_with_one_call() -> None:
    world = World(resident=8)
    world.fill(range(6))
    make_room(world.machine, world.mapping, 10, 12)
    assert not world.machine.calls  # there is room
    make_room(world.machine, world.mapping, 5, 11)  # one is there
    assert world.machine.calls == [("punch", 0, 3)]
    assert world.budget.usage == 3 * PAGE
    world.total.set_limit(4 * PAGE)
    make_room(world.machine, world.mapping, 20, 22)
    assert world.machine.calls[1:] == [("punch", 3, 4)]
    world.check_quiet()


def test_largest_mapping_first_and_then_the_others() -> None:
    world = World()
    other = world.add_mapping(8, None)
    vma = world.add_vma(other, 0x900_0000)
    world.fill([0, 1], dirty=True)
    for index in (0, 1):
        world.machine.answers[index] = True
        run, vmf = world.attempt(index, vma=vma)
        assert run.finished
        vmf.vma.lock.up_read()
    world.fill([2], dirty=True)
    # The larger one has only dirty units.
    assert shrink_clean(world.machine, world.total)
    # What came in last stays.
    assert other.flags[0] == 0
    assert other.flags[1]
    assert not shrink_clean(world.machine, world.total)
    world.check_quiet()


# -- evicting ------------------------------------------------------------------------------


def test_order_of_eviction() -> None:
    """Protect, then write, then free: no thread can change what is being written."""
    world = World()
    world.fill([2, 3, 5], dirty=True)
    world.fill([4])
    run = evict(world, [5, 4, 3, 2])
    assert world.machine.calls == [
        ("punch", 4, 5),  # clean: it need not wait for the others
        ("write_protect", 2, 4),
        ("write_protect", 5, 6),
        ("submit_write", 2, 4),
        ("submit_write", 5, 6),
    ]
    locked = PG_UPTODATE | PG_LOCKED
    assert world.mapping.flags[2] == locked | PG_WRITEBACK
    assert not world.mapping.flags[4]
    world.machine.end_write(1)
    world.settle()
    assert not run.finished
    world.machine.end_write()
    world.settle()
    assert run.result is None
    assert world.machine.calls[-2:] == [("punch", 2, 4), ("punch", 5, 6)]
    assert world.budget.usage == 0
    assert world.machine.store[world.mapping, 5] == 1
    world.check_quiet()


def test_private_units_go_to_swap() -> None:
    world = World(private=True)
    world.fill([2], dirty=True)
    evict(world, [2])
    world.finish_everything()
    assert world.mapping.flags[2] == PG_SWAPPED
    assert world.machine.swap == {(world.mapping, 2): 1}
    assert not world.machine.store


def test_failed_write_keeps_the_unit() -> None:
    world = World()
    world.fill([2, 4], dirty=True)
    run = evict(world, [2, 4])
    failure = StoreFailed()
    world.machine.end_write(0, failure)
    world.machine.end_write()
    world.settle()
    assert run.result is failure
    assert world.mapping.flags[2] == PG_UPTODATE | PG_DIRTY
    assert world.mapping.flags[4] == 0
    assert world.machine.memory == {(world.mapping, 2): 1}
    # It is protected still; the next write is a fault, and no problem.
    assert world.machine.tables == {(world.vma, 2): False}
    assert world.fault(2, write=True, protected=True).finished
    world.store(2, 5)
    world.check_quiet()


def test_busy_units_are_left_alone() -> None:
    world = World()
    world.fill([0, 1, 2, 3], dirty=True)
    world.mapping.pin(0)
    assert world.mapping.trylock_page(1)
    sync(world, 2, 3)
    run = evict(world, [0, 1, 2, 9])
    assert run.result is None
    assert world.machine.count("submit_write") == 1
    world.mapping.unlock_page(1)
    world.finish_everything()
    assert len(world.mapping.working_set) == 4
    world.check_quiet()


def test_threads_wait_for_the_page_lock_and_fault_it_in_again() -> None:
    world = World()
    world.fill([2], dirty=True)
    evict(world, [2])
    read, write = world.fault(2), world.fault(2, write=True, protected=True)
    assert read.waits_for is write.waits_for is WaitReason.PAGE_LOCK
    world.finish_everything()
    assert read.finished
    assert write.finished
    assert world.machine.memory[world.mapping, 2] == 1
    assert world.mapping.dirty == 1
    world.check_quiet()


@pytest.mark.parametrize("ghost", [False, True])
def test_ghosts(ghost: bool) -> None:
    world = World()
    world.fill([2])
    evict(world, [2], ghost=ghost)
    world.fill([2])
    assert world.mapping.counters.refaults == int(ghost)
    assert world.mapping.counters.evictions == int(ghost)


# -- reclaim -------------------------------------------------------------------------------


def run_reclaim(world: World) -> Run:
    return world.run(lambda task: reclaim(world.machine, world.budget, task), "reclaim")


def test_reclaim_keeps_twice_the_low_mark_free() -> None:
    world = World(400, resident=256)
    world.machine.auto_reclaim = False
    world.fill(range(256), dirty=True)
    run = run_reclaim(world)
    assert world.budget.reclaiming
    world.finish_everything()
    assert run.finished
    assert not world.budget.reclaiming
    assert world.budget.usage == (256 - 8) * PAGE
    assert world.mapping.flags[0] == 0
    world.check_quiet()


def test_reclaim_has_nothing_to_do_without_a_bound() -> None:
    world = World()
    world.fill(range(8))
    assert run_reclaim(world).finished
    assert len(world.mapping.working_set) == 8


def test_lowered_bound_is_enforced() -> None:
    world = World(400, resident=256)
    world.machine.auto_reclaim = False
    world.fill(range(200), dirty=True)
    world.budget.set_limit(20 * PAGE)
    run_reclaim(world)
    world.finish_everything()
    assert world.budget.usage <= 19 * PAGE
    world.check_quiet()


def test_reclaim_pauses_when_the_store_fails() -> None:
    world = World(resident=4)
    world.fill(range(4), dirty=True)
    fault = world.fault(9)
    world.settle()
    world.machine.end_write(0, StoreFailed())
    world.settle()
    assert world.machine.count("write_failed") == 1
    assert world.budget.reclaiming
    assert fault.waits_for is WaitReason.MEMORY
    assert not world.machine.writes
    world.machine.pauses[0].cooled()
    world.settle()
    assert world.machine.writes
    world.finish_everything()
    assert fault.finished
    world.check_quiet()


def test_reclaim_can_be_killed_in_its_pause() -> None:
    world = World(resident=4)
    world.machine.auto_reclaim = False
    world.fill(range(4), dirty=True)
    run = run_reclaim(world)
    world.machine.end_write(0, StoreFailed())
    world.settle()
    run.task.send_signal(Signal.INTERRUPT)
    world.settle()
    assert not run.finished
    run.task.send_signal(Signal.KILL)
    world.settle()
    assert run.finished
    assert not world.budget.reclaiming
    world.check_quiet()


def test_nothing_to_evict_ends_it_and_an_unpin_begins_it_again() -> None:
    world = World(resident=2)
    world.fill([0, 1], dirty=True)
    world.mapping.pin(0)
    world.mapping.pin(1)
    fault = world.fault(9)
    world.settle()
    assert not world.budget.reclaiming
    assert fault.waits_for is WaitReason.MEMORY
    world.mapping.unpin(0)
    world.finish_everything()
    assert fault.finished
    world.mapping.unpin(1)
    world.check_quiet()


def test_many_pinned_units_do_not_hide_the_others() -> None:
    """However many are pinned: while one unit can be evicted no fault waits for ever."""
    world = World(600, resident=300)
    world.fill(range(200))
    for index in range(200):
        world.mapping.pin(index)
    world.fill(range(200, 300), dirty=True)
    for index in range(400, 440):
        run = world.fault(index)
        world.finish_everything()
        assert run.finished
    world.check_quiet()


def test_units_of_higher_levels_are_evicted_if_those_of_the_lowest_cannot_be() -> None:
    world = World(resident=8)
    world.fill(range(8))
    evict(world, range(8))
    world.fill(range(2, 8), dirty=True)
    world.fill([20, 21])
    assert world.mapping.working_set.lists.counts[:LEVELS].tolist() == [2, 6, 0, 0]
    world.mapping.pin(20)
    world.mapping.pin(21)
    run = world.fault(25)
    world.finish_everything()
    assert run.finished
    world.check_quiet()


@pytest.mark.parametrize("resident", [3, 16, 22, 31, 64, 100])
@pytest.mark.parametrize("slack", [0, 1, PAGE // 2, PAGE - 1])
def test_bound_need_not_be_whole_units(resident: int, slack: int) -> None:
    """What is left beside the last unit is not room, and does not keep reclaim from its work."""
    world = World(200, resident, slack=slack)
    world.fill(range(resident), dirty=True)
    run = world.fault(150)
    world.finish_everything()
    assert run.finished
    world.check_quiet()


# -- sync ----------------------------------------------------------------------------------


def test_sync_writes_what_is_dirty_and_keeps_it() -> None:
    world = World()
    world.fill([1, 2, 5], dirty=True)
    world.fill([3])
    run = sync(world)
    world.finish_everything()
    assert run.result is None
    assert world.mapping.dirty == 0
    assert len(world.mapping.working_set) == 4
    assert world.machine.store == {(world.mapping, index): 1 for index in (1, 2, 5)}
    assert not any(world.machine.tables.values())
    world.check_quiet()


def test_sync_of_a_part() -> None:
    world = World()
    world.fill(range(8), dirty=True)
    sync(world, 2, 4)
    world.finish_everything()
    assert set(world.machine.store) == {(world.mapping, 2), (world.mapping, 3)}
    assert world.mapping.dirty == 6


def test_sync_waits_for_writes_that_others_began() -> None:
    world = World()
    world.fill([1], dirty=True)
    first, second = sync(world), sync(world)
    assert world.machine.count("submit_write") == 1
    assert second.waits_for is WaitReason.WRITEBACK
    world.finish_everything()
    assert first.finished
    assert second.finished
    assert world.machine.count("submit_write") == 1
    world.check_quiet()


def test_sync_waits_for_an_eviction() -> None:
    world = World()
    world.fill([1, 2], dirty=True)
    evict(world, [1])
    run = sync(world)
    world.finish_everything()
    assert run.result is None
    assert len(world.machine.store) == 2
    world.check_quiet()


def test_sync_says_what_failed() -> None:
    world = World()
    world.fill([1, 5], dirty=True)
    failure = StoreFailed()
    run = sync(world)
    world.machine.end_write(0, failure)
    world.finish_everything()
    assert run.result is failure
    assert world.mapping.dirty == 1
    world.check_quiet()


def test_failed_write_of_somebody_else_is_tried_again_by_a_sync() -> None:
    world = World()
    world.fill([1], dirty=True)
    evicted = evict(world, [1])
    run = sync(world)
    world.machine.end_write(0, StoreFailed())
    world.finish_everything()
    assert isinstance(evicted.result, StoreFailed)
    assert run.result is None
    assert world.machine.store[world.mapping, 1] == 1
    world.check_quiet()


def test_each_sync_gets_its_own_error() -> None:
    """Another one that begins before the first is told must not make it a success."""
    world = World()
    world.fill([0, 4], dirty=True)
    first = sync(world, 0, 1)
    world.machine.end_write(0, StoreFailed())
    second = sync(world, 4, 5)
    world.finish_everything()
    assert isinstance(first.result, StoreFailed)
    assert second.result is None
    world.check_quiet()


def test_two_syncs_never_write_one_unit_at_once() -> None:
    """The older write could end last: the store would keep the old content, and nobody know."""
    world = World()
    world.fill([0, 2], dirty=True)
    sync(world)
    second = sync(world)
    world.machine.end_write(0)
    world.settle()
    assert second.waits_for is WaitReason.WRITEBACK
    world.fault(0, write=True, protected=True)
    world.store(0, 7)
    third = sync(world, 0, 1)
    world.fault(0, write=True, protected=True)
    world.store(0, 9)
    world.machine.end_write(0)
    world.settle()
    assert not second.finished
    world.finish_everything()
    assert second.result is None
    assert third.result is None
    assert world.machine.store[world.mapping, 0] == 7
    assert world.mapping.flags[0] & PG_DIRTY
    sync(world)
    world.finish_everything()
    assert world.machine.store[world.mapping, 0] == 9
    world.check_quiet()


@pytest.mark.parametrize("signal", [None, Signal.KILL])
def test_sync_waits_for_a_failed_eviction_whatever_signal_is_pending(
    signal: Signal | None,
) -> None:
    """Its caller calls it again while something is dirty: it must not come back at once."""
    world = World()
    world.fill([1, 3], dirty=True)
    evict(world, [1, 3])
    world.machine.end_write(0, StoreFailed())
    # The eviction goes on to wait for the other unit, and holds the lock of this one.
    world.settle()
    assert world.mapping.flags[1] == PG_UPTODATE | PG_LOCKED | PG_DIRTY

    def make(task):
        task.signal = signal
        return sync_units(world.machine, world.mapping, 0, 3, task)

    run = world.run(make)
    assert not run.finished
    world.finish_everything()
    assert run.result is None
    assert world.machine.store[world.mapping, 1] == 1
    world.check_quiet()


def test_error_of_a_write_that_began_meanwhile_counts() -> None:
    world = World()
    world.fill([0, 2], dirty=True)
    sync(world)
    second = sync(world)
    world.machine.end_write(0)
    world.settle()
    world.fault(0, write=True, protected=True)
    sync(world, 0, 1)
    world.machine.end_write(0)
    world.settle()
    world.machine.end_write(0, StoreFailed())
    world.settle()
    assert isinstance(second.result, StoreFailed)
    world.finish_everything()
    world.check_quiet()


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 11)),
            st.tuples(
                st.sampled_from(["end read", "fail read", "end write", "fail write", "cool"]),
                st.integers(0, 5),
            ),
            st.tuples(st.sampled_from(["sync", "evict", "turn", "interrupt"]), st.integers(0, 11)),
            st.tuples(st.sampled_from(["pin", "unpin", "answer"]), st.integers(0, 11)),
        ),
        max_size=80,
    ),
)
def test_no_change_is_ever_lost(private: bool, steps: list[tuple[str, int]]) -> None:
    """Anything in any order, with a budget of five units: each unit keeps its last value."""
    world = World(12, resident=5, private=private)
    expected = dict.fromkeys(range(12), 0)
    pins: list[int] = []
    writers: list[tuple[Run, int]] = []

    def stores() -> None:
        """Threads whose write fault has ended do their store; others stay where they are."""
        for run, index in list(writers):
            if run.finished:
                writers.remove((run, index))
                if run.result.interrupted or run.result.result & 0x2:
                    continue
                if world.machine.tables.get((world.vma, index)):
                    expected[index] += 1
                    world.store(index, expected[index])

    for what, number in steps:
        machine = world.machine
        if what in ("read", "write"):
            present = machine.tables.get((world.vma, number))
            if what == "write" and present:
                expected[number] += 1
                world.store(number, expected[number])
            elif present is None or what == "write":
                run = world.fault(
                    number, write=what == "write", protected=present is False and what == "write"
                )
                if what == "write":
                    writers.append((run, number))
        elif what == "turn":
            world.scheduler.run_ready(number)
        elif what == "interrupt":
            waiting = [run for run in world.runs if not run.finished and run.task.name == "thread"]
            if waiting:
                waiting[number % len(waiting)].task.send_signal(Signal.INTERRUPT)
        elif what == "sync":
            sync(world, number % 4, number)
        elif what == "evict":
            evict(world, range(number % 4, number))
        elif what in ("end read", "fail read") and machine.reads:
            mapping, index = machine.reads[number % len(machine.reads)]
            machine.end_read(mapping, index, StoreFailed() if what == "fail read" else None)
        elif what in ("end write", "fail write") and machine.writes:
            machine.end_write(
                number % len(machine.writes), StoreFailed() if what == "fail write" else None
            )
        elif what == "cool":
            for error in [*world.mapping.errors.values(), *machine.pauses]:
                error.cooled()
        elif what == "pin" and len(pins) < 3 and world.mapping.flags[number] & PG_UPTODATE:
            if not world.mapping.flags[number] & PG_LOCKED:
                world.mapping.pin(number)
                pins.append(number)
        elif what == "unpin" and pins:
            world.mapping.unpin(pins.pop(number % len(pins)))
        elif what == "answer":
            machine.answers[number] = not machine.answers.get(number, False)
        stores()
        world.check()
    for index in pins:
        world.mapping.unpin(index)
    world.finish_everything()
    stores()
    # Nobody waits for ever.
    assert all(run.finished for run in world.runs)
    world.check_quiet()
    evict(world, range(12))
    world.finish_everything()
    kept = {**world.machine.store, **world.machine.swap}
    for index, value in expected.items():
        assert kept.get((world.mapping, index), 0) == value

"""One attempt to handle a fault: every situation, every kind of flags."""

from __future__ import annotations

import pytest

from helpers.fake_machine import PAGE, FakeMachine, Run, StoreFailed, World
from refault.fault.flags import FaultFlag
from refault.fault.handlers import FAULT_AROUND, sanitize_fault
from refault.fault.reclaim import evict_units
from refault.fault.results import VmFault
from refault.fault.vmf import Fault
from refault.memory.page import (
    PG_AHEAD,
    PG_DIRTY,
    PG_LOCKED,
    PG_READAHEAD,
    PG_READING,
    PG_SWAPPED,
    PG_UPTODATE,
)
from refault.memory.protection import Image
from refault.memory.wait import Signal, TaskState, WaitReason

FIRST = FaultFlag.DEFAULT
LATER = FaultFlag.DEFAULT | FaultFlag.TRIED
NOWAIT = FaultFlag.ALLOW_RETRY | FaultFlag.RETRY_NOWAIT
NO_RETRY = FaultFlag.KILLABLE | FaultFlag.INTERRUPTIBLE
WRITE = FaultFlag.WRITE
RETRY, MAJOR, SIGBUS, SIGSEGV = VmFault.RETRY, VmFault.MAJOR, VmFault.SIGBUS, VmFault.SIGSEGV


def give_back(world: World, vmf: Fault) -> None:
    """What a caller does with the lock it still has."""
    if vmf.locked:
        vmf.vma.lock.up_read()
        vmf.locked = False


def over(world: World, vmf: Fault) -> None:
    """The test is over: everything that is under way ends, and nothing is left."""
    world.finish_everything()
    give_back(world, vmf)
    world.check_quiet()


# -- the unit is there ---------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FIRST, LATER, NOWAIT, NO_RETRY])
def test_present_page_is_mapped_at_once(flags: int) -> None:
    world = World()
    world.fill([3])
    world.machine.tables.clear()
    run, vmf = world.attempt(3, flags)
    assert run.result == 0
    assert vmf.locked
    assert world.machine.calls == [("map_units", 3, 4, False)]
    over(world, vmf)


def test_write_to_a_clean_page() -> None:
    world = World()
    world.fill([3])
    run, vmf = world.attempt(3, FIRST | WRITE, protected=True)
    assert run.result == 0
    assert world.mapping.flags[3] & PG_DIRTY
    assert world.mapping.dirty == 1
    assert world.machine.calls == [("map_units", 3, 4, True)]
    assert world.machine.tables[world.vma, 3]
    over(world, vmf)


def test_read_of_a_dirty_page_maps_it_writable() -> None:
    """It is dirty anyway: so the next write needs no fault."""
    world = World()
    world.fill([3], dirty=True)
    world.machine.tables.clear()
    run, vmf = world.attempt(3, FIRST)
    assert run.result == 0
    assert world.machine.calls == [("map_units", 3, 4, True)]
    over(world, vmf)


def test_read_of_a_dirty_page_that_this_vma_may_not_write() -> None:
    world = World()
    world.fill([3], dirty=True)
    other = world.add_vma(world.mapping, 0x900_0000, writable=False)
    run, vmf = world.attempt(3, FIRST, vma=other)
    assert run.result == 0
    assert world.machine.calls == [("map_units", 3, 4, False)]
    over(world, vmf)


# -- fault-around --------------------------------------------------------------------------


def mapped_by(world: World, index: int, flags: int = FIRST, **how) -> tuple[int, int]:
    world.machine.calls.clear()
    run, vmf = world.attempt(index, flags, **how)
    assert run.result == 0
    give_back(world, vmf)
    ((_, first, last, _),) = world.machine.calls
    return first, last


def read_ahead(world: World, indexes) -> None:
    for index in indexes:
        world.mapping.flags[index] |= PG_AHEAD


def test_neighbours_are_mapped_as_well() -> None:
    world = World(64)
    world.fill(range(40))
    read_ahead(world, range(6, 40))
    assert mapped_by(world, 5) == (5, 5 + FAULT_AROUND)
    assert mapped_by(world, 38) == (24, 40), "on either side, no more of them"


def test_only_what_was_read_ahead_and_never_mapped() -> None:
    world = World(64)
    world.fill(range(40))
    assert mapped_by(world, 5) == (5, 6)
    read_ahead(world, range(6, 9))
    assert mapped_by(world, 5) == (5, 9)
    assert mapped_by(world, 5) == (5, 6), "mapped once, it is not mapped again"
    assert not any(state & PG_AHEAD for state in world.mapping.flags)


def test_not_for_writes_nor_for_protected_pages() -> None:
    world = World()
    world.fill(range(10))
    assert mapped_by(world, 5, FIRST | WRITE) == (5, 6)
    world.fill(range(10))
    assert mapped_by(world, 7, FIRST, protected=True) == (7, 8)


def test_not_beyond_the_vma() -> None:
    world = World()
    world.fill(range(10))
    read_ahead(world, range(10))
    part = world.add_vma(world.mapping, 0x900_0000, offset=4 * PAGE, length=3 * PAGE)
    assert mapped_by(world, 5, vma=part) == (4, 7)


def test_not_beyond_the_object() -> None:
    world = World(6)
    world.fill(range(6))
    read_ahead(world, range(6))
    assert mapped_by(world, 4) == (0, 6)


@pytest.mark.parametrize("state", [PG_LOCKED, PG_DIRTY, PG_READAHEAD])
def test_not_over_pages_that_differ(state: int) -> None:
    world = World()
    world.fill(range(10))
    world.mapping.flags[8] |= state
    world.mapping.flags[3] |= state
    read_ahead(world, range(10))
    assert mapped_by(world, 5) == (4, 8)


def test_dirty_pages_go_with_dirty_ones() -> None:
    world = World()
    world.fill(range(4), dirty=True)
    world.fill(range(4, 8))
    world.machine.tables.clear()
    read_ahead(world, range(8))
    assert mapped_by(world, 2) == (0, 4)
    world.check()


def test_marker_is_taken_off_the_page_that_is_touched() -> None:
    world = World()
    world.fill([3, 4])
    world.mapping.flags[3] |= PG_READAHEAD
    world.mapping.flags[4] |= PG_READAHEAD
    read_ahead(world, [3, 4])
    assert mapped_by(world, 3) == (3, 4)
    assert not world.mapping.flags[3] & PG_READAHEAD
    assert world.mapping.flags[4] & PG_READAHEAD


# -- the unit is missing -------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FIRST, LATER, NO_RETRY])
def test_missing_page_that_needs_no_waiting(flags: int) -> None:
    world = World()
    world.machine.answers[3] = True
    run, vmf = world.attempt(3, flags)
    assert run.result == MAJOR
    assert vmf.locked
    assert not run.waits
    assert world.machine.calls == [("read_now", 3), ("map_units", 3, 4, False)]
    assert world.mapping.flags[3] == PG_UPTODATE
    over(world, vmf)


def test_write_to_a_missing_page_is_one_fault() -> None:
    world = World()
    world.machine.answers[3] = True
    run, vmf = world.attempt(3, FIRST | WRITE, protected=False)
    assert run.result == MAJOR
    assert world.machine.calls[-1] == ("map_units", 3, 4, True)
    assert world.machine.tables[world.vma, 3]
    assert world.mapping.flags[3] == PG_UPTODATE | PG_DIRTY
    over(world, vmf)


def test_first_try_gives_the_lock_up_before_it_waits_for_a_slow_store() -> None:
    world = World()
    run, vmf = world.attempt(3, FIRST)
    assert run.waits_for is WaitReason.READ
    assert run.wait.state is TaskState.INTERRUPTIBLE
    assert not vmf.locked
    assert world.lock.readers == 0
    assert world.machine.calls == [("read_now", 3), ("submit_read", 3)]
    assert world.mapping.flags[3] == PG_LOCKED | PG_READING
    assert world.budget.usage == PAGE
    world.end_read(3)
    world.settle()
    assert run.result == RETRY | MAJOR
    assert world.machine.count("map_units") == 0
    over(world, vmf)


@pytest.mark.parametrize("flags", [LATER, NO_RETRY])
def test_later_try_waits_with_the_lock_and_goes_on(flags: int) -> None:
    world = World()
    run, vmf = world.attempt(3, flags)
    assert run.waits_for is WaitReason.READ
    assert vmf.locked
    assert world.lock.readers == 1
    world.end_read(3)
    world.settle()
    assert run.result == MAJOR
    assert world.machine.calls[-1] == ("map_units", 3, 4, False)
    over(world, vmf)


def test_unit_that_is_only_to_be_there_is_not_mapped() -> None:
    world = World()
    world.machine.answers[3] = True
    run, vmf = world.attempt(3, LATER, populate=False)
    assert run.result == MAJOR
    assert world.machine.calls == [("read_now", 3)]
    over(world, vmf)


@pytest.mark.parametrize("flags", [FIRST, LATER])
@pytest.mark.parametrize("signal", [Signal.INTERRUPT, Signal.CANCEL, Signal.DEADLINE, Signal.KILL])
def test_any_signal_ends_the_wait_for_a_store(flags: int, signal: Signal) -> None:
    world = World()
    run, vmf = world.attempt(3, flags)
    run.task.send_signal(signal)
    world.settle()
    assert run.result == RETRY | MAJOR
    assert not vmf.locked
    # The read goes on by itself.
    assert world.mapping.flags[3] & PG_READING
    over(world, vmf)


@pytest.mark.parametrize("tried", [FaultFlag(0), FaultFlag.TRIED])
def test_only_fatal_ones_if_not_interruptible(tried: FaultFlag) -> None:
    world = World()
    run, vmf = world.attempt(3, FaultFlag.ALLOW_RETRY | FaultFlag.KILLABLE | tried)
    assert run.wait.state is TaskState.KILLABLE
    run.task.send_signal(Signal.DEADLINE)
    world.settle()
    assert not run.finished
    run.task.send_signal(Signal.KILL)
    world.settle()
    assert run.result == RETRY | MAJOR
    over(world, vmf)


@pytest.mark.parametrize("tried", [FaultFlag(0), FaultFlag.TRIED])
def test_none_if_not_killable(tried: FaultFlag) -> None:
    world = World()
    run, vmf = world.attempt(3, FaultFlag.ALLOW_RETRY | tried)
    assert run.wait.state is TaskState.UNINTERRUPTIBLE
    run.task.send_signal(Signal.KILL)
    world.settle()
    assert not run.finished
    over(world, vmf)
    assert run.finished


@pytest.mark.parametrize("flags", [FIRST, LATER])
def test_page_that_somebody_else_reads(flags: int) -> None:
    """Waits for the read, interruptibly; does not begin another one."""
    world = World()
    reader = world.fault(3)
    run, vmf = world.attempt(3, flags)
    assert run.waits_for is WaitReason.READ
    assert run.wait.state is TaskState.INTERRUPTIBLE
    assert vmf.locked == (flags == LATER)
    assert world.machine.count("submit_read") == 1
    world.end_read(3)
    world.settle()
    assert run.result == (MAJOR if flags == LATER else RETRY | MAJOR)
    assert reader.result.attempts == 2
    over(world, vmf)


def test_later_try_stays_interruptible_when_an_evicted_page_is_read_again() -> None:
    """It waits for the page lock; another thread is faster, and asks a slow store."""
    world = World()
    world.fill([3], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [3], task, ghost=True))
    first, (second, vmf) = world.fault(3), world.attempt(3, LATER)
    assert second.waits_for is WaitReason.PAGE_LOCK
    world.mapping.wake_page(3)
    world.settle()
    world.machine.end_write()
    world.settle()
    assert world.machine.reads
    assert first.waits_for is second.waits_for is WaitReason.READ
    second.task.send_signal(Signal.INTERRUPT)
    world.settle()
    assert second.result == RETRY | MAJOR
    over(world, vmf)


def test_swapped_page_comes_from_swap() -> None:
    world = World(private=True)
    world.fill([3], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [3], task, ghost=True))
    world.finish_everything()
    assert world.mapping.flags[3] == PG_SWAPPED
    world.machine.answers[3] = True
    run, vmf = world.attempt(3, FIRST)
    assert run.result == MAJOR
    assert world.machine.memory[world.mapping, 3] == 1
    assert world.mapping.flags[3] & (PG_SWAPPED | PG_UPTODATE) == PG_SWAPPED | PG_UPTODATE
    over(world, vmf)


# -- RETRY_NOWAIT --------------------------------------------------------------------------


def pinned_world() -> World:
    world = World(resident=2)
    world.fill([0, 1])
    world.mapping.pin(0)
    world.mapping.pin(1)
    return world


def cooling_world() -> World:
    world = World()
    world.fault(3)
    world.end_read(3, StoreFailed())
    world.settle()
    assert world.mapping.errors[3].cooling
    world.runs[0].task.send_signal(Signal.KILL)
    world.settle()
    world.machine.calls.clear()
    return world


def read_by_another() -> World:
    world = World()
    world.fault(3)
    return world


def locked_by_eviction() -> World:
    world = World()
    world.fill([3], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [3], task, ghost=True))
    return world


@pytest.mark.parametrize(
    ("make", "result"),
    [
        (World, RETRY | MAJOR),
        (read_by_another, RETRY | MAJOR),
        (locked_by_eviction, RETRY),
        (cooling_world, RETRY),
        (pinned_world, RETRY),
    ],
)
def test_nowait_waits_for_nothing(make, result: int) -> None:
    """V8: RETRY with the lock held."""
    world = make()
    for run in world.runs:
        if not run.finished:
            break
    run, vmf = world.attempt(3, NOWAIT)
    assert run.result == result
    assert not run.waits
    assert vmf.locked
    over(world, vmf)


def test_nowait_begins_the_read() -> None:
    world = World()
    _, vmf = world.attempt(3, NOWAIT)
    assert world.machine.reads == [(world.mapping, 3)]
    world.end_read(3)
    assert world.mapping.flags[3] == PG_UPTODATE
    over(world, vmf)


# -- the store fails -----------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FIRST, LATER])
def test_store_that_failed_a_moment_ago_holds_nobody_up(flags: int) -> None:
    """The lock is given up at any try, and the wait is for the end of the pause."""
    world = cooling_world()
    run, vmf = world.attempt(3, flags)
    assert run.waits_for is WaitReason.STORE_ERROR
    assert run.wait.state is TaskState.INTERRUPTIBLE
    assert not vmf.locked
    assert not world.mapping.flags[3] & PG_LOCKED
    assert world.budget.usage == 0
    assert world.machine.calls == []
    world.cooled(3)
    world.settle()
    assert run.result == RETRY
    over(world, vmf)


def test_store_that_failed_is_final_for_a_fault_that_may_not_be_retried() -> None:
    world = cooling_world()
    run, vmf = world.attempt(3, NO_RETRY)
    assert run.result == SIGBUS
    assert vmf.locked
    assert not run.waits
    over(world, vmf)


@pytest.mark.parametrize("flags", [FIRST, LATER])
def test_failure_at_once_is_waited_for_like_any(flags: int) -> None:
    world = World()
    world.machine.answers[3] = StoreFailed()
    run, vmf = world.attempt(3, flags)
    assert world.machine.calls == [("read_now", 3), ("read_failed", 3)]
    assert run.waits_for is WaitReason.STORE_ERROR
    assert not vmf.locked
    assert world.budget.usage == 0
    assert world.mapping.errors[3].tries == 1
    world.machine.answers[3] = True
    world.cooled(3)
    world.settle()
    assert run.result == RETRY
    over(world, vmf)


def test_failure_while_a_later_try_waits_in_place() -> None:
    world = World()
    run, vmf = world.attempt(3, LATER)
    assert vmf.locked
    world.end_read(3, StoreFailed())
    world.settle()
    assert run.waits_for is WaitReason.STORE_ERROR
    assert not vmf.locked
    world.cooled(3)
    world.settle()
    assert run.result & RETRY
    over(world, vmf)


@pytest.mark.parametrize("flags", [FIRST, LATER, NOWAIT & ~FaultFlag.RETRY_NOWAIT, NO_RETRY])
def test_permanent_failure_is_sigbus(flags: int) -> None:
    world = World()
    world.machine.answers[3] = StoreFailed(permanent=True)
    run, vmf = world.attempt(3, flags)
    assert run.result == SIGBUS
    assert vmf.locked
    assert world.mapping.flags[3] == 0
    assert world.budget.usage == 0
    again, vmf2 = world.attempt(3, flags)
    assert again.result == SIGBUS
    assert world.machine.count("read_now") == 1
    give_back(world, vmf2)
    over(world, vmf)


def test_pause_over_asks_again() -> None:
    world = cooling_world()
    world.cooled(3)
    world.machine.answers[3] = True
    run, vmf = world.attempt(3, FIRST)
    assert run.result == MAJOR
    assert not world.mapping.errors
    over(world, vmf)


# -- the budget is full --------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FIRST, LATER, NO_RETRY])
def test_clean_units_give_way_at_once(flags: int) -> None:
    world = World(resident=4)
    world.fill(range(4))
    world.machine.answers[9] = True
    run, vmf = world.attempt(9, flags)
    assert run.result == MAJOR
    assert ("punch", 0, 1) in world.machine.calls
    assert world.mapping.flags[0] == 0
    assert world.budget.usage == 4 * PAGE
    assert world.mapping.counters.evictions == 1
    over(world, vmf)


@pytest.mark.parametrize("flags", [FIRST, LATER])
def test_dirty_units_are_waited_for(flags: int) -> None:
    world = World(resident=4)
    world.fill(range(4), dirty=True)
    world.machine.answers[9] = True
    run, vmf = world.attempt(9, flags)
    assert world.machine.calls == [("wake_reclaim",)]
    assert run.waits_for is WaitReason.MEMORY
    assert run.wait.state is TaskState.INTERRUPTIBLE
    assert run.wait.queue is world.budget.freed
    assert vmf.locked == (flags == LATER)
    assert world.budget.reclaiming
    assert world.budget.usage == 4 * PAGE
    # Nobody sleeps for memory with a page lock.
    assert not world.mapping.flags[9] & PG_LOCKED
    world.settle()
    assert world.machine.writes
    world.machine.end_write()
    world.settle()
    assert run.result == (MAJOR if flags == LATER else RETRY)
    over(world, vmf)


@pytest.mark.parametrize("signal", [Signal.INTERRUPT, Signal.KILL])
@pytest.mark.parametrize("flags", [FIRST, LATER])
def test_pinned_units_are_waited_for_until_a_signal(flags: int, signal: Signal) -> None:
    world = pinned_world()
    run, vmf = world.attempt(9, flags)
    world.settle()
    assert run.waits_for is WaitReason.MEMORY
    run.task.send_signal(signal)
    world.settle()
    assert run.result == RETRY
    assert not vmf.locked
    assert world.mapping.flags[9] == 0
    over(world, vmf)


def test_unpinned_unit_lets_the_fault_go_on() -> None:
    world = pinned_world()
    world.machine.answers[9] = True
    run, vmf = world.attempt(9, LATER)
    world.settle()
    world.mapping.unpin(1)
    world.settle()
    assert run.result == MAJOR
    over(world, vmf)


def test_each_of_those_who_need_one_page_and_no_room_can_be_interrupted() -> None:
    """Not only the one that came first: the others must not wait for its page lock."""
    world = pinned_world()
    runs = [world.fault(9), world.fault(9), world.fault(9)]
    world.settle()
    runs[2].task.send_signal(Signal.INTERRUPT)
    world.settle()
    assert runs[2].result.interrupted
    assert not runs[0].finished
    for run in runs[:2]:
        run.task.send_signal(Signal.KILL)
    world.settle()
    world.check_quiet()


def test_those_who_wait_for_room_do_not_wake_one_another_for_ever() -> None:
    world = pinned_world()
    runs = [world.attempt(index, LATER) for index in (9, 10, 9, 11)]
    world.settle(turns=200)
    probe, probe_vmf = world.attempt(12, NOWAIT)
    assert probe.result == RETRY
    world.settle(turns=200)
    give_back(world, probe_vmf)
    for run, _ in runs:
        assert run.waits_for is WaitReason.MEMORY
        run.task.send_signal(Signal.KILL)
    world.settle()
    world.check_quiet()


def test_nowait_and_no_room_evicts_what_is_clean() -> None:
    world = World(resident=2)
    world.fill([0, 1])
    run, vmf = world.attempt(9, NOWAIT)
    assert run.result == RETRY | MAJOR
    assert ("punch", 0, 1) in world.machine.calls
    over(world, vmf)


def test_reclaim_begins_before_the_budget_is_full() -> None:
    world = World(256, resident=128)
    world.machine.auto_reclaim = False
    world.fill(range(126))
    world.machine.answers[200] = True
    run, vmf = world.attempt(200, FIRST)
    assert run.result == MAJOR
    assert world.machine.count("wake_reclaim") == 1
    over(world, vmf)


def test_access_that_needs_two_units_of_two_gets_both() -> None:
    """A budget of two units really holds two: reclaim does not take the older one at once."""
    world = World(resident=2)
    world.fill([0, 1], dirty=True)
    world.settle()
    for index in (4, 5):
        world.fault(index, write=True)
        world.finish_everything()
    assert set(world.machine.tables) == {(world.vma, 4), (world.vma, 5)}
    world.check_quiet()


def test_total_that_is_full_takes_from_the_largest_mapping() -> None:
    world = World(64, resident=None)
    other = world.add_mapping(8, None)
    vma = world.add_vma(other, 0x900_0000)
    world.fill(range(8))
    world.total.set_limit(8 * PAGE)
    world.machine.answers[2] = True
    run, vmf = world.attempt(2, FIRST, vma=vma)
    assert run.result == MAJOR
    assert ("punch", 0, 1) in world.machine.calls
    assert world.total.usage == 8 * PAGE
    over(world, vmf)


# -- I1..I6 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (FaultFlag.TRIED, "I1"),
        (FIRST | 0x400, "I2"),
        (FIRST | 0x1000, "I3"),
        (FaultFlag.RETRY_NOWAIT, "I4"),
        (NOWAIT | FaultFlag.USER, "I6"),
    ],
)
@pytest.mark.parametrize("present", [False, True])
def test_illegal_faults_are_refused(flags: int, rule: str, present: bool) -> None:
    world = World()
    if present:
        world.fill([3])
    run, vmf = world.attempt(3, flags)
    assert run.result == SIGSEGV
    assert (sanitize_fault(vmf) or "").startswith(rule)
    assert vmf.locked
    assert world.machine.calls == []
    over(world, vmf)


@pytest.mark.parametrize("present", [False, True])
def test_write_where_none_is_allowed(present: bool) -> None:
    world = World(writable=False)
    if present:
        world.fill([3])
    run, vmf = world.attempt(3, FIRST | WRITE)
    assert run.result == SIGSEGV
    assert (sanitize_fault(vmf) or "").startswith("I5")
    assert world.mapping.dirty == 0
    assert world.machine.calls == []
    over(world, vmf)


# -- what the message said of the page table is not believed for ever ----------------------


def test_page_that_was_evicted_under_a_protected_fault_is_mapped() -> None:
    """Else the thread would have to fault again: the mail's third retry, without a new fault."""
    world = World(private=True)
    world.fill([3], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [3], task, ghost=True))
    run = world.fault(3, write=True, protected=True)
    assert run.waits_for is WaitReason.PAGE_LOCK
    world.machine.end_write()
    world.settle()
    assert run.waits_for is WaitReason.READ
    world.end_read(3)
    world.settle()
    assert run.result.result == MAJOR
    assert world.machine.tables[world.vma, 3]
    world.check_quiet()


def test_page_that_was_mapped_protected_under_a_missing_write_fault_is_unprotected() -> None:
    world = World()
    write, read = world.fault(3, write=True), world.fault(3)
    world.end_read(3)
    read.step()
    assert world.machine.tables[world.vma, 3] is False
    write.step()
    assert write.finished
    assert world.machine.tables[world.vma, 3] is True
    world.check_quiet()


def test_page_that_stayed_protected_while_a_later_try_waited_for_its_lock() -> None:
    world = World()
    world.fill([3], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [3], task, ghost=True))
    run, vmf = world.attempt(3, LATER | WRITE, protected=False)
    assert run.waits_for is WaitReason.PAGE_LOCK
    world.machine.end_write(0, StoreFailed())
    world.settle()
    assert run.result == 0
    assert world.machine.tables[world.vma, 3] is True
    over(world, vmf)


# -- a monitor wants to copy the page first --------------------------------------------------


def protected_world() -> World:
    world = World()
    world.fill([3, 4])
    world.protect()
    return world


@pytest.mark.parametrize("flags", [FIRST, LATER, FaultFlag.ALLOW_RETRY])
def test_writer_asks_the_monitor(flags: int) -> None:
    """At any try without the lock: a monitor may take any time."""
    world = protected_world()
    protection = world.mapping.protection
    assert protection is not None
    run, vmf = world.attempt(3, flags | WRITE, protected=True)
    assert run.waits_for is WaitReason.WRITE_PROTECT
    assert run.wait.state is vmf.wait_state()
    assert not vmf.locked
    assert protection.asked == {3}
    assert world.mapping.dirty == 0
    assert world.machine.calls == []
    protection.save(3, Image(None))
    world.settle()
    assert run.result == RETRY
    assert not protection.asked
    again, vmf = world.attempt(3, flags | WRITE, protected=True)
    assert again.result == 0
    assert world.mapping.dirty == 1
    over(world, vmf)


def test_monitor_and_a_fault_that_may_not_be_retried() -> None:
    """The kernel before the mail: SIGBUS."""
    world = protected_world()
    run, vmf = world.attempt(3, NO_RETRY | WRITE)
    assert run.result == SIGBUS
    assert vmf.locked
    over(world, vmf)


def test_monitor_and_a_fault_that_may_not_wait() -> None:
    world = protected_world()
    run, vmf = world.attempt(3, NOWAIT | WRITE)
    assert run.result == RETRY
    assert vmf.locked
    assert not run.waits
    over(world, vmf)


@pytest.mark.parametrize("signal", [Signal.INTERRUPT, Signal.KILL])
def test_signal_ends_the_wait_for_a_monitor(signal: Signal) -> None:
    world = protected_world()
    run, vmf = world.attempt(3, FIRST | WRITE)
    run.task.send_signal(signal)
    world.settle()
    assert run.result == RETRY
    over(world, vmf)


def test_reader_and_others_do_not_ask() -> None:
    world = protected_world()
    read_ahead(world, [4])
    run, vmf = world.attempt(3, FIRST)
    assert run.result == 0
    # Neighbours come with it, but nothing becomes writable that must be copied first.
    assert world.machine.calls == [("map_units", 3, 5, False)]
    over(world, vmf)
    assert world.mapping.protection is not None
    world.mapping.protection.save(4, Image(None))
    run, vmf = world.attempt(4, FIRST | WRITE)
    assert run.result == 0
    over(world, vmf)


def test_dirty_page_is_not_mapped_writable_while_somebody_copies() -> None:
    world = World()
    world.fill([3], dirty=True)
    world.machine.tables.clear()
    protection = world.protect()
    run, vmf = world.attempt(3, FIRST)
    assert run.result == 0
    assert world.machine.tables == {(world.vma, 3): False}
    over(world, vmf)
    # Once it is copied and written to, readers find it writable, too.
    protection.save(3, Image(None))
    run, vmf = world.attempt(3, FIRST | WRITE)
    over(world, vmf)
    world.machine.tables.clear()
    run, vmf = world.attempt(3, FIRST)
    assert world.machine.tables == {(world.vma, 3): True}
    over(world, vmf)


def test_who_reads_a_page_that_may_be_written_maps_no_neighbours() -> None:
    """They are dirty, too, but nobody has noted that they are written."""
    world = World()
    world.fill([3, 4], dirty=True)
    world.protect()
    world.mapping.wrote(3)
    read_ahead(world, [4])
    run, vmf = world.attempt(3, FIRST)
    assert run.result == 0
    assert world.machine.calls == [("map_units", 3, 4, True)]
    over(world, vmf)


def test_swapped_and_protected_page_is_read_and_then_asked_for() -> None:
    """The page lock is given up before the monitor is asked: it must be able to copy."""
    world = World()
    protection = world.protect()
    world.machine.answers[3] = True
    run, vmf = world.attempt(3, FIRST | WRITE)
    assert run.waits_for is WaitReason.WRITE_PROTECT
    assert world.mapping.flags[3] == PG_UPTODATE
    assert protection.end(protection.snapshots[0]) == []
    world.settle()
    assert run.result == RETRY | MAJOR
    assert not protection.holds(3)
    over(world, vmf)


# -- all of it together --------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FIRST, LATER, NOWAIT, NO_RETRY, FaultFlag.ALLOW_RETRY])
@pytest.mark.parametrize("write", [FaultFlag(0), WRITE])
@pytest.mark.parametrize(
    "make",
    [World, read_by_another, locked_by_eviction, cooling_world, pinned_world, lambda: World(8, 8)],
)
@pytest.mark.parametrize("signal", [None, Signal.INTERRUPT, Signal.KILL])
@pytest.mark.parametrize("error", [None, StoreFailed(), StoreFailed(permanent=True)])
def test_every_path_keeps_the_balance(
    make, flags: int, write: int, signal: Signal | None, error: StoreFailed | None
) -> None:
    """V1, V3: the lock is given up once; page locks and charges come out even."""
    world: World = make()
    run, vmf = world.attempt(3, flags | write)
    if signal is not None:
        run.task.send_signal(signal)
    world.settle()
    if (world.mapping, 3) in world.machine.reads and error is not None:
        world.end_read(3, error)
    world.check()
    end_it(world, run)
    result = run.result
    if result & RETRY:
        assert vmf.locked == bool(flags & FaultFlag.RETRY_NOWAIT)
    else:
        assert vmf.locked
        assert bool(result & VmFault.ERROR) or world.machine.tables[world.vma, 3] >= bool(write)
    give_back(world, vmf)
    for other in world.runs:
        if not other.finished:
            other.task.send_signal(Signal.KILL)
    world.finish_everything()
    world.check_quiet()


def end_it(world: World, run: Run) -> None:
    machine: FakeMachine = world.machine
    for _ in range(100):
        world.finish_everything()
        if run.finished:
            return
        for index in list(world.mapping.pins):
            world.mapping.unpin(index)
    raise AssertionError(f"{run.task} waits for ever, after {machine.calls}")

"""`fault_in`, `pin`, `prefetch`, `readahead`: the fault path for callers beside the thread."""

from __future__ import annotations

import pytest

from helpers.fake_machine import PAGE, Run, StoreFailed, World
from refault.fault import gup
from refault.fault.flags import FaultFlag, illegal_flags
from refault.fault.gup import Foll, GupOutcome, fault_flags, fault_in, pin, prefetch, readahead
from refault.fault.reclaim import evict_units
from refault.fault.results import VmFault
from refault.memory.page import PG_DIRTY, PG_READAHEAD, PG_UPTODATE
from refault.memory.wait import Signal, TaskState, WaitReason

RETRY, MAJOR = VmFault.RETRY, VmFault.MAJOR
NONE = Foll(0)


def bring_in(world: World, first: int, last: int, foll: Foll = NONE, **how) -> Run:
    start, end = world.address(first), world.address(last)
    return world.run(
        lambda task: fault_in(world.machine, world.mm, task, start, end, foll, **how), "gup"
    )


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Unit and flags of every attempt that maps."""
    seen: list[tuple[int, int]] = []
    real = gup.handle_mm_fault

    def watched(vmf):
        if vmf.populate:
            seen.append((vmf.index, vmf.flags))
        return real(vmf)

    monkeypatch.setattr(gup, "handle_mm_fault", watched)
    return seen


@pytest.mark.parametrize("foll", [Foll(bits) for bits in range(16)])
def test_flags(foll: Foll) -> None:
    flags = FaultFlag(fault_flags(foll))
    assert illegal_flags(flags) is None
    assert FaultFlag.ALLOW_RETRY in flags
    assert not flags & (FaultFlag.USER | FaultFlag.TRIED)
    assert bool(flags & FaultFlag.WRITE) == (Foll.WRITE in foll)
    assert bool(flags & FaultFlag.REMOTE) == (Foll.REMOTE in foll)
    assert bool(flags & FaultFlag.RETRY_NOWAIT) == (Foll.NOWAIT in foll)
    assert bool(flags & FaultFlag.KILLABLE) == (Foll.NOWAIT not in foll)
    interruptible = Foll.INTERRUPTIBLE in foll and Foll.NOWAIT not in foll
    assert bool(flags & FaultFlag.INTERRUPTIBLE) == interruptible


def test_all_pages_come_in() -> None:
    world = World()
    run = bring_in(world, 2, 9)
    world.finish_everything()
    assert run.result == GupOutcome(world.address(9), 0, False)
    assert {index for _, index in world.machine.tables} == set(range(2, 9))
    assert world.mapping.counters.faults == 0
    world.check_quiet()


def test_reads_are_begun_side_by_side() -> None:
    world = World()
    bring_in(world, 0, 8)
    assert [index for _, index in world.machine.reads] == list(range(8))


def test_reads_ahead_take_no_more_than_a_quarter_of_the_budget() -> None:
    world = World(resident=16)
    bring_in(world, 0, 12)
    assert [index for _, index in world.machine.reads] == list(range(4))
    world.finish_everything()
    assert len(world.mapping.working_set) == 12
    world.check_quiet()


def test_only_the_page_that_waited_is_tried(attempts: list[tuple[int, int]]) -> None:
    """The pages after it begin without TRIED."""
    world = World()
    world.fill([1])
    run = bring_in(world, 0, 4)
    world.finish_everything()
    assert run.finished
    tried = [(index, bool(flags & FaultFlag.TRIED)) for index, flags in attempts]
    assert tried == [
        (0, False),
        (0, True),
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]
    world.check_quiet()


def test_each_page_as_often_as_it_takes(attempts: list[tuple[int, int]]) -> None:
    world = World()
    run = bring_in(world, 0, 1)
    for _ in range(20):
        world.end_read(0, StoreFailed())
        world.settle()
        world.cooled(0)
        world.settle()
    world.finish_everything()
    assert run.result.done == world.address(1)
    assert len(attempts) == 22
    assert world.mapping.counters.retries_store_error == 20
    assert world.mapping.counters.retries_read == 1
    world.check_quiet()


def test_write_makes_dirty() -> None:
    world = World()
    world.fill([0])
    run = bring_in(world, 0, 3, Foll.WRITE)
    world.finish_everything()
    assert run.result.result == 0
    assert world.mapping.dirty == 3
    assert all(world.machine.tables.values())
    world.check_quiet()


def test_write_where_none_is_allowed() -> None:
    world = World(writable=False)
    run = bring_in(world, 0, 3, Foll.WRITE)
    world.finish_everything()
    assert run.result == GupOutcome(world.address(0), VmFault.SIGSEGV, False)
    assert world.mapping.dirty == 0
    world.check_quiet()


def test_permanent_failure_says_how_far_it_came() -> None:
    world = World()
    run = bring_in(world, 0, 5)
    world.end_read(2, StoreFailed(permanent=True))
    world.finish_everything()
    assert run.result == GupOutcome(world.address(2), VmFault.SIGBUS, False)
    assert {index for _, index in world.machine.tables} >= {0, 1}
    world.check_quiet()


def test_hole_says_how_far_it_came() -> None:
    world = World(4)
    run = world.run(
        lambda t: fault_in(
            world.machine, world.mm, t, world.address(2), world.vma.end + PAGE, Foll(0)
        )
    )
    world.finish_everything()
    assert run.result == GupOutcome(world.vma.end, 0, False)
    world.check_quiet()


def test_unaligned_ends() -> None:
    world = World()
    start, end = world.address(2) + 100, world.address(4) + 1
    run = world.run(lambda t: fault_in(world.machine, world.mm, t, start, end, Foll(0)))
    world.finish_everything()
    assert run.result.done == end
    assert {index for _, index in world.machine.tables} == {2, 3, 4}


def test_over_two_vmas() -> None:
    world = World(4)
    other = world.add_mapping(4, None)
    vma = world.add_vma(other, world.vma.end)
    run = world.run(
        lambda t: fault_in(world.machine, world.mm, t, world.address(2), vma.start + PAGE, Foll(0))
    )
    world.finish_everything()
    assert run.result.done == vma.start + PAGE
    assert (vma, 0) in world.machine.tables
    assert (world.vma, 3) in world.machine.tables
    world.check_quiet()


# -- signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [Signal.CANCEL, Signal.DEADLINE, Signal.CLOSING, Signal.KILL])
@pytest.mark.parametrize("foll", [Foll(0), Foll.INTERRUPTIBLE])
def test_signal_ends_it_where_it_is(foll: Foll, signal: Signal) -> None:
    world = World()
    run = bring_in(world, 0, 4, foll)
    world.end_read(0)
    world.settle()
    run.task.send_signal(signal)
    world.settle()
    if foll or signal >= Signal.CLOSING:
        assert run.result == GupOutcome(world.address(1), 0, True)
    else:
        assert not run.finished
        world.finish_everything()
        assert run.result.done == world.address(4)
    world.finish_everything()
    world.check_quiet()


def test_signal_is_looked_at_before_every_page() -> None:
    world = World()
    world.fill(range(8))
    run = bring_in(world, 0, 8, Foll.INTERRUPTIBLE)
    assert run.ready
    run.step()
    run.task.send_signal(Signal.CANCEL)
    run.step()
    assert run.result == GupOutcome(world.address(2), 0, True)
    world.check_quiet()


def test_signal_while_it_waits_for_the_lock() -> None:
    world = World()
    assert world.run(lambda t: world.lock.down_write(t, TaskState.UNINTERRUPTIBLE)).finished
    run = bring_in(world, 0, 8, Foll.INTERRUPTIBLE)
    assert run.waits_for is WaitReason.ADDRESS_SPACE
    run.task.send_signal(Signal.CANCEL)
    world.settle()
    assert run.result == GupOutcome(world.address(0), 0, True)
    world.lock.up_write()
    world.check_quiet()


# -- others get their turn -----------------------------------------------------------------


@pytest.mark.parametrize("foll", [Foll(0), Foll.NOWAIT])
@pytest.mark.parametrize("present", [False, True])
def test_long_work_lets_others_run(foll: Foll, present: bool) -> None:
    world = World(200)
    if present:
        world.fill(range(200))
    run = bring_in(world, 0, 200, foll)
    for _ in range(50):
        assert not run.finished
        if run.ready:
            run.step()
        elif world.machine.reads:
            world.machine.end_read(*world.machine.reads[0])
    assert world.lock.readers <= 1


# -- pins ----------------------------------------------------------------------------------


def test_pinned_from_the_moment_it_is_there() -> None:
    world = World(resident=4)
    run = world.run(
        lambda t: pin(world.machine, world.mm, t, world.address(0), world.address(2), Foll(0))
    )
    world.finish_everything()
    outcome, pinned = run.result
    assert outcome.done == world.address(2)
    assert pinned == [(world.vma, 0), (world.vma, 1)]
    assert world.mapping.pins == {0: 1, 1: 1}
    # However many others come, these stay.
    for index in range(4, 12):
        world.fault(index)
        world.finish_everything()
    assert world.mapping.flags[0] & world.mapping.flags[1] & PG_UPTODATE
    for vma, index in pinned:
        vma.mapping.unpin(index)
    assert not world.mapping.pins
    world.check_quiet()


def test_what_was_pinned_is_told_also_when_it_failed() -> None:
    world = World()
    run = world.run(
        lambda t: pin(world.machine, world.mm, t, world.address(0), world.address(4), Foll(0))
    )
    world.end_read(2, StoreFailed(permanent=True))
    world.finish_everything()
    outcome, pinned = run.result
    assert outcome == GupOutcome(world.address(2), VmFault.SIGBUS, False)
    assert pinned == [(world.vma, 0), (world.vma, 1)]
    assert world.mapping.pins == {0: 1, 1: 1}


def test_pin_of_a_page_that_is_being_evicted_waits_for_it() -> None:
    world = World()
    world.fill([0], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [0], task, ghost=True))
    run = world.run(
        lambda t: pin(world.machine, world.mm, t, world.address(0), world.address(1), Foll.WRITE)
    )
    assert run.waits_for is WaitReason.PAGE_LOCK
    world.finish_everything()
    assert run.result[0].done == world.address(1)
    assert world.mapping.flags[0] & (PG_UPTODATE | PG_DIRTY) == PG_UPTODATE | PG_DIRTY
    world.check_quiet()


def test_pins_are_counted() -> None:
    mapping = World().mapping
    mapping.pin(1)
    mapping.pin(1)
    mapping.unpin(1)
    assert not mapping.evictable(1)
    assert not mapping.droppable(1)
    mapping.unpin(1)
    assert mapping.evictable(1)
    with pytest.raises(KeyError):
        mapping.unpin(1)


# -- prefetch ------------------------------------------------------------------------------


def test_prefetch_waits_for_nothing(attempts: list[tuple[int, int]]) -> None:
    world = World(resident=8)
    world.fill([1], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [1], task, ghost=True))
    world.fault(2)
    world.end_read(2, StoreFailed())
    world.settle()
    world.fill([4])
    attempts.clear()
    run = world.run(
        lambda t: prefetch(world.machine, world.mm, t, world.address(0), world.address(20))
    )
    world.settle()
    assert not run.waits
    assert run.result == GupOutcome(world.address(20), 0, False)
    # One attempt for each: RETRY goes on with the next page, and nothing is TRIED.
    assert [index for index, _ in attempts] == list(range(20))
    assert {flags for _, flags in attempts} == {fault_flags(Foll.NOWAIT | Foll.REMOTE)}
    assert len(world.machine.reads) == 7
    assert world.budget.usage == 8 * PAGE
    world.runs[-2].task.send_signal(Signal.KILL)
    world.finish_everything()
    world.check_quiet()


def test_a_read_is_demanded_by_who_waits_for_it() -> None:
    world = World()
    world.run(lambda t: prefetch(world.machine, world.mm, t, world.address(0), world.address(8)))
    world.settle()
    assert len(world.machine.reads) == 8
    assert not world.machine.demanded
    world.fault(5)
    world.settle()
    assert world.machine.demanded == [(world.mapping, 5)]
    bring_in(world, 2, 4)
    world.settle()
    assert world.machine.demanded[1:] == [(world.mapping, 2)]
    world.finish_everything()
    assert [index for _, index in world.machine.demanded[2:]] == [3]
    world.check_quiet()


# -- readahead -----------------------------------------------------------------------------


def read_ahead(world: World, first: int, last: int, **how) -> Run:
    assert world.lock.down_read_trylock()
    run = world.run(lambda t: readahead(world.machine, world.vma, t, first, last, **how))
    world.lock.up_read()
    return run


def test_readahead_begins_and_marks_the_first() -> None:
    world = World()
    run = read_ahead(world, 3, 7, mark=1)
    assert run.result == 4
    assert not run.waits
    assert [index for _, index in world.machine.reads] == [3, 4, 5, 6]
    assert [bool(state & PG_READAHEAD) for state in world.mapping.flags[3:7]] == [
        True,
        False,
        False,
        False,
    ]
    assert world.machine.count("map_units") == 0
    assert world.mapping.counters.readahead == 4
    world.finish_everything()
    assert not world.machine.tables
    world.check_quiet()


def test_readahead_skips_what_is_there_or_comes_or_fails() -> None:
    world = World()
    world.fill([3])
    world.fault(4)
    thread = world.fault(5)
    world.end_read(5, StoreFailed())
    world.settle()
    world.machine.calls.clear()
    assert read_ahead(world, 3, 8, mark=0).result == 2
    assert [call for call in world.machine.calls if call[0] == "submit_read"] == [
        ("submit_read", 6),
        ("submit_read", 7),
    ]
    thread.task.send_signal(Signal.KILL)
    world.finish_everything()
    world.check_quiet()


def test_readahead_ends_with_the_object() -> None:
    world = World(6)
    assert read_ahead(world, 4, 100).result == 2
    world.finish_everything()
    world.check_quiet()


def test_marker_makes_the_next_touch_a_fault() -> None:
    """It is read but not mapped by fault-around, so that touching it is seen."""
    world = World()
    read_ahead(world, 3, 7, mark=1)
    world.finish_everything()
    world.fill([2])
    assert {index for _, index in world.machine.tables} == {2}
    world.fault(3)
    assert {index for _, index in world.machine.tables} == {2, 3, 4, 5, 6}

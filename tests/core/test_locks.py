"""What a fault does when its page is locked: the five rows of `PAGE_LOCK_RULES`."""

from __future__ import annotations

import pytest

from helpers.fake_machine import Run, World
from refault.fault.flags import FaultFlag
from refault.fault.locks import (
    LOOK_AGAIN,
    PAGE_LOCK_RULES,
    lock_page_or_retry,
    page_lock_rule,
)
from refault.fault.results import VmFault
from refault.fault.vmf import Fault, release_fault_lock
from refault.memory.wait import Signal, TaskState, WaitReason

A, T, N, K, I = (  # noqa: E741
    FaultFlag.ALLOW_RETRY,
    FaultFlag.TRIED,
    FaultFlag.RETRY_NOWAIT,
    FaultFlag.KILLABLE,
    FaultFlag.INTERRUPTIBLE,
)
PAGE = 3


def lock_it(world: World, flags: int) -> tuple[Run, Fault]:
    """Ask for the lock of `PAGE`, holding the fault lock."""
    assert world.lock.down_read_trylock()
    made: list[Fault] = []

    def make(task):
        made.append(Fault(world.machine, task, world.vma, PAGE, flags))
        return lock_page_or_retry(made[0])

    return world.run(make), made[0]


def locked_world() -> World:
    world = World(8)
    assert world.mapping.trylock_page(PAGE)
    return world


ROWS = [
    # flags, row, deepest wait, lock dropped, takes the page
    (A | N, 1, None, False, False),
    (A | N | K | I, 1, None, False, False),
    (A | K, 2, TaskState.KILLABLE, True, False),
    (A | K | I, 2, TaskState.KILLABLE, True, False),
    (A, 3, TaskState.UNINTERRUPTIBLE, True, False),
    (A | I, 3, TaskState.UNINTERRUPTIBLE, True, False),
    (A | T | K, 4, TaskState.KILLABLE, False, True),
    (A | T | K | I, 4, TaskState.KILLABLE, False, True),
    (K, 4, TaskState.KILLABLE, False, True),
    (A | T, 5, TaskState.UNINTERRUPTIBLE, False, True),
    (A | T | I, 5, TaskState.UNINTERRUPTIBLE, False, True),
    (FaultFlag(0), 5, TaskState.UNINTERRUPTIBLE, False, True),
    # Subtle: TRIED with NOWAIT is not nowait here; it sleeps.
    (A | T | N | K, 4, TaskState.KILLABLE, False, True),
    (A | T | N, 5, TaskState.UNINTERRUPTIBLE, False, True),
]


def test_rows_stand_in_order() -> None:
    assert [rule.row for rule in PAGE_LOCK_RULES] == [1, 2, 3, 4, 5]
    assert {row for _, row, *_ in ROWS} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("flags", "row", "waits", "drops", "takes"), ROWS, ids=str)
def test_rule(flags: int, row: int, waits: TaskState | None, drops: bool, takes: bool) -> None:
    rule = page_lock_rule(flags)
    assert (rule.row, rule.waits, rule.drops_lock, rule.takes_page) == (row, waits, drops, takes)


@pytest.mark.parametrize(("flags", "row", "waits", "drops", "takes"), ROWS, ids=str)
def test_what_it_does(
    flags: int, row: int, waits: TaskState | None, drops: bool, takes: bool
) -> None:
    world = locked_world()
    run, vmf = lock_it(world, flags)
    assert vmf.reason is WaitReason.PAGE_LOCK
    if waits is None:
        assert run.result == VmFault.RETRY
        assert vmf.locked
        assert world.lock.readers == 1
        return
    assert run.waits_for is WaitReason.PAGE_LOCK
    assert run.wait.state is waits
    # V6: before it sleeps, not after.
    assert vmf.locked is not drops
    assert world.lock.readers == (0 if drops else 1)
    world.mapping.unlock_page(PAGE)
    world.settle()
    assert run.result == (0 if takes else VmFault.RETRY)
    assert vmf.locked is not drops
    # "RETRY always, even if the wait succeeded": the page is not ours.
    assert world.mapping.trylock_page(PAGE) is not takes


@pytest.mark.parametrize("flags", [flags for flags, *_ in ROWS], ids=str)
def test_page_that_is_free_is_taken_at_once(flags: int) -> None:
    world = World(8)
    run, vmf = lock_it(world, flags)
    assert run.result == 0
    assert vmf.locked
    assert vmf.reason is None
    assert not world.mapping.trylock_page(PAGE)


@pytest.mark.parametrize(("flags", "row", "waits", "drops", "takes"), ROWS, ids=str)
@pytest.mark.parametrize("signal", [Signal.INTERRUPT, Signal.DEADLINE, Signal.KILL])
def test_signals(
    flags: int,
    row: int,
    waits: TaskState | None,
    drops: bool,
    takes: bool,
    signal: Signal,
) -> None:
    """Only a fatal signal ends the wait, if it is killable at all; INTERRUPTIBLE means nothing."""
    if waits is None:
        return
    world = locked_world()
    run, vmf = lock_it(world, flags)
    run.task.send_signal(signal)
    world.settle()
    if signal is Signal.KILL and waits is TaskState.KILLABLE:
        assert run.result == VmFault.RETRY
        # Handlers look at signals on RETRY only: so the lock must be gone, in row 4 too.
        assert not vmf.locked
        assert world.lock.readers == 0
    else:
        assert not run.finished
        world.mapping.unlock_page(PAGE)
        world.settle()
        assert run.result == (0 if takes else VmFault.RETRY)


def test_signal_that_comes_with_the_lock_does_not_take_it_away() -> None:
    """Row 4: woken, the lock is free, and a fatal signal came meanwhile: no lock is lost."""
    world = locked_world()
    run, vmf = lock_it(world, A | T | K)
    world.mapping.unlock_page(PAGE)
    run.task.send_signal(Signal.KILL)
    world.settle()
    assert run.result == VmFault.RETRY
    assert not vmf.locked
    assert world.mapping.trylock_page(PAGE)


def test_wake_is_a_hint() -> None:
    """Rows 4 and 5 look again, and wait again."""
    world = locked_world()
    run, vmf = lock_it(world, A | T | K)
    world.mapping.wake_page(PAGE)
    assert run.ready
    world.settle()
    assert run.waits_for is WaitReason.PAGE_LOCK
    assert vmf.locked


def test_others_may_be_faster() -> None:
    world = locked_world()
    first, _ = lock_it(world, A | T | K)
    second, _ = lock_it(world, A | T | K)
    world.mapping.unlock_page(PAGE)
    world.settle()
    assert first.result == 0
    assert not second.finished
    world.mapping.unlock_page(PAGE)
    world.settle()
    assert second.result == 0


@pytest.mark.parametrize("flags", [A | T | K, A | T, K, FaultFlag(0)], ids=str)
def test_read_that_begins_meanwhile_is_another_kind_of_wait(flags: int) -> None:
    world = locked_world()
    run, vmf = lock_it(world, flags)
    world.mapping.begin_read(PAGE)
    world.mapping.wake_page(PAGE)
    world.settle()
    assert run.result == LOOK_AGAIN
    assert vmf.locked


def test_lock_is_given_up_once() -> None:
    world = World(8)
    run, vmf = lock_it(world, A)
    assert run.finished
    release_fault_lock(vmf)
    with pytest.raises(AssertionError, match="V1"):
        release_fault_lock(vmf)

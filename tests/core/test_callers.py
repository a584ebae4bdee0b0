"""The loop of a faulting thread: retries, signals, statistics (V2, V5, V9, V10)."""

from __future__ import annotations

import pytest

from helpers.fake_machine import PAGE, StoreFailed, World
from refault.fault import callers
from refault.fault.callers import FaultOutcome, RetryPolicy, flags_after_retry
from refault.fault.flags import (
    FaultFlag,
    fault_flag_allow_retry_first,
    retry_combination,
)
from refault.fault.reclaim import evict_units, sync_units
from refault.fault.results import VmFault
from refault.fault.signals import fault_signal_pending
from refault.memory.protection import Image
from refault.memory.wait import Signal, Task, TaskState, Wait, WaitQueue, WaitReason

RETRY, MAJOR = VmFault.RETRY, VmFault.MAJOR
NON_FATAL = [Signal.INTERRUPT, Signal.CANCEL, Signal.DEADLINE]
FATAL = [Signal.CLOSING, Signal.KILL]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The flags of every attempt that is made."""
    seen: list[int] = []
    real = callers.handle_mm_fault

    def watched(vmf):
        seen.append(vmf.flags)
        return real(vmf)

    monkeypatch.setattr(callers, "handle_mm_fault", watched)
    return seen


def scripted(monkeypatch: pytest.MonkeyPatch, *results: int) -> list[int]:
    """Replace the handler: it returns one result after the other, and keeps the rule of locks."""
    seen: list[int] = []
    script = list(results)

    def handler(vmf):
        seen.append(vmf.flags)
        result = script.pop(0)
        if result & (VmFault.RETRY | VmFault.COMPLETED):
            vmf.vma.lock.up_read()
        return result
        yield

    monkeypatch.setattr(callers, "handle_mm_fault", handler)
    return seen


def test_fault_that_needs_no_waiting_is_one_attempt(attempts: list[int]) -> None:
    world = World()
    world.machine.answers[3] = True
    run = world.fault(3)
    assert run.result == FaultOutcome(MAJOR, 1, False, world.vma)
    assert attempts == [FaultFlag.DEFAULT | FaultFlag.USER]
    world.check_quiet()


def test_write_is_said(attempts: list[int]) -> None:
    world = World()
    world.machine.answers[3] = True
    assert world.fault(3, write=True).finished
    assert attempts == [FaultFlag.DEFAULT | FaultFlag.USER | FaultFlag.WRITE]


def test_retry_keeps_allow_retry_and_adds_tried(attempts: list[int]) -> None:
    world = World()
    run = world.fault(3)
    world.end_read(3)
    world.settle()
    assert run.result.attempts == 2
    first = FaultFlag.DEFAULT | FaultFlag.USER
    assert attempts == [first, first | FaultFlag.TRIED]
    world.check_quiet()


def test_mail_s_third_retry(attempts: list[int]) -> None:
    """A page that is being evicted to swap, is read back, and written: no second fault."""
    world = World(private=True)
    world.fill([3], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [3], task, ghost=True))
    attempts.clear()
    run = world.fault(3, write=True, protected=True)
    world.machine.end_write()
    world.settle()
    world.end_read(3, StoreFailed())
    world.settle()
    world.cooled(3)
    world.settle()
    world.end_read(3)
    world.settle()
    assert run.result.attempts == 3
    assert [retry_combination(flags).letter for flags in attempts] == ["a", "b", "b"]
    assert world.machine.tables[world.vma, 3]
    counters = world.mapping.counters
    assert (counters.faults, counters.retries_page_lock, counters.retries_store_error) == (2, 1, 1)
    world.check_quiet()


@pytest.mark.parametrize("policy", RetryPolicy)
def test_swapped_and_protected_page_needs_three_tries(
    policy: RetryPolicy, attempts: list[int]
) -> None:
    """Where the kernel's old rule gave up: SIGBUS for a page that was to be had."""
    world = World(private=True)
    protection = world.protect()
    run = world.run(
        lambda task: callers.user_fault(
            world.machine, world.mm, task, world.address(3), write=True, policy=policy
        )
    )
    world.end_read(3)
    world.settle()
    if policy is RetryPolicy.SINGLE:
        assert [retry_combination(flags).letter for flags in attempts] == ["a", "c"]
        assert run.result.result == VmFault.SIGBUS
        assert world.mapping.dirty == 0
    else:
        assert run.waits_for is WaitReason.WRITE_PROTECT
        protection.save(3, Image(None))
        world.settle()
        assert [retry_combination(flags).letter for flags in attempts] == ["a", "b", "b"]
        assert run.result == FaultOutcome(0, 3, False, world.vma)
        assert world.machine.tables[world.vma, 3]
        counters = world.mapping.counters
        assert (counters.retries_read, counters.retries_write_protect) == (1, 1)
        assert (counters.major, counters.minor) == (1, 0)
    world.check_quiet()


@pytest.mark.parametrize("flags", [FaultFlag.DEFAULT, FaultFlag.DEFAULT | FaultFlag.TRIED])
def test_flags_after_retry_are_legal(flags: int) -> None:
    assert flags_after_retry(flags, RetryPolicy.MULTIPLE) == flags | FaultFlag.TRIED
    once = flags_after_retry(FaultFlag.DEFAULT, RetryPolicy.SINGLE)
    assert retry_combination(once).letter == "c"


def test_any_number_of_attempts(attempts: list[int]) -> None:
    """Fifty failures of the store, and then success; the kernel's old rule allowed one retry."""
    world = World()
    run = world.fault(3)
    for tries in range(1, 51):
        world.end_read(3, StoreFailed())
        world.settle()
        assert world.mapping.errors[3].tries == tries
        world.check()
        world.cooled(3)
        world.settle()
    world.end_read(3)
    world.settle()
    # One wait for the first read, then for the end of each of the fifty pauses.
    assert run.result.attempts == len(attempts) == 52
    assert sum(map(fault_flag_allow_retry_first, attempts)) == 1
    assert all(flags & FaultFlag.ALLOW_RETRY for flags in attempts)
    assert all(flags & FaultFlag.TRIED for flags in attempts[1:])
    counters = world.mapping.counters
    assert counters.attempts == counters.max_attempts == 52
    assert counters.faults == counters.major == 1
    assert counters.retries_read == 1
    assert counters.retries_store_error == 50
    assert counters.store_errors == 50
    assert not world.mapping.errors
    world.check_quiet()


def test_no_attempt_without_a_wake(attempts: list[int]) -> None:
    """V4, V10: nobody spins."""
    world = World()
    run = world.fault(3)
    world.settle()
    assert len(attempts) == 1
    for count in range(2, 6):
        world.mapping.wake_page(3)
        world.settle(turns=10)
        # Spurious wakes: one attempt for the first; later ones wait in place.
        assert len(attempts) == 2
        assert len(run.waits) == count
    world.finish_everything()
    assert run.result.attempts == 2


# -- signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", Signal)
@pytest.mark.parametrize("tries", [0, 1])
def test_signal_ends_it_before_the_next_retry(
    signal: Signal, tries: int, attempts: list[int]
) -> None:
    world = World()
    run = world.fault(3)
    for _ in range(tries):
        world.mapping.wake_page(3)
        world.settle()
    run.task.send_signal(signal)
    world.settle()
    assert run.result == FaultOutcome(RETRY | MAJOR, 1 + tries, True, world.vma)
    assert len(attempts) == 1 + tries
    counters = world.mapping.counters
    assert (counters.faults, counters.attempts) == (1, 1 + tries)
    assert (counters.major, counters.minor) == (0, 0)
    world.finish_everything()
    world.check_quiet()


def test_signal_that_comes_with_the_wake_is_seen() -> None:
    """The page is there, but the signal is looked at before the retry."""
    world = World()
    run = world.fault(3)
    world.end_read(3)
    run.task.send_signal(Signal.INTERRUPT)
    world.settle()
    assert run.result.interrupted
    assert run.result.attempts == 1
    world.check_quiet()


def test_signal_is_of_no_interest_if_there_is_no_retry() -> None:
    world = World()
    world.machine.answers[3] = True
    run = world.fault(3, signal=Signal.KILL)
    assert run.result == FaultOutcome(MAJOR, 1, False, world.vma)
    world.check_quiet()


def test_signal_that_is_pending_before_lets_nothing_wait() -> None:
    world = World()
    run = world.fault(3, signal=Signal.INTERRUPT)
    assert run.result.interrupted
    assert run.result.attempts == 1
    assert not run.waits
    world.finish_everything()
    world.check_quiet()


@pytest.mark.parametrize("signal", Signal)
@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("result", [0, MAJOR, RETRY, RETRY | MAJOR, VmFault.SIGBUS])
def test_which_signals_count(signal: Signal, user: bool, result: int) -> None:
    task = Task()
    assert not fault_signal_pending(result, task, user=user)
    task.send_signal(signal)
    expected = bool(result & RETRY) and (user or signal in FATAL)
    assert fault_signal_pending(result, task, user=user) is expected


def test_more_final_signal_wins() -> None:
    task = Task()
    for signal in (Signal.DEADLINE, Signal.INTERRUPT, Signal.KILL, Signal.CLOSING):
        task.send_signal(signal)
    assert task.signal is Signal.KILL
    assert {s for s in Signal if s >= Signal.CLOSING} == set(FATAL)


@pytest.mark.parametrize("signal", [None, *Signal])
def test_which_waits_a_signal_ends(signal: Signal | None) -> None:
    task = Task()
    task.signal = signal
    assert not task.interrupted(TaskState.UNINTERRUPTIBLE)
    assert task.interrupted(TaskState.KILLABLE) is (signal in FATAL)
    assert task.interrupted(TaskState.INTERRUPTIBLE) is (signal is not None)
    assert task.signal_pending() is (signal is not None)
    assert task.fatal_signal_pending() is (signal in FATAL)


# -- results -------------------------------------------------------------------------------


def test_completed_is_the_end_and_the_lock_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, RETRY, VmFault.COMPLETED)
    world = World()
    run = world.fault(3)
    assert run.result == FaultOutcome(VmFault.COMPLETED, 2, False, world.vma)
    assert len(seen) == 2
    world.check_quiet()


@pytest.mark.parametrize("error", [VmFault.SIGBUS, VmFault.SIGSEGV, VmFault.OOM])
def test_error_is_the_end(monkeypatch: pytest.MonkeyPatch, error: VmFault) -> None:
    scripted(monkeypatch, RETRY | MAJOR, error)
    world = World()
    run = world.fault(3)
    assert run.result == FaultOutcome(error, 2, False, world.vma)
    counters = world.mapping.counters
    assert (counters.faults, counters.attempts) == (1, 2)
    assert (counters.major, counters.minor) == (0, 0)
    world.check_quiet()


@pytest.mark.parametrize(
    ("results", "major"),
    [
        ([0], False),
        ([MAJOR], True),
        ([RETRY | MAJOR, 0], True),
        # The kernel would call this one major, because of TRIED; we know better.
        ([RETRY, 0], False),
        ([RETRY, VmFault.COMPLETED | MAJOR], True),
    ],
)
def test_major_means_that_a_store_was_read(
    monkeypatch: pytest.MonkeyPatch, results: list[int], major: bool
) -> None:
    scripted(monkeypatch, *results)
    world = World()
    assert world.fault(3).finished
    counters = world.mapping.counters
    assert (counters.major, counters.minor) == (int(major), int(not major))
    assert counters.faults == 1
    assert counters.attempts == counters.max_attempts == len(results)
    world.check_quiet()


def test_write_where_none_is_allowed_is_an_error() -> None:
    world = World(writable=False)
    run = world.fault(3, write=True)
    assert run.result == FaultOutcome(VmFault.SIGSEGV, 1, False, world.vma)
    world.check_quiet()


def test_permanent_failure_is_an_error_after_the_retry() -> None:
    world = World()
    run = world.fault(3)
    world.end_read(3, StoreFailed(permanent=True))
    world.settle()
    assert run.result == FaultOutcome(VmFault.SIGBUS, 2, False, world.vma)
    world.check_quiet()


# -- the vma may be gone -------------------------------------------------------------------


def test_nothing_is_mapped_there() -> None:
    world = World()
    assert world.fault(0, address=0x1000).result == FaultOutcome(0, 0, False, None)
    assert world.fault(0, address=world.vma.end).result == FaultOutcome(0, 0, False, None)


def unmap(world: World) -> None:
    run = world.run(lambda task: world.vma.lock.down_write(task, TaskState.UNINTERRUPTIBLE))
    assert run.finished, "the fault holds the lock while it sleeps"
    world.mm.remove(world.vma)
    world.vma.lock.up_write()


def test_unmapped_while_the_first_try_slept() -> None:
    """V3, V6, V9: the first try holds no lock, and the second one looks the vma up again."""
    world = World()
    run = world.fault(3)
    unmap(world)
    world.end_read(3)
    world.settle()
    assert run.result == FaultOutcome(0, 1, False, None)
    assert not world.machine.tables
    assert world.lock.reads_granted == world.lock.reads_ended == 1


def test_replaced_while_the_first_try_slept() -> None:
    world = World()
    run = world.fault(3)
    unmap(world)
    other = world.add_mapping(8, None)
    vma = world.add_vma(other, world.address(2))
    world.end_read(3)
    world.settle()
    assert world.machine.reads == [(other, 1)]
    world.machine.end_read(other, 1)
    world.settle()
    assert run.result.vma is vma
    assert list(world.machine.tables) == [(vma, 1)]
    assert other.counters.faults == 1


def test_unmapping_waits_for_a_later_try_but_then_comes_first() -> None:
    """V7: the try that is in there finishes; the next one finds nothing."""
    world = World()
    run = world.fault(3)
    world.mapping.wake_page(3)
    world.settle()
    assert world.lock.readers == 1

    def closing(task):
        yield from world.vma.lock.down_write(task, TaskState.UNINTERRUPTIBLE)
        world.mm.remove(world.vma)
        world.vma.lock.up_write()

    closer = world.run(closing)
    late = world.fault(4)
    assert late.waits_for is WaitReason.ADDRESS_SPACE
    assert late.wait.state is TaskState.INTERRUPTIBLE
    world.end_read(3)
    world.settle()
    assert run.result.attempts == 2
    assert closer.finished
    assert late.result == FaultOutcome(0, 0, False, None)
    assert world.lock.reads_granted == world.lock.reads_ended


def test_fault_that_waits_for_the_lock_can_be_interrupted() -> None:
    world = World()
    assert world.run(lambda t: world.lock.down_write(t, TaskState.UNINTERRUPTIBLE)).finished
    run = world.fault(3)
    assert run.waits_for is WaitReason.ADDRESS_SPACE
    run.task.send_signal(Signal.INTERRUPT)
    world.settle()
    assert run.result == FaultOutcome(0, 0, True, None)
    world.lock.up_write()
    world.check_quiet()


def test_wait_for_the_lock_is_counted() -> None:
    world = World()
    world.machine.answers[3] = True
    assert world.run(lambda t: world.lock.down_write(t, TaskState.UNINTERRUPTIBLE)).finished
    run = world.fault(3)
    world.lock.up_write()
    world.settle()
    assert run.result.attempts == 1
    assert world.mapping.counters.retries_address_space == 1
    world.check_quiet()


# -- statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "counter"),
    [
        (WaitReason.READ, "retries_read"),
        (WaitReason.PAGE_LOCK, "retries_page_lock"),
        (WaitReason.MEMORY, "retries_memory"),
        (WaitReason.STORE_ERROR, "retries_store_error"),
        (WaitReason.WRITE_PROTECT, "retries_write_protect"),
    ],
)
def test_retries_are_counted_by_reason(
    monkeypatch: pytest.MonkeyPatch, reason: WaitReason, counter: str
) -> None:
    queue = WaitQueue()
    results = [RETRY, 0]

    def handler(vmf):
        vmf.reason = reason
        if results[0]:
            vmf.vma.lock.up_read()
            yield Wait(queue, TaskState.INTERRUPTIBLE, reason)
        return results.pop(0)

    monkeypatch.setattr(callers, "handle_mm_fault", handler)
    world = World()
    run = world.fault(3)
    queue.wake_all()
    world.settle()
    assert run.result.attempts == 2
    counters = world.mapping.counters
    retries = {name: getattr(counters, name) for name in counters.__slots__ if "retries" in name}
    assert retries.pop(counter) == 1
    assert not any(retries.values())


def test_each_reason_is_really_given() -> None:
    world = World(resident=2)
    first = world.fault(0)
    world.finish_everything()
    assert first.result.attempts == 2
    world.fill([1], dirty=True)
    world.run(lambda task: evict_units(world.machine, world.mapping, [1], task, ghost=False))
    assert world.fault(1).waits_for is WaitReason.PAGE_LOCK
    world.finish_everything()
    world.mapping.pin(0)
    world.mapping.pin(1)
    waiting = world.fault(2)
    assert waiting.waits_for is WaitReason.MEMORY
    world.mapping.unpin(0)
    world.settle()
    world.end_read(2, StoreFailed())
    world.settle()
    world.finish_everything()
    counters = world.mapping.counters
    assert counters.retries_read >= 1
    assert counters.retries_page_lock == 1
    assert counters.retries_memory == 1
    assert counters.retries_store_error == 1
    world.mapping.unpin(1)
    world.check_quiet()


def test_many_threads_one_page() -> None:
    """One read serves them all, and each is mapped or woken by its own attempt."""
    world = World()
    runs = [world.fault(3, write=bool(number % 2)) for number in range(20)]
    assert len(world.machine.reads) == 1
    world.finish_everything()
    assert {run.result.attempts for run in runs} == {2}
    assert world.machine.count("map_units") == 20
    assert world.mapping.counters.faults == 20
    world.check_quiet()


def test_write_while_the_page_is_written_back_is_dirty_again() -> None:
    world = World()
    world.fill([3], dirty=True)
    sync = world.run(lambda task: sync_units(world.machine, world.mapping, 0, 8, task))
    run = world.fault(3, write=True, protected=True)
    assert run.result.attempts == 1
    world.store(3, 77)
    world.finish_everything()
    assert sync.result is None
    assert world.mapping.dirty == 1
    assert world.budget.usage == PAGE
    world.check_quiet()

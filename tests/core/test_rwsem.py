"""`RwSemaphore`: who has it, who gets it next, and what a signal does to those who wait."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fake_machine import Run
from refault.memory.rwsem import RwSemaphore
from refault.memory.wait import Signal, TaskState, WaitReason
from refault.pager.tasks import Scheduler

UNINTERRUPTIBLE, KILLABLE, INTERRUPTIBLE = TaskState


class Room:
    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.lock = RwSemaphore()

    def reader(self, state: TaskState = INTERRUPTIBLE) -> Run:
        return Run(self.scheduler, lambda task: self.lock.down_read(task, state)).start()

    def writer(self, state: TaskState = INTERRUPTIBLE) -> Run:
        return Run(self.scheduler, lambda task: self.lock.down_write(task, state)).start()

    def settle(self) -> None:
        while self.scheduler.ready:
            self.scheduler.run_ready(1)


def test_readers_share() -> None:
    room = Room()
    assert room.reader().result
    assert room.reader().result
    assert room.lock.readers == 2


def test_writer_is_alone() -> None:
    room = Room()
    assert room.writer().result
    reader, writer = room.reader(), room.writer()
    assert reader.waits_for is WaitReason.ADDRESS_SPACE
    assert not writer.finished
    room.lock.up_write()
    room.settle()
    assert reader.result
    assert not writer.finished
    room.lock.up_read()
    room.settle()
    assert writer.result


def test_reader_waits_behind_a_waiting_writer() -> None:
    """V7: writers get in, however many readers come."""
    room = Room()
    assert room.reader().result
    writer, late = room.writer(), room.reader()
    assert not room.lock.down_read_trylock()
    assert not late.finished
    room.lock.up_read()
    room.settle()
    assert writer.result
    assert not late.finished
    room.lock.up_write()
    room.settle()
    assert late.result


def test_readers_behind_one_another_are_let_in_together() -> None:
    room = Room()
    assert room.writer().result
    readers = [room.reader() for _ in range(3)]
    last = room.writer()
    behind = room.reader()
    room.lock.up_write()
    room.settle()
    assert all(reader.finished for reader in readers)
    assert room.lock.readers == 3
    assert not last.finished
    assert not behind.finished


def test_signal_takes_a_writer_out_and_lets_followers_in() -> None:
    room = Room()
    assert room.reader().result
    writer, follower = room.writer(KILLABLE), room.reader()
    writer.task.send_signal(Signal.INTERRUPT)
    room.settle()
    assert not writer.finished
    writer.task.send_signal(Signal.KILL)
    room.settle()
    assert writer.result is False
    assert follower.result is True
    assert room.lock.readers == 2
    assert not room.lock.waiters


def test_signal_takes_a_reader_out() -> None:
    room = Room()
    assert room.writer().result
    reader = room.reader(INTERRUPTIBLE)
    reader.task.send_signal(Signal.INTERRUPT)
    room.settle()
    assert reader.result is False
    room.lock.up_write()
    assert (room.lock.readers, room.lock.writer) == (0, False)


def test_lock_that_was_granted_counts_more_than_a_signal() -> None:
    """Else it would be held by nobody, for ever."""
    room = Room()
    assert room.writer().result
    reader = room.reader()
    room.lock.up_write()
    reader.task.send_signal(Signal.KILL)
    room.settle()
    assert reader.result is True
    assert room.lock.readers == 1


def test_signal_means_nothing_to_who_is_uninterruptible() -> None:
    room = Room()
    assert room.writer().result
    reader = room.reader(UNINTERRUPTIBLE)
    reader.task.send_signal(Signal.KILL)
    room.settle()
    assert not reader.finished


def test_pending_signal_does_not_matter_if_the_lock_is_free() -> None:
    room = Room()
    run = Run(room.scheduler, lambda task: room.lock.down_read(task, KILLABLE))
    run.task.signal = Signal.KILL
    assert run.start().result is True


@pytest.mark.parametrize("misuse", ["up_read", "up_write"])
def test_lock_that_is_not_held_cannot_be_given_up(misuse: str) -> None:
    with pytest.raises(AssertionError):
        getattr(RwSemaphore(), misuse)()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["reader", "writer"]), st.sampled_from(TaskState)),
        st.tuples(st.sampled_from(["up", "turn"]), st.integers(0, 9)),
        st.tuples(
            st.just("signal"), st.integers(0, 9), st.sampled_from([Signal.INTERRUPT, Signal.KILL])
        ),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_model(steps: list[tuple]) -> None:
    room = Room()
    everybody: list[tuple[str, Run]] = []
    gone: set[Run] = set()

    def holders(kind: str) -> list[Run]:
        return [r for k, r in everybody if k == kind and r.finished and r.result and r not in gone]

    for step in steps:
        what, number = step[0], step[1]
        if what in ("reader", "writer"):
            everybody.append((what, getattr(room, what)(step[1])))
        elif what == "up":
            room.settle()
            held = [(k, r) for k, r in everybody if r in holders(k)]
            if held:
                kind, run = held[number % len(held)]
                gone.add(run)
                room.lock.up_read() if kind == "reader" else room.lock.up_write()
        elif what == "turn":
            room.scheduler.run_ready(number)
        else:
            waiting = [r for _, r in everybody if not r.finished]
            if waiting:
                waiting[number % len(waiting)].task.send_signal(step[2])
        readers, writers = holders("reader"), holders("writer")
        assert len(writers) <= 1
        assert not (readers and writers)
        assert not (room.lock.writer and room.lock.readers)
        assert len(readers) <= room.lock.readers
        assert len(writers) <= room.lock.writer
    # Nobody is forgotten: once all who have it give it up, all who wait get it.
    for _ in range(len(everybody) + 1):
        room.settle()
        for kind, run in everybody:
            if run in holders(kind):
                gone.add(run)
                room.lock.up_read() if kind == "reader" else room.lock.up_write()
    assert all(run.finished for _, run in everybody)
    assert (room.lock.readers, room.lock.writer, len(room.lock.waiters)) == (0, False, 0)

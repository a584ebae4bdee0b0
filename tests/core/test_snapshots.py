"""The instant, and the copies before a write, without a pager."""

from __future__ import annotations

from helpers.fake_machine import World
from refault.fault.snapshots import (
    ROUNDS,
    copy_before_write,
    end_snapshot,
    instant,
    prepare,
)
from refault.memory.protection import Images
from refault.memory.wait import RESCHEDULE, Signal, Task
from refault.pager.tasks import PagerTask


def take(world: World, **options: int) -> Images:
    preparing = prepare(world.machine, [world.mapping], Task(), **options)
    while True:
        try:
            wait = next(preparing)
        except StopIteration as stop:
            assert stop.value
            break
        assert wait is RESCHEDULE
    (images,) = instant(world.machine, [world.mapping], images=True)
    return images


def protected_runs(world: World) -> list[object]:
    return [call[1:] for call in world.machine.calls if call[0] == "write_protect"]


def test_only_what_is_dirty_is_protected() -> None:
    world = World()
    world.fill([1, 2])
    world.fill([5, 6, 9], dirty=True)
    take(world)
    assert not any(world.machine.tables.values())
    assert protected_runs(world) == [(5, 7), (9, 10)]
    world.machine.calls.clear()
    take(world)
    assert protected_runs(world) == []


def test_rounds_go_on_while_they_become_shorter() -> None:
    """A writer that is as fast as the rounds does not keep the snapshot from being taken."""
    world = World(pages=64)
    world.fill(range(40), dirty=True)
    preparing = prepare(world.machine, [world.mapping], Task(), few=0)
    turns = 0
    for _ in preparing:
        turns += 1
        world.fault(turns % 40, write=True, protected=True)
    assert turns <= 4
    written = world.mapping.written
    assert written is not None and written.writable
    (images,) = instant(world.machine, [world.mapping], images=True)
    assert not written.writable
    assert images.instant == 1


def test_no_more_rounds_than_that() -> None:
    world = World(pages=64)
    world.fill(range(40), dirty=True)
    preparing = prepare(world.machine, [world.mapping], Task(), few=0)
    shorter = 40
    turns = 0
    for _ in preparing:
        turns += 1
        shorter -= 1
        for index in range(shorter):
            world.fault(index, write=True, protected=True)
    assert turns == ROUNDS + 2, "one more for what was dirty, and one to look for it"


def test_signal_leaves_no_trace() -> None:
    world = World()
    world.fill(range(8), dirty=True)
    task = Task()
    preparing = prepare(world.machine, [world.mapping], task)
    next(preparing)
    assert not world.mapping.can_change()
    task.send_signal(Signal.CANCEL)
    try:
        while True:
            next(preparing)
    except StopIteration as stop:
        assert stop.value is False
    assert world.mapping.written is None
    assert world.mapping.can_change()


def monitored(world: World) -> tuple[Images, PagerTask]:
    images = take(world)
    protection = world.mapping.protection
    assert protection is not None
    monitor = PagerTask(world.scheduler, "monitor")
    work = copy_before_write(world.machine, world.mapping, protection, monitor)
    world.scheduler.spawn(monitor, work)
    return images, monitor


def test_writer_waits_until_there_is_room_for_the_copy() -> None:
    world = World()
    world.fill([3], dirty=True)
    images, _ = monitored(world)
    world.machine.copies_fit = False
    run = world.fault(3, write=True, protected=True)
    world.settle()
    assert not run.finished
    assert not images.units
    world.machine.copies_fit = True
    world.machine.copies_freed.wake_all()
    world.settle()
    assert run.finished
    assert set(images.units) == {3}
    assert world.mapping.counters.retries_write_protect == 1


def test_end_frees_copies_and_writers() -> None:
    world = World()
    world.fill([3, 4], dirty=True)
    images, monitor = monitored(world)
    world.fault(3, write=True, protected=True)
    world.settle()
    world.machine.copies_fit = False
    run = world.fault(4, write=True, protected=True)
    world.settle()
    end_snapshot(world.machine, world.mapping, images)
    world.machine.copies_freed.wake_all()
    world.settle()
    assert run.finished
    assert monitor not in world.scheduler.alive
    assert ("free_image", 1) in world.machine.calls
    assert world.mapping.protection is None
    assert world.mapping.written is not None, "the instant is held still"
    world.mapping.written.release(images.instant)
    world.mapping.untrack()
    assert world.mapping.written is None

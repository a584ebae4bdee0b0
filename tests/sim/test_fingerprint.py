"""What the explorer takes for the same state is the same."""

from __future__ import annotations

from collections.abc import Generator
from types import FrameType, GeneratorType

import pytest

from refault.memory.budget import Budget
from refault.testing import SCENARIOS, World, explore, explorer, fingerprint
from refault.testing.fingerprint import MOST_TRIES
from refault.testing.liveness import live_locals
from sim.mutants import by_name, hunt

IN_FINGERPRINT = {
    "mapping": {
        "budget", "errors", "flags", "pins", "reclaiming", "working_set", "write_errors",
        "_queues", "protection", "written",
        # Never changes.
        "name", "number", "page_shift", "page_size", "pages", "private", "size", "writable",
        "readahead", "file_windows", "far", "run_bytes",
        # Follows from what is there: `flags`, `World.vmas`.
        "dirty", "vmas",
        # Decides nothing.
        "counters", "seen", "touched",
        # Nobody changes units here, and nothing is closed.
        "holders", "chooser", "closed", "prefetching",
    },
    # `account` is `usage`, and `peak`, which decides nothing.
    "budget": {"account", "freed", "limit", "low_free", "mappings", "parent", "reclaiming"},
    "vma": {"detached", "end", "lock", "mapping", "mm", "offset", "start", "writable"},
    "error": {"cause", "cooling", "over", "permanent", "tries"},
}  # fmt: skip
"""Attributes that were looked at when `fingerprint` was written."""


def test_no_state_is_forgotten() -> None:
    """A new attribute fails here: put it into the fingerprint, or say why it cannot matter."""
    world = World(SCENARIOS["three-threads"])
    assert set(vars(world.mapping)) <= IN_FINGERPRINT["mapping"]
    assert set(Budget.__slots__) == IN_FINGERPRINT["budget"]
    assert set(type(world.vmas[0]).__slots__) == IN_FINGERPRINT["vma"]


def plain(world: World) -> int:
    """A finer fingerprint: all locals, the order of everything, contents as they are."""
    tasks = tuple(
        (
            task.name,
            task.signal,
            None if task.waiting is None else task.waiting.reason,
            tuple(
                (
                    frame.f_code.co_name,
                    frame.f_lasti,
                    tuple(
                        (name, value)
                        for name, value in sorted(frame.f_locals.items())
                        if isinstance(value, (int, str, type(None)))
                    ),
                )
                for frame in fingerprint.frames(task)
            ),
        )
        for task in sorted(world.tasks, key=lambda task: task.name)
    )
    machine = world.machine
    return hash(
        (
            fingerprint.fingerprint(world),
            bytes(world.mapping.flags),
            tasks,
            tuple(task.name for task in world.ready),
            tuple(world.truth),
            *(tuple(sorted(p.items())) for p in (machine.memory, machine.stored, machine.swapped)),
            tuple((io.first, io.write, io.started, *io.captured) for io in machine.io),
            tuple(thread.end for thread in world.threads),
        )
    )


@pytest.mark.parametrize(
    "name",
    ["third-retry", "unmap-shared", "gup-release", "failing-store", "killed", "nowait-unmap"],
)
def test_nothing_is_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a finer fingerprint there are more states, and nothing else to be seen in them."""
    coarse = explore(SCENARIOS[name])
    monkeypatch.setattr(explorer, "fingerprint", plain)
    fine = explore(SCENARIOS[name])
    assert fine.complete
    assert fine.states >= coarse.states
    assert fine.violation == coarse.violation == ""
    assert {min(n, MOST_TRIES) for n in fine.attempts} == set(coarse.attempts)
    assert set(fine.ends) == set(coarse.ends)
    assert fine.transitions == coarse.transitions


@pytest.mark.parametrize(
    "name", ["detached-vma", "check-before-enqueue", "reader-overtakes-writer"]
)
def test_schedules_are_as_short(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = hunt(by_name(name))
    monkeypatch.setattr(explorer, "fingerprint", plain)
    fine = hunt(by_name(name))
    assert len(fine.schedule) == len(coarse.schedule)


def test_what_decides_nothing() -> None:
    one, two = World(SCENARIOS["swap"]), World(SCENARIOS["swap"])
    assert two.mapping.budget.limit is not None
    two.mapping.working_set.add_many((0, 1))
    two.mapping.working_set.remove_many((0, 1), ghost=False)
    assert fingerprint.fingerprint(one) == fingerprint.fingerprint(two)
    two.mapping.pins[0] = 1
    assert fingerprint.fingerprint(one) != fingerprint.fingerprint(two)


def test_history_of_a_unit_counts() -> None:
    one, two = World(SCENARIOS["swap"]), World(SCENARIOS["swap"])
    for world, ghost in ((one, False), (two, True)):
        world.mapping.working_set.add(0)
        world.mapping.working_set.remove(0, ghost=ghost)
    assert fingerprint.fingerprint(one) != fingerprint.fingerprint(two)


def use(*values: object) -> int:
    return len(values)


def pausing(a: int, b: int, c: int) -> Generator[None, None, int]:
    yield
    b = a
    for _item in (1, 2):
        yield
    use(b)
    return c + (yield from inner(a))


def inner(a: int) -> Generator[None, None, int]:
    yield
    return use(a)


def test_live_locals() -> None:
    generator = pausing(1, 2, 3)
    next(generator)
    assert isinstance(generator, GeneratorType)
    frame: FrameType | None = generator.gi_frame
    assert frame is not None
    live = [live_locals(frame.f_code, frame.f_lasti)]
    for _ in range(3):
        next(generator)
        live.append(live_locals(frame.f_code, frame.f_lasti))
    assert live[0] == (
        "_item",
        "a",
        "c",
    )  # b is written before it is read; _item may be an iterator
    assert live[1] == live[2] == ("_item", "a", "b", "c")
    assert "c" in live[3]  # it lies on the stack
    assert "b" not in live[3]


def test_where_nothing_is_known_everything_is_live() -> None:
    assert live_locals(pausing.__code__, -7) == ("_item", "a", "b", "c")

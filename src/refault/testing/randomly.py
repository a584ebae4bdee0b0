"""Runs scenarios in very many random orders, on as many processors as there are."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from .exploration import BROKEN, Exploration, replay, shortened, words
from .promises import check, check_end
from .scenario import Scenario
from .world import Step, World

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["explore_random", "explore_random_parallel"]

LONGEST = 5000
CHECK_EVERY = 64
"""Of so many schedules one is checked after every step; the others at their end, and by what the
machine, the tasks and the locks notice themselves."""

PROGRESS_SECONDS = 0.2
PART = 500
"""Schedules that one process runs before it says what it found."""


def explore_random(
    scenario: Scenario | Callable[[int], Scenario],
    schedules: int,
    *,
    seed: int = 0,
    priorities: bool = False,
    progress: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Run a scenario in many random orders.

    Parameters
    ----------
    scenario
        What to run; or a function that makes one from a seed, for each schedule another.
    schedules
        How many.
    seed
        Schedule number `i` is drawn with ``seed + i``: that number repeats it.
    priorities
        Draw priorities that change now and then instead of single steps: finds orders in
        which somebody is held up for long.
    progress
        Called now and then.  If it raises KeyboardInterrupt, or somebody else does, what was
        found so far is returned.

    Returns
    -------
    Exploration
    """
    make = (lambda _: scenario) if isinstance(scenario, Scenario) else scenario
    found = Exploration(make(seed), first_seed=seed)
    began = told = time.perf_counter()
    try:
        for number in range(seed, seed + schedules):
            _run(found, make(number), number, priorities=priorities)
            if found.violation:
                break
            if progress is not None and not number & 15:
                now = time.perf_counter()
                if now - told > PROGRESS_SECONDS:
                    told, found.seconds = now, now - began
                    progress(found)
    except KeyboardInterrupt:
        found.interrupted = True
    found.seconds = time.perf_counter() - began
    return found


def _run(found: Exploration, scenario: Scenario, seed: int, *, priorities: bool) -> None:
    rng = random.Random(seed)
    thorough = not seed % CHECK_EVERY
    world = World(scenario, watch=thorough or None)
    draw, perform, number = world.draw, world.perform, rng.random
    weights: dict[Step, float] = {}
    path: list[Step] = []
    try:
        while True:
            step = draw(number) if not priorities else _prefer(world, weights, rng)
            if step is None:
                break
            path.append(step)
            perform(step)
            if thorough:
                check(world)
            if len(path) > LONGEST:
                raise AssertionError(f"still going on after {LONGEST} steps")
        check(world)
        check_end(world)
    except BROKEN as error:
        found.schedule = shortened(scenario, path)
        found.violation = replay(scenario, found.schedule)[1] or words(error)
        found.seed, found.scenario = seed, scenario
    found.schedules += 1
    found.steps += len(path)
    found.count(world, path)


def _prefer(world: World, weights: dict[Step, float], rng: random.Random) -> Step | None:
    if rng.random() < 0.05:
        weights.clear()
    steps = world.steps()
    return max(steps, key=lambda step: weights.setdefault(step, rng.random())) if steps else None


def explore_random_parallel(
    scenario: Scenario | Callable[[int], Scenario],
    schedules: int,
    *,
    jobs: int,
    seed: int = 0,
    progress: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Do what `explore_random` does, in several processes.

    Parameters
    ----------
    scenario
        As there; it is sent to the processes, so a function must be one that pickle knows.
    schedules, seed, progress
        As there: the same numbers give the same schedules, whoever runs them.
    jobs
        How many processes.

    Returns
    -------
    Exploration
        Of several violations, the one with the shortest schedule.
    """
    import multiprocessing
    from multiprocessing.connection import Connection, wait

    first = scenario if isinstance(scenario, Scenario) else scenario(seed)
    found = Exploration(first, first_seed=seed)
    began = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    waiting: list[Connection] = []
    processes = []
    try:
        for number in range(jobs):
            mine, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=_work, args=(theirs, scenario, seed, schedules, number, jobs), daemon=True
            )
            process.start()
            theirs.close()
            waiting.append(mine)
            processes.append(process)
        while waiting and not found.violation:
            for connection in wait(waiting):
                assert isinstance(connection, Connection)
                try:
                    found.add(connection.recv())
                except EOFError:
                    waiting.remove(connection)
                    connection.close()
                    continue
                found.seconds = time.perf_counter() - began
                if progress is not None:
                    progress(found)
    except KeyboardInterrupt:
        found.interrupted = True
    finally:
        for connection in waiting:
            connection.close()
        for process in processes:
            process.kill()
            process.join()
    found.seconds = time.perf_counter() - began
    if not found.interrupted and not found.violation and found.schedules != schedules:
        raise RuntimeError("a process that explores has died; run with jobs=1 to see why")
    return found


def _work(
    connection: Connection,
    scenario: Scenario | Callable[[int], Scenario],
    seed: int,
    schedules: int,
    number: int,
    jobs: int,
) -> None:
    """Run every part whose number is `number` modulo `jobs`, and send what was found."""
    # Ctrl-C is for the process that was started by hand; it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    part = max(1, min(PART, -(-schedules // jobs)))
    with suppress(BrokenPipeError):
        for at in range(number * part, schedules, jobs * part):
            connection.send(explore_random(scenario, min(part, schedules - at), seed=seed + at))

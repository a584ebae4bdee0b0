"""Runs a scenario in every order, or in very many.

The generators of the fault path cannot be copied.  So a state is remembered by the
steps that lead to it, and to come back to it they are made again from the beginning;
they always lead to the same place.  States that were seen before are not
explored again.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .scenario import Scenario
from .world import Step, World

__all__ = ["Exploration", "explore", "explore_random", "replay"]

LONGEST = 5000


@dataclass
class Exploration:
    """What an exploration found.

    Attributes
    ----------
    scenario
        What was explored.
    schedules
        How many complete runs (or runs into a state already seen) were made.
    states
        How many different states were seen.
    steps
        How many steps were made, repetitions included.
    seconds
        How long it took.
    complete
        Whether every order was covered.
    violation
        What went wrong, or "".
    schedule
        The choices that lead there; for `replay`.
    seed
        Of the random schedule that found it.
    attempts
        How often each number of tries per fault occurred.
    ends
        How threads ended, and how often.
    """

    scenario: Scenario
    schedules: int = 0
    states: int = 0
    steps: int = 0
    seconds: float = 0.0
    complete: bool = False
    violation: str = ""
    schedule: list[Step] = field(default_factory=list)
    seed: int | None = None
    attempts: dict[int, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)

    def count(self, world: World) -> None:
        """Enter a run that ended."""
        for thread in world.threads:
            self.ends[thread.end] = self.ends.get(thread.end, 0) + 1

    def count_tries(self, world: World) -> None:
        """Enter the faults that ended in the last step, or run."""
        for tries in world.attempts:
            self.attempts[tries] = self.attempts.get(tries, 0) + 1

    def report(self) -> str:
        """The schedule that failed, step by step."""
        if not self.violation:
            return ""
        lines, _ = replay(self.scenario, self.schedule)
        seed = f", seed {self.seed}" if self.seed is not None else ""
        return "\n".join([f"VIOLATION in {self.scenario.name}{seed}: {self.violation}", *lines])


def replay(scenario: Scenario, schedule: list[Step]) -> tuple[list[str], str]:
    """Run one schedule again.

    Returns
    -------
    list of str, str
        What happened, a line each; and the violation at its end, or "".
    """
    lines: list[str] = []
    world = World(scenario)
    world.trace = lines.append
    try:
        for number, step in enumerate(schedule, 1):
            lines.append(f"{number:3}. {world.label(step)}")
            world.perform(step)
            lines.append(world.describe())
            world.check()
        if not world.steps():
            world.check_end()
    except AssertionError as error:
        return [*lines, f"     => {error}"], str(error)
    return lines, ""


def _run(scenario: Scenario, schedule: list[Step]) -> World:
    world = World(scenario)
    for step in schedule:
        world.perform(step)
    world.attempts.clear()
    return world


def explore(
    scenario: Scenario,
    *,
    max_states: int | None = None,
    progress: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Run a scenario in every order of its steps.

    States are visited in the order of their distance from the beginning, each once; so the first
    violation that is found has the shortest schedule there is.

    Parameters
    ----------
    scenario
        What to run.
    max_states
        Stop after so many states; `Exploration.complete` is False then.
    progress
        Called now and then.

    Returns
    -------
    Exploration
    """
    found = Exploration(scenario)
    began = time.perf_counter()
    first = World(scenario)
    seen = {first.fingerprint()}
    # A state is remembered as the step that led to it and the state before: (step, parent).
    queue: deque[_Node] = deque([_Node(None, None)])
    schedule: list[Step] = []
    try:
        while queue:
            node = queue.popleft()
            path = node.path()
            world = _run(scenario, path)
            steps = world.steps()
            if not steps:
                schedule = path
                world.check_end()
                found.schedules += 1
                found.count(world)
            for number, step in enumerate(steps):
                if number:
                    world = _run(scenario, path)
                found.steps += len(path) + 1
                schedule = [*path, step]
                world.perform(step)
                world.check()
                found.count_tries(world)
                state = world.fingerprint()
                if state in seen:
                    found.schedules += 1
                    continue
                seen.add(state)
                queue.append(_Node(step, node))
            found.states, found.seconds = len(seen), time.perf_counter() - began
            if max_states is not None and len(seen) >= max_states:
                return found
            if progress is not None:
                progress(found)
        found.complete = True
    except AssertionError as error:
        found.violation, found.schedule = str(error) or repr(error), schedule
        found.schedules += 1
    found.states, found.seconds = len(seen), time.perf_counter() - began
    return found


class _Node:
    __slots__ = ("parent", "step")

    def __init__(self, step: Step | None, parent: _Node | None) -> None:
        self.step = step
        self.parent = parent

    def path(self) -> list[Step]:
        steps: list[Step] = []
        node = self
        while node.parent is not None and node.step is not None:
            steps.append(node.step)
            node = node.parent
        steps.reverse()
        return steps


def explore_random(
    scenario: Scenario,
    schedules: int,
    *,
    seed: int = 0,
    priorities: bool = False,
    progress: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Run a scenario in many random orders.

    Parameters
    ----------
    schedules
        How many.
    seed
        Schedule number `i` is drawn with ``seed + i``: that number repeats it.
    priorities
        Draw priorities that change now and then instead of single steps: finds orders in
        which somebody is held up for long.

    Returns
    -------
    Exploration
    """
    found = Exploration(scenario)
    began = time.perf_counter()
    for number in range(schedules):
        rng = random.Random(seed + number)
        world = World(scenario)
        path: list[Step] = []
        weights: dict[Step, float] = {}
        try:
            while steps := world.steps():
                if len(path) >= LONGEST:
                    raise AssertionError(f"still going on after {LONGEST} steps")
                if not priorities:
                    step = steps[int(rng.random() * len(steps))]
                else:
                    if rng.random() < 0.05:
                        weights.clear()
                    step = max(steps, key=lambda s: weights.setdefault(s, rng.random()))
                path.append(step)
                world.perform(step)
            world.check()
            world.check_end()
        except AssertionError as error:
            found.violation, found.schedule = str(error) or repr(error), path
            found.seed = seed + number
        found.schedules += 1
        found.steps += len(path)
        found.count(world)
        found.count_tries(world)
        if found.violation:
            break
        if progress is not None and not number & 0xFF:
            found.seconds = time.perf_counter() - began
            progress(found)
    found.seconds = time.perf_counter() - began
    return found

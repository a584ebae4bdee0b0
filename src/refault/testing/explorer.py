"""Runs a scenario in every order of its steps.

The generators of the fault path cannot be copied.  So a state is remembered by the
steps that lead to it, and to come back to it they are made again from the beginning;
they always lead to the same place.  States that were seen before are not
explored again; `fingerprint` says which are the same.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from refault.machine.simulated import Violation

from .exploration import BROKEN, Exploration, run_to, words
from .fingerprint import fingerprint
from .promises import check, check_end
from .scenario import Scenario
from .world import Step, World

__all__ = ["explore"]

PROGRESS_SECONDS = 0.2


def explore(
    scenario: Scenario,
    *,
    max_states: int | None = None,
    progress: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Run a scenario in every order of its steps.

    States are visited in the order of their distance from the beginning, each once; so the first
    violation that is found has the shortest schedule there is.

    When all states are known, one more promise is checked: from each of them an end can still be
    reached.  A state without that is a trap, in which threads go on for ever and get nowhere.

    Parameters
    ----------
    scenario
        What to run.
    max_states
        Stop after so many states; `Exploration.complete` is False then.
    progress
        Called now and then.  If it raises KeyboardInterrupt, or somebody else does, what was
        found so far is returned.

    Returns
    -------
    Exploration
    """
    found = Exploration(scenario)
    graph = _Graph()
    began = told = time.perf_counter()
    seen = {fingerprint(World(scenario)): 0}
    schedule: list[Step] = []
    node = 0
    try:
        while node < len(graph.parents):
            path = graph.path(node)
            world = run_to(scenario, path)
            steps = world.steps()
            if not steps:
                schedule = path
                check_end(world)
                found.schedules += 1
                graph.ends.append(node)
            for number, step in enumerate(steps):
                if number:
                    world = run_to(scenario, path)
                found.steps += len(path) + 1
                schedule = [*path, step]
                world.perform(step)
                found.count(world, schedule)
                state = fingerprint(world)
                known = seen.get(state)
                if known is None:
                    check(world)
                    seen[state] = graph.add(node, step)
                else:
                    found.schedules += 1
                    graph.join(node, known)
            node += 1
            if max_states is not None and len(seen) >= max_states:
                break
            if progress is not None and time.perf_counter() - told > PROGRESS_SECONDS:
                told = time.perf_counter()
                found.states, found.seconds = len(seen), told - began
                found.visited = node
                progress(found)
        else:
            trap = graph.trap()
            if trap is not None:
                schedule = graph.path(trap)
                raise Violation("from here on no end can be reached any more")
            found.complete = True
    except KeyboardInterrupt:
        found.interrupted = True
    except BROKEN as error:
        found.violation, found.schedule = words(error), schedule
        found.schedules += 1
    found.states, found.visited, found.seconds = len(seen), node, time.perf_counter() - began
    return found


class _Graph:
    """The states, numbered in the order they were found, and the ways between them."""

    def __init__(self) -> None:
        self.parents = array("l", [-1])
        self.steps: list[Step] = [("", 0)]
        self.sources = array("l")
        self.targets = array("l")
        self.ends: list[int] = []

    def add(self, source: int, step: Step) -> int:
        """A new state."""
        self.parents.append(source)
        self.steps.append(step)
        self.join(source, len(self.parents) - 1)
        return len(self.parents) - 1

    def join(self, source: int, target: int) -> None:
        """A step leads from one state to another."""
        self.sources.append(source)
        self.targets.append(target)

    def path(self, node: int) -> list[Step]:
        """The steps from the beginning to a state."""
        steps: list[Step] = []
        while node:
            steps.append(self.steps[node])
            node = self.parents[node]
        steps.reverse()
        return steps

    def trap(self) -> int | None:
        """The first state from which no end can be reached; None if there is none."""
        before: list[list[int]] = [[] for _ in self.parents]
        for source, target in zip(self.sources, self.targets, strict=True):
            before[target].append(source)
        good = bytearray(len(self.parents))
        todo = list(self.ends)
        while todo:
            node = todo.pop()
            if not good[node]:
                good[node] = 1
                todo.extend(before[node])
        bad = good.find(0)
        return None if bad < 0 else bad

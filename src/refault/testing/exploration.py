"""What an exploration found, and how a schedule is run again and told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from refault.machine.simulated import Violation

from .page_states import Transition
from .promises import check, check_end
from .scenario import Scenario
from .tracing import describe, label, traced
from .world import Step, World

__all__ = ["BROKEN", "Exploration", "percentile", "replay", "run_to", "shortened", "words"]

BROKEN = (Violation, AssertionError, LookupError, TypeError, ValueError, AttributeError)
"""What a wrong fault path may raise: a broken promise, or its own assertions, or plain nonsense."""


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
    visited
        Of how many of them every step has been made.
    steps
        How many steps were made, repetitions included.
    seconds
        How long it took.
    complete
        Whether every order was covered.
    interrupted
        Whether somebody stopped it.
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
    waits
        How many steps each unmap waited for its lock, and how often.
    longest, longest_scenario
        The schedule up to the end of the fault that took most tries, and of what.
    first_seed
        Of random schedules.
    transitions
        Rows of `TRANSITIONS` that were seen.
    """

    scenario: Scenario
    schedules: int = 0
    states: int = 0
    visited: int = 0
    steps: int = 0
    seconds: float = 0.0
    complete: bool = False
    interrupted: bool = False
    violation: str = ""
    schedule: list[Step] = field(default_factory=list)
    seed: int | None = None
    attempts: Counter[int] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    waits: Counter[int] = field(default_factory=Counter)
    longest: list[Step] = field(default_factory=list)
    longest_scenario: Scenario | None = None
    first_seed: int = 0
    transitions: set[Transition] = field(default_factory=set)

    def count(self, world: World, schedule: list[Step]) -> None:
        """Enter what ended in a run, or in its last step."""
        if world.attempts:
            if max(world.attempts) > max(self.attempts, default=0):
                self.longest, self.longest_scenario = list(schedule), world.scenario
            self.attempts.update(world.attempts)
        if world.ended:
            self.ends.update(world.ended)
        if world.writer_waits:
            self.waits.update(world.writer_waits)
        self.transitions |= world.transitions

    def add(self, other: Exploration) -> None:
        """Enter what another exploration of the same kind found, made at the same time."""
        if max(other.attempts, default=0) > max(self.attempts, default=0):
            self.longest, self.longest_scenario = other.longest, other.longest_scenario
        self.schedules += other.schedules
        self.steps += other.steps
        self.seconds = max(self.seconds, other.seconds)
        self.attempts.update(other.attempts)
        self.ends.update(other.ends)
        self.waits.update(other.waits)
        self.transitions |= other.transitions
        if other.violation and (not self.violation or len(other.schedule) < len(self.schedule)):
            self.violation, self.schedule = other.violation, other.schedule
            self.seed, self.scenario = other.seed, other.scenario

    def report(self) -> str:
        """The schedule that failed, step by step; "" if none did."""
        if not self.violation:
            return ""
        lines, _ = replay(self.scenario, self.schedule)
        seed = f", seed {self.seed}" if self.seed is not None else ""
        return "\n".join([f"VIOLATION in {self.scenario.name}{seed}: {self.violation}", *lines])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "scenario": self.scenario.name,
            "policy": self.scenario.policy.value,
            "schedules": self.schedules,
            "states": self.states,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "interrupted": self.interrupted,
            "violation": self.violation,
            "seed": self.seed,
            "schedule": self.schedule,
            "tries": {str(tries): self.attempts[tries] for tries in sorted(self.attempts)},
            "ends": dict(sorted(self.ends.items())),
            "report": self.report().splitlines(),
        }


def percentile(counts: Counter[int], share: float) -> int:
    """The number that `share` of what was counted does not exceed; 0 if nothing was.

    Parameters
    ----------
    counts
        How often each number occurred.
    share
        Between 0 and 1.
    """
    left = share * counts.total()
    for number in sorted(counts):
        left -= counts[number]
        if left <= 0:
            return number
    return max(counts, default=0)


def words(error: BaseException) -> str:
    """A violation in words."""
    if isinstance(error, (Violation, AssertionError)):
        return str(error) or repr(error)
    return f"the fault path fails with {error!r}"


def run_to(scenario: Scenario, schedule: list[Step]) -> World:
    """A world at the end of a schedule that is known to break nothing.

    What was counted on the way is forgotten.
    """
    world = World(scenario, watch=False)
    perform = world.perform
    for step in schedule:
        perform(step)
    world.watch_pages()
    world.attempts.clear()
    world.ended.clear()
    world.writer_waits.clear()
    return world


def replay(scenario: Scenario, schedule: list[Step]) -> tuple[list[str], str]:
    """Run one schedule again.

    Parameters
    ----------
    scenario
        What to run.
    schedule
        `Exploration.schedule`, or a part of it.

    Returns
    -------
    list of str, str
        What happened, a line each; and the violation at its end, or "".
    """
    lines: list[str] = []
    world = World(scenario)
    world.trace = lambda line: lines.append(f"       {line}")
    with traced(world):
        try:
            for number, step in enumerate(schedule, 1):
                lines.append(f"{number:3}.  {label(world, step)}")
                world.perform(step)
                lines.append(f"       {describe(world)}")
                check(world)
            if not world.steps():
                check_end(world)
        except BROKEN as error:
            return [*lines, f"  =>   {words(error)}"], words(error)
    return lines, ""


def shortened(scenario: Scenario, schedule: list[Step], *, runs: int = 600) -> list[Step]:
    """A shorter schedule that breaks a promise too, if one is found by leaving steps out.

    Parameters
    ----------
    scenario, schedule
        Of a violation.
    runs
        How often to try.

    Returns
    -------
    list
        The schedule itself if none is found.
    """
    best = _broken_by(scenario, schedule) or schedule
    size = len(best) // 2
    while size and runs > 0:
        at = 0
        while at < len(best) and runs > 0:
            runs -= 1
            found = _broken_by(scenario, best[:at] + best[at + size :])
            if found is not None and len(found) < len(best):
                best = found
            else:
                at += size
        size //= 2
    return best


def _broken_by(scenario: Scenario, schedule: list[Step]) -> list[Step] | None:
    """What of a schedule can be made until a promise is broken; None if none is."""
    world = World(scenario)
    made: list[Step] = []
    try:
        for step in schedule:
            if step in world.steps():
                made.append(step)
                world.perform(step)
                check(world)
        while steps := world.steps():
            if len(made) > 2 * len(schedule):
                return None
            made.append(steps[0])
            world.perform(steps[0])
            check(world)
        check_end(world)
    except BROKEN:
        return made
    return None

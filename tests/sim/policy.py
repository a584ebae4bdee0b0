"""What the rules about the lock cost and bring, in figures.

Three rules are run on the same seeded schedules: the mail's (the first try gives the lock up before
it sleeps, later ones keep it), one under which no try gives it up, and one under which every try
does.  The last two are made by changing the fault path as in `mutants`.

``PYTHONPATH=tests python -m sim.policy`` writes the figures into docs/retry.md.
"""

from __future__ import annotations

import pathlib
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from refault.fault import handlers, locks
from refault.fault.callers import RetryPolicy
from refault.testing import SCENARIOS, Exploration, Scenario, World, explore, mixed, replay
from refault.testing.exploration import percentile
from refault.testing.pictures import drawn
from refault.testing.world import Step
from sim.mutants import Mutant, alive

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "retry.md"
SHOWN = ("third-retry", "snapshot", "three-threads", "killed", "failing-store", "swap", "unmap")
SCHEDULES = 4000
SLOW = 30
"""A store is so slow that everything else is so many times as likely to happen next."""


def _rule(name: str, in_place: str, drops: str) -> tuple[Mutant, Mutant]:
    return (
        Mutant(
            name,
            "",
            "",
            handlers.wait_for,
            "if not in_place or fault_flag_allow_retry_first(vmf.flags):",
            in_place,
            "",
        ),
        Mutant(name, "", "", locks.lock_page_or_retry, "    if rule.drops_lock:", drops, ""),
    )


RULES: dict[str, tuple[Mutant, ...]] = {
    "the mail: the first try gives the lock up": (),
    "no try gives it up": _rule("stubborn", "if not in_place:", "    if False:"),
    "every try gives it up": _rule("polite", "if True:", "    if rule.waits is not None:"),
}


@dataclass
class Figures:
    """What a rule led to."""

    tries: Counter[int] = field(default_factory=Counter)
    waits: Counter[int] = field(default_factory=Counter)

    @property
    def mean_wait(self) -> float:
        return sum(n * count for n, count in self.waits.items()) / max(self.waits.total(), 1)

    @property
    def mean_tries(self) -> float:
        return sum(n * count for n, count in self.tries.items()) / max(self.tries.total(), 1)


def contended(seed: int) -> Scenario:
    """`mixed`, with more evictions, and both ranges unmapped at some time."""
    rng = random.Random(-seed)
    return replace(
        mixed(seed),
        evictions=tuple((rng.randrange(6),) for _ in range(6)),
        unmaps=(0, 1),
        signals=(),
        write_failures=0,
    )


@contextmanager
def rule(name: str) -> Iterator[None]:
    """The fault path keeps another rule while inside."""
    with ExitStack() as stack:
        for mutant in RULES[name]:
            stack.enter_context(alive(mutant))
        yield


def measure(name: str, schedules: int) -> Figures:
    """Run schedules under a rule."""
    found = Figures()
    with rule(name):
        for seed in range(schedules):
            rng = random.Random(seed)
            world = World(contended(seed), watch=None)
            while steps := world.steps():
                world.perform(_draw(steps, rng))
            found.tries.update(tries for tries in world.attempts if tries)
            found.waits.update(world.writer_waits)
    return found


def _draw(steps: list[Step], rng: random.Random) -> Step:
    """One of the steps; ends of reads and writes, and unmaps, are less likely than the rest."""
    weights = [1 if kind in ("io", "unmap") else SLOW for kind, _ in steps]
    return rng.choices(steps, weights)[0]


def table(schedules: int = SCHEDULES) -> list[str]:
    """The table of the documentation."""
    rows = [
        "| rule | tries per fault: mean | p99 | worst | unmap waits: mean | p99 | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in RULES:
        found = measure(name, schedules)
        rows.append(
            f"| {name} | {found.mean_tries:.2f} | {percentile(found.tries, 0.99)} "
            f"| {max(found.tries)} | {found.mean_wait:.1f} | {percentile(found.waits, 0.99)} "
            f"| {max(found.waits)} |"
        )
    return rows


def compared() -> list[str]:
    """The small scenarios under the old rule and under the mail's."""
    rows = ["| scenario | single | multiple | most tries |", "|---|---|---|---|"]
    for name in SHOWN:
        scenario = SCENARIOS[name]
        old = explore(replace(scenario, policy=RetryPolicy.SINGLE))
        new = explore(scenario)
        rows.append(f"| {name} | {_end(old)} | {_end(new)} | {max(new.attempts, default=0)} |")
    return rows


def _end(found: Exploration) -> str:
    return found.violation or f"all {found.states:,} states, no violation"


def told(policy: RetryPolicy) -> list[str]:
    """How third-retry goes under a rule."""
    found = explore(replace(SCENARIOS["third-retry"], policy=policy))
    lines, _ = replay(found.scenario, found.schedule if found.violation else found.longest)
    return ["```", *lines, "```"]


PICTURES = {
    "figures": table,
    "policies": compared,
    "single": lambda: told(RetryPolicy.SINGLE),
    "multiple": lambda: told(RetryPolicy.MULTIPLE),
}


def main() -> None:
    PAGE.write_text(drawn(PAGE.read_text(), PICTURES))


if __name__ == "__main__":
    main()

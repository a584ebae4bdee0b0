"""All scenarios, and what running one of them can result in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

from helpers.forked import run_forked

from .memory import NO_MEMORY, Kind

__all__ = [
    "SCENARIOS",
    "THIS_RUN",
    "KernelRefuses",
    "NotApplicable",
    "Outcome",
    "Scenario",
    "Verdict",
    "scenario",
]

Verdict: TypeAlias = Literal["passes", "not applicable", "kernel refuses", "fails"]
LIMIT: Final = 10.0
THIS_RUN: Final = "this run: "
"""A remark that begins so is about one run only, and is not put into the docs."""


class NotApplicable(Exception):
    """There is nothing to try here: the reason."""


class KernelRefuses(Exception):
    """The kernel, or its settings, does not let us: the reason."""


class Outcome(NamedTuple):
    verdict: Verdict
    why: str


class Scenario(NamedTuple):
    """A scenario and the kinds of memory that it is tried on.

    A scenario raises `NotApplicable`, `KernelRefuses`, or whatever says that it fails; what it
    returns is a remark to its success, or None.
    """

    numbers: tuple[int, ...]
    title: str
    kinds: tuple[Kind, ...]
    work: Callable[[Kind], str | None]
    limit: float

    @property
    def name(self) -> str:
        return "-".join(str(number) for number in self.numbers) + "-" + self.work.__name__

    def run(self, kind: Kind) -> Outcome:
        """Run it in a process of its own."""
        ended = run_forked(functools.partial(_attempt, self.work, kind), limit=self.limit)
        if ended.error:
            return Outcome("fails", ended.error)
        return Outcome(*ended.value)


def _attempt(work: Callable[[Kind], str | None], kind: Kind) -> tuple[str, str]:
    try:
        return "passes", work(kind) or ""
    except NotApplicable as reason:
        return "not applicable", str(reason)
    except KernelRefuses as reason:
        return "kernel refuses", str(reason)


SCENARIOS: Final[list[Scenario]] = []


def scenario(
    *numbers: int, title: str, kinds: tuple[Kind, ...] = NO_MEMORY, limit: float = LIMIT
) -> Callable[[Callable[[Kind], str | None]], Callable[[Kind], str | None]]:
    """Enter a function into the list."""

    def enter(work: Callable[[Kind], str | None]) -> Callable[[Kind], str | None]:
        SCENARIOS.append(Scenario(numbers, title, kinds, work, limit))
        return work

    return enter

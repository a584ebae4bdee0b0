"""Medians, spread and ratios of a few samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.model import Goal, Sample

__all__ = ["Ratio", "Spread", "Verdict", "judge", "latencies", "ratio", "spread"]


class Spread(NamedTuple):
    """Median, least and greatest value of all rounds, or of the middle half of them."""

    median: float
    low: float
    high: float


class Ratio(NamedTuple):
    """Ratio of two medians, and the range of the ratios within a round."""

    of_medians: float
    low: float
    high: float


class Verdict(NamedTuple):
    """A goal, and what was found; `met` is None if it could not be measured."""

    goal: Goal
    value: float | None
    met: bool | None


def spread(values: Sequence[float], *, middle: bool = False) -> Spread:
    """Summarise the values of all rounds; `middle`: the range is that of the middle half."""
    return Spread(statistics.median(values), *_range(values, middle=middle))


def ratio(values: Sequence[float], others: Sequence[float], *, middle: bool = False) -> Ratio:
    """Compare two contenders; values of the same round stand at the same place."""
    pairs = [one / other for one, other in zip(values, others, strict=True)]
    medians = statistics.median(values) / statistics.median(others)
    return Ratio(medians, *_range(pairs, middle=middle))


def _range(values: Sequence[float], *, middle: bool) -> tuple[float, float]:
    low, high = np.percentile(values, (25, 75) if middle else (0, 100))
    return float(low), float(high)


def judge(goal: Goal, samples: Mapping[str, Sequence[Sample]]) -> Verdict:
    """Say whether a goal is met."""
    ours = [sample[goal.measure] for sample in samples.get(goal.contender, ())]
    if not ours:
        return Verdict(goal, None, None)
    value = statistics.median(ours)
    if goal.against is not None:
        theirs = [sample[goal.measure] for sample in samples.get(goal.against, ())]
        if not theirs:
            return Verdict(goal, None, None)
        value /= statistics.median(theirs)
    met = (goal.at_most is None or value <= goal.at_most) and (
        goal.at_least is None or value >= goal.at_least
    )
    return Verdict(goal, value, met)


def latencies(ns: npt.NDArray[np.uint32]) -> dict[str, float]:
    """Summarise the time of each touch of one run, in microseconds."""
    found = np.percentile(ns, [50, 99, 100]) / 1000
    return {"p50": float(found[0]), "p99": float(found[1]), "max": float(found[2])}

"""What a benchmark consists of: comparisons of contenders, and the goals they must meet."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

__all__ = ["Comparison", "Contender", "Goal", "Measure", "Missing", "Sample", "Settings"]

Sample: TypeAlias = Mapping[str, float]
"""What one contender measured in one round, by the name of the measure."""


class Missing(Exception):
    """A contender cannot run on this machine; the message says why.  It is reported, not hidden."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How all benchmarks are run.

    Attributes
    ----------
    rounds
        How often each contender runs; a round before them is not counted.
    quick
        Tiny sizes: to see that it works, not to learn a figure.
    data
        Directory for files on disk; it is emptied afterwards.
    tmpfs
        The same in memory.
    umap
        Where UMap's programs are installed, if they are.
    cpu
        Where a thread that is pinned runs.
    """

    rounds: int
    quick: bool
    data: pathlib.Path
    tmpfs: pathlib.Path
    umap: pathlib.Path | None = None
    cpu: int = dataclasses.field(default_factory=lambda: max(os.sched_getaffinity(0)))

    def size(self, full: int, quick: int) -> int:
        """`full`, or `quick` if only tiny sizes are wanted."""
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of the things compared.

    Attributes
    ----------
    run
        Measures once.  It raises `Missing` if it cannot.
    end
        Called when a comparison is over.
    """

    name: str
    run: Callable[[], Sample]
    end: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Measure:
    """A name in every sample, and how it is shown.

    Attributes
    ----------
    label
        What is written beside the axis of a plot; by default name and unit.
    """

    name: str
    unit: str
    digits: int = 2
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What must hold: of a median itself, or of its ratio to another contender's.

    Attributes
    ----------
    at_most, at_least
        One of them is given.
    against
        Name of the other contender; None: the median itself is meant.
    why
        Where the bound comes from, if it does not speak for itself.
    """

    contender: str
    measure: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contenders that run in turn, in every round.

    Attributes
    ----------
    measures
        The ratios of the first one are printed.
    baseline
        Name of the contender that the others' ratios are printed against.
    between
        Called before each run of each contender, if what the one before leaves behind matters.
    once
        One round is enough: what is counted is the same every time.
    slices
        So many rounds, short ones, of contenders that stay; 0: as many as are asked for.  Of their
        ranges the middle half is told.
    compact
        Print medians alone.
    series
        For a growth curve: the x value of each contender, by its name.
    lines
        If there are several curves: of each contender, the one that it is a point of.
    plotted
        Names of the measures that are plotted; the first one, if none is named.
    """

    title: str
    contenders: Sequence[Contender]
    measures: Sequence[Measure]
    goals: Sequence[Goal] = ()
    baseline: str | None = None
    series: Mapping[str, float] = dataclasses.field(default_factory=dict)
    lines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    x_label: str = ""
    between: Callable[[], None] = lambda: None
    once: bool = False
    slices: int = 0
    compact: bool = False
    plotted: Sequence[str] = ()

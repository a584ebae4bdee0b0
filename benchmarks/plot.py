"""Plots of a run: every round is a dot, the median a line.  Needs matplotlib."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.run import Outcome

__all__ = ["available", "plot"]

COLUMNS = 2


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """Draw all comparisons into one file; its suffix says which kind."""
    # Not by import statements: the type checker must not want it.
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    shown = [outcome for outcome in outcomes if outcome.samples]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(8 * COLUMNS, 3.6 * rows), squeeze=False, layout="constrained"
    )
    places = [place for row in grid for place in row]
    for place, outcome in zip(places, shown, strict=False):
        if outcome.comparison.series:
            _curve(place, outcome)
        else:
            _rows(place, outcome)
        place.set_title(outcome.comparison.title, fontsize=9)
        place.grid(alpha=0.3)
    for place in places[len(shown) :]:
        place.set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _rows(place: Any, outcome: Outcome) -> None:
    measure = outcome.comparison.measures[0]
    names = [name for name, found in outcome.samples.items() if measure.name in found[0]]
    for at, name in enumerate(reversed(names)):
        values = [sample[measure.name] for sample in outcome.samples[name]]
        place.plot(values, [at] * len(values), "o", alpha=0.5, markersize=4, color="tab:blue")
        place.plot([statistics.median(values)], [at], "|", markersize=16, color="tab:red")
    place.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    place.set_xlim(left=0)
    place.set_xlabel(f"{measure.name} ({measure.unit})")


def _curve(place: Any, outcome: Outcome) -> None:
    comparison = outcome.comparison
    measure = comparison.measures[0]
    points = sorted((comparison.series[name], name) for name in outcome.samples)
    for x, name in points:
        values = [sample[measure.name] for sample in outcome.samples[name]]
        place.plot([x] * len(values), values, "o", alpha=0.5, markersize=4, color="tab:blue")
    medians = [
        statistics.median(sample[measure.name] for sample in outcome.samples[name])
        for _, name in points
    ]
    place.plot([x for x, _ in points], medians, "-", color="tab:red")
    place.set_xscale("log", base=2)
    place.set_ylim(bottom=0)
    place.set_xlabel(comparison.x_label)
    place.set_ylabel(f"{measure.name} ({measure.unit})")

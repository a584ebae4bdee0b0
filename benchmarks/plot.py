"""Plots of a run: every round is a dot, the median a line or a bar.  Needs matplotlib."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.model import Measure
from benchmarks.run import Outcome

__all__ = ["available", "plot"]

COLUMNS = 2
HEIGHT = 3.6
ROW = 0.28
"""Inches: of a panel, and of one contender's line in it if there are many."""
WIDE = 50
"""A scale is logarithmic if its greatest value is so many times the least."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """Draw all comparisons into one file; its suffix says which kind."""
    # Not by import statements: the type checker must not want it.
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    panels = [panel for outcome in outcomes for panel in _panels(outcome)]
    rows = [panels[at : at + COLUMNS] for at in range(0, len(panels), COLUMNS)] or [[]]
    heights = [max([HEIGHT, *(_height(outcome) for outcome, _ in row)]) for row in rows]
    figure, grid = pyplot.subplots(
        len(rows),
        COLUMNS,
        figsize=(8 * COLUMNS, sum(heights)),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    places = [place for row in grid for place in row]
    for place, (outcome, measure) in zip(places, panels, strict=False):
        if outcome.comparison.series:
            _curve(place, outcome, measure)
        else:
            _rows(place, outcome, measure)
        place.set_title(outcome.comparison.title, fontsize=10)
        place.grid(alpha=0.3)
    for place in places[len(panels) :]:
        place.set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panels(outcome: Outcome) -> Iterator[tuple[Outcome, Measure]]:
    """What is drawn of a comparison: each measure in a panel of its own."""
    comparison = outcome.comparison
    names = comparison.plotted or [comparison.measures[0].name]
    for measure in comparison.measures:
        if measure.name in names and _having(outcome, measure):
            yield outcome, measure


def _having(outcome: Outcome, measure: Measure) -> list[str]:
    """The contenders that have the measure."""
    return [name for name, found in outcome.samples.items() if found and measure.name in found[0]]


def _height(outcome: Outcome) -> float:
    return 0.0 if outcome.comparison.series else 1.0 + ROW * len(outcome.samples)


def _rows(place: Any, outcome: Outcome, measure: Measure) -> None:
    names = _having(outcome, measure)
    least, most = float("inf"), 0.0
    for at, name in enumerate(reversed(names)):
        values = [sample[measure.name] for sample in outcome.samples[name]]
        least, most = min(least, *values), max(most, *values)
        place.plot(values, [at] * len(values), "o", alpha=0.5, markersize=4, color="tab:blue")
        place.plot([statistics.median(values)], [at], "|", markersize=16, color="tab:red")
    place.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    place.set_ylim(-0.6, len(names) - 0.4)
    if most > WIDE * least > 0:
        place.set_xscale("log")
        _plain(place.xaxis)
    else:
        place.set_xlim(0, 1.05 * most or 1)
    place.set_xlabel(_label(measure))


def _curve(place: Any, outcome: Outcome, measure: Measure) -> None:
    comparison = outcome.comparison
    points = sorted((comparison.series[name], name) for name in _having(outcome, measure))
    lines = list(dict.fromkeys(comparison.lines.get(name, "") for name in outcome.samples))
    shown: list[float] = []
    for number, line in enumerate(lines):
        own = [point for point in points if comparison.lines.get(point[1], "") == line]
        color = f"C{number}" if comparison.lines else "tab:blue"
        medians = []
        for x, name in own:
            values = [sample[measure.name] for sample in outcome.samples[name]]
            place.plot([x] * len(values), values, "o", alpha=0.5, markersize=4, color=color)
            medians.append(statistics.median(values))
            shown += values
        color = color if comparison.lines else "tab:red"
        place.plot([x for x, _ in own], medians, "-", color=color, label=line)
    places = list(dict.fromkeys(x for x, _ in points))
    place.set_xscale("log", base=2)
    # What was measured, as it is called; no powers between.
    place.set_xticks(places, [f"{x:,g}" if x < 1e6 else f"{x:,.0f}" for x in places])
    place.set_xticks([], minor=True)
    if comparison.lines and max(shown) > WIDE * min(shown) > 0:
        place.set_yscale("log")
    else:
        place.set_ylim(min(0.0, *shown), 1.1 * max(shown))
    if comparison.lines:
        place.legend(fontsize=8)
    _plain(place.yaxis)
    place.set_xlabel(comparison.x_label)
    place.set_ylabel(_label(measure))


def _plain(axis: Any) -> None:
    """Numbers with commas instead of powers of ten."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _label(measure: Measure) -> str:
    if measure.label:
        return measure.label
    if not measure.unit or measure.unit.startswith(f"{measure.name} "):
        return measure.unit or measure.name
    return f"{measure.name} ({measure.unit})"

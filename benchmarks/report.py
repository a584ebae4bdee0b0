"""What a run says: a table per comparison, the goals, and all of it as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks.run import Outcome
from benchmarks.stats import Verdict, judge, ratio, spread

__all__ = ["as_json", "as_text", "verdicts"]


def as_text(outcome: Outcome) -> str:
    """Medians with least and greatest value, ratios to the baseline, and the goals."""
    return "\n".join(_lines(outcome))


def _lines(outcome: Outcome) -> Iterator[str]:
    comparison = outcome.comparison
    middle = comparison.slices > 0
    note = f" ({comparison.slices} slices in turn; ranges: the middle half)" if middle else ""
    yield comparison.title + note
    rows = [["", *(f"{m.name} ({m.unit})" if m.unit else m.name for m in comparison.measures)]]
    baseline = comparison.baseline
    compared = baseline in outcome.samples
    form = "{}" if comparison.compact else "{}  [{} .. {}]"
    first = comparison.measures[0].name
    if compared:
        rows[0].append(f"{first}, ratio to {baseline}")
    for one in comparison.contenders:
        samples = outcome.samples.get(one.name)
        if samples is None:
            continue
        row = [one.name]
        for measure in comparison.measures:
            if any(measure.name not in sample for sample in samples):
                row.append("-")
                continue
            found = spread([sample[measure.name] for sample in samples], middle=middle)
            row.append(form.format(*(f"{value:,.{measure.digits}f}" for value in found)))
        if compared and baseline is not None:
            others = [sample[first] for sample in outcome.samples[baseline]]
            found_ratio = ratio([sample[first] for sample in samples], others, middle=middle)
            row.append(form.format(*(f"{value:.2f}" for value in found_ratio)))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    for name, why in outcome.missing.items():
        yield f"  {name}: {why}"
    for verdict in verdicts(outcome):
        yield "  " + _sentence(verdict)


def verdicts(outcome: Outcome) -> list[Verdict]:
    """The goals of a comparison, judged."""
    return [judge(goal, outcome.samples) for goal in outcome.comparison.goals]


def _sentence(verdict: Verdict) -> str:
    goal = verdict.goal
    if goal.at_most is not None:
        bound = f"at most {goal.at_most:.4g}"
    else:
        bound = f"at least {goal.at_least:,g}"
    what = f"{goal.contender}, {goal.measure}"
    if goal.against is not None:
        what += f" / {goal.against}"
    if goal.why:
        bound += f" ({goal.why})"
    if verdict.value is None:
        return f"goal: {what}: {bound}: NOT MEASURED"
    return f"goal: {what}: {bound}: {'met' if verdict.met else 'MISSED'} ({verdict.value:.4g})"


def as_json(name: str, outcome: Outcome) -> dict[str, Any]:
    """Everything, samples included."""
    comparison = outcome.comparison
    return {
        "benchmark": name,
        "title": comparison.title,
        "measures": [dataclasses.asdict(measure) for measure in comparison.measures],
        "baseline": comparison.baseline,
        "series": dict(comparison.series),
        "lines": dict(comparison.lines),
        "x_label": comparison.x_label,
        "samples": {key: [dict(one) for one in value] for key, value in outcome.samples.items()},
        "missing": outcome.missing,
        "goals": [
            {**dataclasses.asdict(verdict.goal), "value": verdict.value, "met": verdict.met}
            for verdict in verdicts(outcome)
        ],
    }

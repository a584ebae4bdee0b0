"""Runs contenders in turn: A B A B, never all of A and then all of B."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

from benchmarks.model import Comparison, Missing, Sample

__all__ = ["Outcome", "measure"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a comparison gave.

    Attributes
    ----------
    samples
        Of each contender, one per round.
    missing
        Why a contender has none.
    """

    comparison: Comparison
    samples: dict[str, list[Sample]]
    missing: dict[str, str]


def measure(comparison: Comparison, rounds: int, *, warm_up: bool) -> Outcome:
    """Run all contenders `rounds` times, in turn.

    Parameters
    ----------
    warm_up
        Whether a round that is not counted comes first: it has the guest's memory, the
        page cache and the interpreter's files touched.
    """
    if comparison.once:
        rounds, warm_up = 1, False
    with contextlib.ExitStack() as stack:
        for one in comparison.contenders:
            stack.callback(one.end)
        return _measure(comparison, comparison.slices or rounds, warm_up=warm_up)


def _measure(comparison: Comparison, rounds: int, *, warm_up: bool) -> Outcome:
    samples: dict[str, list[Sample]] = {one.name: [] for one in comparison.contenders}
    missing: dict[str, str] = {}
    for number in range(-1 if warm_up else 0, rounds):
        for one in comparison.contenders:
            if one.name in missing:
                continue
            _progress(f"{comparison.title}: round {number + 1} of {rounds}: {one.name}")
            try:
                comparison.between()
                sample = one.run()
            except Missing as error:
                missing[one.name] = str(error)
            except Exception as error:
                # One that fails does not take the others' figures away.
                missing[one.name] = f"FAILED: {type(error).__name__}: {error}"
            else:
                if number >= 0:
                    samples[one.name].append(sample)
    _progress("")
    kept = {name: found for name, found in samples.items() if name not in missing}
    return Outcome(comparison, kept, missing)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)

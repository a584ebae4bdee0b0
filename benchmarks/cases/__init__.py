"""The benchmarks: one module each, whose docstring says what is compared and why it is fair."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from benchmarks.model import Comparison, Settings

__all__ = ["NAMES", "load", "summary"]

NAMES = [
    "fault_cost",
    "pfbenchmark",
    "sort",
    "sequential",
    "zipf",
    "policies",
    "remote",
    "isolation",
    "threads16",
    "sparse",
    "start",
    "growth",
    "snapshots",
    "checkpoints",
    "matrix",
    "chunked",
]


def load(name: str) -> Callable[[Settings], Iterator[Comparison]]:
    """The function of a benchmark that makes its comparisons."""
    found: Callable[[Settings], Iterator[Comparison]]
    found = importlib.import_module(f"benchmarks.cases.{name}").comparisons
    return found


def summary(name: str) -> str:
    """The first line of a benchmark's docstring."""
    text = importlib.import_module(f"benchmarks.cases.{name}").__doc__ or ""
    return text.partition("\n")[0]

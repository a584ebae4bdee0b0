"""Imports every scenario, so that `registry.SCENARIOS` is complete."""

from __future__ import annotations

from . import (
    events,
    filling,
    forking,
    guarding,
    minor,
    moving,
    opening,
    remapping,
    rwp,
    scanning,
    sigbus,
    stress,
    unpopulated,
)
from .registry import SCENARIOS

__all__ = ["SCENARIOS"]

SCENARIOS.sort(key=lambda entry: entry.numbers)
_MODULES = (
    events,
    filling,
    forking,
    guarding,
    minor,
    moving,
    opening,
    remapping,
    rwp,
    scanning,
    sigbus,
    stress,
    unpopulated,
)

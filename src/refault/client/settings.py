"""What the environment says; this is the only place that reads it."""

from __future__ import annotations

import os
from typing import NamedTuple

from refault.sizes import parse_size

__all__ = ["Settings", "read_settings"]


class Settings(NamedTuple):
    """Settings of the process.

    Attributes
    ----------
    resident
        ``REFAULT_RESIDENT``: budget of all regions of the process together, bytes;
        None if it is not set.
    """

    resident: int | None


def read_settings() -> Settings:
    """Read the ``REFAULT_*`` variables."""
    text = os.environ.get("REFAULT_RESIDENT", "")
    return Settings(resident=parse_size(text, name="REFAULT_RESIDENT") if text else None)

"""In which order a mapping's reads and writes are done, where they cannot all be done at once."""

from __future__ import annotations

import enum

__all__ = ["Urgency"]


class Urgency(enum.IntEnum):
    """What goes first in the lane of a mapping."""

    DEMAND = 0
    """Somebody waits for it."""
    WRITE = 1
    """Changes are written back; who needs the memory waits for it."""
    AHEAD = 2
    """A read that nobody waits for yet."""

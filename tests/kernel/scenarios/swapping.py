"""Whether this machine can swap.  The tests turn no swap on: that is for the whole machine."""

from __future__ import annotations

__all__ = ["NO_SWAP", "has_swap"]

NO_SWAP = "this machine has no swap"


def has_swap() -> bool:
    with open("/proc/swaps") as file:
        return len(file.readlines()) > 1

"""How much the demo does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from refault.sizes import format_size

__all__ = ["FULL", "QUICK", "Plan"]

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes in bytes; what takes long on a slow machine is bounded by `seconds`."""

    zeros_shape: tuple[int, ...] = (1 << 34,)
    """Of 4 bytes each: 64 GiB."""
    zeros_resident: int
    least_places: int
    """That are written to at random; each is in a page of its own, or nearly so."""
    most_places: int
    seconds: float
    """How long to write more than the least."""
    least_stretch: int
    most_stretch: int
    """Written and read in order."""

    file_bytes: int
    file_resident: int

    store_bytes: int
    store_resident: int

    def introduction(self) -> str:
        """What is going to happen, in plain words."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        zeros = self.zeros_shape[0] * 4
        return (
            f"An array of {format_size(zeros)}, on a machine with {format_size(memory)}, of which"
            f" it may use {format_size(self.zeros_resident)};\n"
            f"a .npy file of {format_size(self.file_bytes)}, changed in place in"
            f" {format_size(self.file_resident)}; a store that fails now and then.\n"
            "Every byte that is touched is compared with what it should be."
        )


FULL: Final = Plan(
    zeros_resident=256 * MIB,
    least_places=8 << 10,
    most_places=32 << 10,
    seconds=5.0,
    least_stretch=512 * MIB,
    most_stretch=1024 * MIB,
    file_bytes=512 * MIB,
    file_resident=64 * MIB,
    store_bytes=64 * MIB,
    store_resident=8 * MIB,
)

QUICK: Final = Plan(
    zeros_resident=16 * MIB,
    least_places=1 << 10,
    most_places=1 << 10,
    seconds=0.5,
    least_stretch=64 * MIB,
    most_stretch=64 * MIB,
    file_bytes=64 * MIB,
    file_resident=8 * MIB,
    store_bytes=16 * MIB,
    store_resident=4 * MIB,
)

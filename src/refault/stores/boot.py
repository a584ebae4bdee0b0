"""Which boot of the machine this is.

What was written and not synced is safe from a killed process, and not from a machine
that goes down.  So what says that it is there says in which boot.
"""

from __future__ import annotations

import functools
from pathlib import Path

__all__ = ["BOOT_LENGTH", "this_boot"]

BOOT_LENGTH = 36


@functools.cache
def this_boot() -> bytes:
    """Name it, in `BOOT_LENGTH` bytes."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()[:BOOT_LENGTH]

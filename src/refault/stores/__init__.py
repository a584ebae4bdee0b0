"""Where pages come from and go to: files, patterns, swap, servers, objects of the user.

The stores that users make themselves are here by name; each is imported when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diskcache import DiskCache
    from .overlay import Overlay
    from .path import File
    from .redis import Redis

__all__ = ["DiskCache", "File", "Overlay", "Redis"]

_HOMES = {"DiskCache": "diskcache", "File": "path", "Overlay": "overlay", "Redis": "redis"}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value

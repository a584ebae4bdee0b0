"""Where pages come from and go to: files, patterns, swap, objects of the user, far places.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cloud import Obstore
    from .filesystems import Fsspec
    from .remote import Policy, RemoteStore

__all__ = ["Fsspec", "Obstore", "Policy", "RemoteStore"]

_HOMES = {
    "Fsspec": "filesystems",
    "Obstore": "cloud",
    "Policy": "remote",
    "RemoteStore": "remote",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

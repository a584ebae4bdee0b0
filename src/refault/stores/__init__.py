"""Where pages come from and go to: files, patterns, swap, servers, objects of the user, far places.

The stores that users make themselves are here by name; each is imported when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refault.lazy import lazily

if TYPE_CHECKING:
    from .cloud import Obstore
    from .diskcache import DiskCache
    from .filesystems import Fsspec
    from .overlay import Overlay
    from .path import File
    from .redis import Redis
    from .remote import Policy, RemoteStore

__all__ = ["DiskCache", "File", "Fsspec", "Obstore", "Overlay", "Policy", "Redis", "RemoteStore"]

_HOMES = {
    "DiskCache": "diskcache",
    "File": "path",
    "Fsspec": "filesystems",
    "Obstore": "cloud",
    "Overlay": "overlay",
    "Policy": "remote",
    "Redis": "redis",
    "RemoteStore": "remote",
}

__getattr__, __dir__ = lazily(globals(), _HOMES)

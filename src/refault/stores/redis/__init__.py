"""Far memory: an array whose bytes are held by a Redis or Valkey server, or a cluster of them."""

from __future__ import annotations

from .store import Redis
from .url import open_url

__all__ = ["Redis", "open_url"]

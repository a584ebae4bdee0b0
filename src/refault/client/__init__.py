"""The side of the user's program: arrays, regions, and the connection to the pager."""

from __future__ import annotations

__all__: list[str] = []

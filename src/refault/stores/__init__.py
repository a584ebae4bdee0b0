"""Where pages come from and go to: files, patterns, swap, objects of the user."""

from __future__ import annotations

__all__: list[str] = []

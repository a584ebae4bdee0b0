"""What the tests share.  `child` is for everything that can hang."""

from __future__ import annotations

__all__: list[str] = []

"""Incremental checkpoints: versions of a program's arrays, in Icechunk, as plain Zarr.

`checkpoints` is what users hold; `saver` writes one instant; `store` is read by the pager, and
imports neither numpy nor zarr.
"""

from __future__ import annotations

__all__: list[str] = []

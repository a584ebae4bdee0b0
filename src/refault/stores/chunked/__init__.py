"""Chunked arrays as stores: Zarr, HDF5, Blosc2; the libraries decode, this pages."""

from __future__ import annotations

import os
from typing import Any

from .arrays import Place, Remote
from .finding import find_object, find_path
from .hdf5 import Hdf5Place, plain_part
from .store import ChunkedStore

__all__ = [
    "ChunkedStore",
    "Hdf5Place",
    "Place",
    "Remote",
    "find",
    "plain_part",
]


def find(
    array: Any, *, key: str | None = None, writable: bool = False, remote: Remote | None = None
) -> Place:
    """Where a chunked array is that is given as an object of its library, or by its path or URL."""
    if isinstance(array, str | os.PathLike):
        return find_path(os.fsdecode(array), key, remote, writable=writable)
    return find_object(array, key, writable=writable)

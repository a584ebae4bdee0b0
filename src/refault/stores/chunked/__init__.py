"""Chunked arrays as stores: Zarr, HDF5, Blosc2; the libraries decode, this pages."""

from __future__ import annotations

import os
from typing import Any

from .arrays import Place
from .finding import find_object, find_path, is_chunked, library_of
from .hdf5 import Hdf5Place, plain_part
from .store import ChunkedStore

__all__ = [
    "ChunkedStore",
    "Hdf5Place",
    "Place",
    "find",
    "is_chunked",
    "library_of",
    "plain_part",
]


def find(array: Any, *, key: str | None = None, writable: bool = False) -> Place:
    """Where a chunked array is that is given as an object of its library, or by its path."""
    if isinstance(array, str | os.PathLike):
        return find_path(os.fsdecode(array), key, writable=writable)
    return find_object(array, key, writable=writable)

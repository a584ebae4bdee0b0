"""Arrays on Zarr, HDF5 and Blosc2."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from refault.client.files import open_file
from refault.client.options import Options
from refault.client.region import Layout
from refault.client.source import Wanted, check_agreement
from refault.client.urls import SCHEMES, scheme
from refault.client.userstores import open_store
from refault.errors import UsageError
from refault.sizes import Size, format_size, parse_size
from refault.stores.chunked import (
    ChunkedStore,
    Hdf5Place,
    Remote,
    find,
    plain_part,
)

__all__ = ["open_chunked"]

UNIT_BYTES = (512 << 10, 256 << 10)
LEAST_UNITS = 64
"""The larger page units that a budget has room for so many of; else they are as for any array."""


def open_chunked(
    thing: Any,
    wanted: Wanted,
    *,
    key: str | None,
    chunk_cache: Size | None,
    storage_options: Mapping[str, Any],
) -> npt.NDArray[Any]:
    """Return an array on a chunked array.

    Raises
    ------
    UsageError
        It cannot be opened as it is wanted.
    """
    remote = None
    if isinstance(thing, str | os.PathLike):
        kind = scheme(os.fsdecode(thing))
        if kind is not None:
            remote = Remote(kind in SCHEMES, storage_options)
    if storage_options and remote is None:
        raise UsageError(f"{thing}: has no URL, and takes no storage_options")
    if wanted.mode == "w+":
        raise UsageError(
            f"{thing}: mode 'w+' cannot make an array in chunks; make it with its own library, and"
            " open it with 'r+'"
        )
    place = find(thing, key=key, writable=wanted.mode == "r+", remote=remote)
    if isinstance(place, Hdf5Place) and wanted.mode != "r+" and wanted.order == "C":
        plain = plain_part(place)
        if plain is not None:
            # Its elements lie in the file as in memory.
            layout = Layout(plain.dtype, plain.shape, "C")
            check_agreement(wanted, layout, place.name, "HDF5")
            return open_file(place.path, wanted._replace(**plain._asdict()))
    store = ChunkedStore(
        place,
        writable=wanted.mode == "r+",
        order="F" if wanted.order == "F" else None,
        cache=None if chunk_cache is None else parse_size(chunk_cache, name="chunk_cache"),
    )
    if store.band_bytes > store.cache_bytes:
        warnings.warn(
            f"{store.name}: its chunks {store.facts.chunks} lie across the order of its elements;"
            f" a read in order needs chunk_cache={format_size(store.band_bytes)!r}, and decodes"
            f" chunks again and again with the {format_size(store.cache_bytes)} there are",
            stacklevel=3,
        )
    return open_store(store, wanted._replace(options=_units(wanted.options)))


def _units(options: Options) -> Options:
    """Large page units, unless something else was said: a small part of a chunk costs as much."""
    if options.page_size is not None:
        return options
    for size in UNIT_BYTES:
        if options.resident is None or options.resident >= LEAST_UNITS * size:
            return options._replace(page_size=size)
    return options

"""What `refault.open` was given: is it a chunked array, and of which library?"""

from __future__ import annotations

import os
from typing import Any

from refault.errors import UsageError

from ..recognizing import HDF5_SUFFIXES, library_of
from ..remote import public
from .arrays import Place, Remote, require, wrong_key
from .blosc2s import Blosc2Place, place_of_blosc2
from .hdf5 import Hdf5Place, find_dataset, opened, place_of_hdf5
from .zarrs import open_zarr, place_of_zarr

__all__ = ["find_object", "find_path"]


def find_object(thing: Any, key: str | None, *, writable: bool) -> Place:
    """Where an array is that was given as an object of its library, or in a group of it.

    Raises
    ------
    UsageError
        It is no array, there is none with that key, or another process cannot open it.
    """
    library = library_of(thing)
    if library == "blosc2":
        _no_key(thing, key, is_array=isinstance(thing, require("blosc2", "blosc2").NDArray))
        return place_of_blosc2(thing)
    if library == "h5py":
        h5py = require("h5py", "hdf5")
        if not thing:
            raise UsageError(f"{thing!r}: its file has been closed; give its path, and key")
        if isinstance(thing, h5py.Group):
            thing = find_dataset(h5py, thing, key, str(thing.file.filename))
        else:
            _no_key(thing, key, is_array=isinstance(thing, h5py.Dataset))
        return place_of_hdf5(thing, writable=writable)
    zarr = require("zarr", "zarr")
    if isinstance(thing, zarr.Group):
        thing = _in_group(zarr, thing, key)
    else:
        _no_key(thing, key, is_array=isinstance(thing, zarr.Array))
    return place_of_zarr(thing, writable=writable)


def find_path(path: str, key: str | None, remote: Remote | None, *, writable: bool) -> Place:
    """Where an array is that was given by its path or URL, and perhaps the key in it.

    Raises
    ------
    UsageError
        There is no such array.
    """
    if path.endswith((".b2nd", *HDF5_SUFFIXES)) and remote is not None:
        raise UsageError(
            f"{public(path)}: HDF5 and Blosc2 are read from local files only; copy it, or store the"
            " array as Zarr"
        )
    if path.endswith(".b2nd"):
        _no_key(path, key, is_array=True)
        return Blosc2Place(os.path.abspath(path))
    if path.endswith(HDF5_SUFFIXES) or (key is not None and os.path.isfile(path)):
        with opened(path) as file:
            dataset = find_dataset(require("h5py", "hdf5"), file, key, path)
            return Hdf5Place(os.path.abspath(dataset.file.filename), dataset.name)
    zarr = require("zarr", "zarr")
    found = open_zarr(path, remote)
    if isinstance(found, zarr.Group):
        found = _in_group(zarr, found, key)
    else:
        _no_key(path, key, is_array=True)
    return place_of_zarr(found, writable=writable)


def _in_group(zarr: Any, group: Any, key: str | None) -> Any:
    """An array of a Zarr group; without a key, the only one there is."""
    if key is not None:
        found = group.get(key.strip("/"))
        if isinstance(found, zarr.Array):
            return found
    members = {
        name: one for name, one in group.members(max_depth=None) if isinstance(one, zarr.Array)
    }
    if key is None and len(members) == 1:
        return next(iter(members.values()))
    raise UsageError(wrong_key(f"zarr group {group.store_path}", key, members))


def _no_key(thing: object, key: str | None, *, is_array: bool) -> None:
    if not is_array:
        raise UsageError(
            f"{thing!r}: a {type(thing).__name__} is no array that can be opened; give the array"
            " itself, or its path"
        )
    if key is not None:
        raise UsageError(f"{thing}: is an array, and has no key={key!r} in it; leave key out")

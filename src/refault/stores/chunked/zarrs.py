"""Zarr arrays, version 2 and 3, in whatever store zarr-python can read; also inside Icechunk.

Some facts about zarr-python
----------------------------
* A chunk that is not there has the fill value: that is how Zarr stores it.  But a chunk is not
  there either when the whole array has been deleted, or its disk has been unmounted.  So where
  nothing but the fill value was read, we look whether the array itself is still there.
* Its event loop may hold an array that it was told to read into for longer than the call lasts.
  So what it reads is copied.
* Reads from several threads run side by side, and chunks are decoded in threads.  But what is done
  around a codec costs as much CPU as the codec; so it is not asked where that is certain (`plain`).
* A local store does not fsync.  So `flush` does, for the whole filesystem.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refault.errors import StoreError, UsageError

from ..clients import Recipe, store_from_url
from ..cloud import object_name
from ..remote import Policy, public
from .arrays import Empty, Facts, Remote, check_dtype, require, sync
from .grid import Rectangle, extents
from .plain import plain_chunks

__all__ = ["ZarrArray", "ZarrPlace", "open_zarr", "place_of_zarr"]

TOGETHER_BYTES = 32 << 20
"""The most that is read with one call, which reads and decodes several chunks at a time."""

_HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class ZarrPlace(NamedTuple):
    """A path in a store of zarr-python.

    Attributes
    ----------
    store
        One that can be pickled, or how to make the client of one on obstore.
    format
        Version of the Zarr format.
    """

    name: str
    store: Any
    path: str
    format: int

    @property
    def far(self) -> bool:
        return _folder(self.store) is None

    def make_store(self, *, writable: bool) -> Any:
        """The store, in this process."""
        if isinstance(self.store, Recipe):
            client = self.store.make(Policy().timeout)
            return require("zarr.storage", "zarr").ObjectStore(client, read_only=not writable)
        return self.store

    def open(self, *, writable: bool) -> ZarrArray:
        """Open it."""
        return ZarrArray(self, writable=writable)


class ZarrArray:
    """See `ChunkedArray`."""

    def __init__(self, place: ZarrPlace, *, writable: bool) -> None:
        self._place = place
        self._local = _folder(place.store)
        self._store = place.make_store(writable=writable)
        self._array = self._open("r+" if writable else "r")
        array = self._array
        # Icechunk's.
        session = getattr(self._store, "session", None)
        dtype = check_dtype(array.dtype, place.name)
        chunks = tuple(int(length) for length in array.chunks)
        self.facts = Facts(
            dtype,
            tuple(int(length) for length in array.shape),
            chunks,
            tuple(int(length) for length in array.shards or chunks),
            "F" if array.order == "F" else "C",
            None if session is None else session.snapshot_id,
            TOGETHER_BYTES,
        )
        self._plain = plain_chunks(array)
        fill = np.zeros((), dtype) if array.fill_value is None else array.fill_value
        self._fill = np.asarray(fill, dtype).tobytes()

    def _open(self, mode: str) -> Any:
        zarr = require("zarr", "zarr")
        try:
            return zarr.open_array(
                self._store,
                path=self._place.path,
                mode=mode,
                zarr_format=self._place.format,
            )
        except Exception as error:
            raise UsageError(
                f"{self._place.name}: cannot be opened as a Zarr array:"
                f" {type(error).__name__}: {error}; see whether it is still there"
            ) from error

    def read(self, rectangle: Rectangle, empty: Empty = np.empty) -> npt.NDArray[Any]:
        if self._plain is not None:
            out = empty(extents(rectangle), self.facts.dtype)
            if self._plain.read_into(rectangle, out):
                return out
        return self._read(rectangle)

    def read_into(self, rectangle: Rectangle, out: npt.NDArray[Any]) -> None:
        if self._plain is None or not self._plain.read_into(rectangle, out):
            out[...] = self._read(rectangle)

    def _read(self, rectangle: Rectangle) -> npt.NDArray[Any]:
        """Have zarr read."""
        found = np.asarray(self._array[rectangle], self.facts.dtype, order="C")
        if found.size and self._is_fill(found):
            self._check_there()
        return found

    def _is_fill(self, values: npt.NDArray[Any]) -> bool:
        """Whether there is nothing but the fill value."""
        found = values.reshape(-1).view(np.uint8).reshape(-1, len(self._fill))
        if found[0].tobytes() != self._fill or found[-1].tobytes() != self._fill:
            return False
        return bool((found == np.frombuffer(self._fill, np.uint8)).all())

    def _check_there(self) -> None:
        """See that the array is there.

        Raises
        ------
        StoreError
            It is not: what was read is not the fill value of chunks that were never written.
        """
        try:
            found = self._open("r")
        except UsageError as error:
            raise StoreError(str(error), permanent=self._local is not None) from error
        if found.metadata.to_dict() != self._array.metadata.to_dict():
            raise StoreError(
                f"{self._place.name}: has become another array; open it again", permanent=True
            )

    def write(self, rectangle: Rectangle, values: npt.NDArray[Any]) -> None:
        self._array[rectangle] = values

    def flush(self) -> None:
        if self._local is not None:
            sync(self._local)

    def close(self) -> None:
        """There is nothing that must be closed: the store may be used by other arrays."""

    def is_permanent(self, error: BaseException) -> bool:
        # A damaged chunk on a local disk stays so; over a network it may come whole next time.
        if isinstance(error, _HOPELESS):
            return True
        if isinstance(error, OSError) and error.errno is not None:
            return False
        return self._local is not None and not isinstance(error, asyncio.TimeoutError | MemoryError)


def place_of_zarr(array: Any, *, writable: bool) -> ZarrPlace:
    """Where an array of the caller's is.

    Raises
    ------
    UsageError
        Another process cannot open it, or may not write to it.
    """
    store = array.store
    where = f"{store}/{array.path}" if array.path else str(store)
    storage = require("zarr.storage", "zarr")
    innermost = store
    while isinstance(innermost, storage.WrapperStore):
        innermost = innermost._store
    if isinstance(innermost, storage.MemoryStore) or _in_memory(innermost):
        raise UsageError(
            f"{where}: is in the memory of this process, and pages come from another one; it fits"
            " into memory, so use array[:], or save it to a folder"
        )
    session = getattr(innermost, "session", None)
    if session is not None:
        if writable:
            raise UsageError(
                f"{where}: a session of Icechunk cannot be written to by two processes; open it"
                " with mode 'c', write the result to the array, and commit"
            )
        if not session.read_only:
            raise UsageError(
                f"{where}: has uncommitted changes or may get some, which only this process sees;"
                " commit, and open it from repository.readonly_session(...)"
            )
    if isinstance(store, storage.LocalStore):
        store = storage.LocalStore(Path(store.root).absolute(), read_only=not writable)
        where = os.path.join(store.root, array.path) if array.path else str(store.root)
    elif isinstance(store, storage.ZipStore):
        if writable or not store.read_only:
            raise UsageError(
                f"{where}: a zip file cannot be changed in place, and is whole only when it is"
                " closed; close it, and open it with mode 'r'"
            )
    elif isinstance(innermost, storage.ObjectStore):
        where = object_name(innermost.store, array.path)
        store = Recipe.of(innermost.store)
    elif writable and store.read_only:
        store = store.with_read_only(False)
    return ZarrPlace(where, store, array.path, array.metadata.zarr_format)


def open_zarr(path: str, remote: Remote | None) -> Any:
    """Open an array or group by its path or URL.

    Raises
    ------
    UsageError
        There is none.
    """
    zarr = require("zarr", "zarr")
    where: Any = path
    inside = ""
    more: dict[str, Any] = {}
    try:
        if remote is not None and remote.with_obstore:
            store, inside = store_from_url(path, remote.storage_options)
            where = zarr.storage.ObjectStore(store, read_only=True)
        elif remote is not None:
            more["storage_options"] = dict(remote.storage_options)
        return zarr.open(where, path=inside, mode="r", **more)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{public(path)}: cannot be opened as Zarr: {type(error).__name__}: {error}; check the"
            " path"
        ) from error


def _in_memory(store: Any) -> bool:
    """Whether it is a store of fsspec or obstore on a dictionary."""
    protocol = getattr(getattr(store, "fs", None), "protocol", ())
    name = type(getattr(store, "store", None)).__name__
    return "memory" in protocol or name == "MemoryStore"


def _folder(store: Any) -> str | None:
    root = getattr(store, "root", None)
    if isinstance(root, Path):
        return os.fspath(root)
    path = getattr(store, "path", None)
    return os.fspath(path) if isinstance(path, Path) else None

"""Blosc2 arrays (``.b2nd``), through python-blosc2.

Some facts about python-blosc2
------------------------------
* It holds the GIL while it decodes (4.14), in whatever call that decodes a part of an array.  So
  what nobody changes is read with the C library itself, if that is there (`blosc2lib`).
* It reads and decodes no more of a chunk than the *blocks* that are asked for.  A row of blocks, of
  all chunks side by side, costs no more than the same bytes in whole chunks.
* An array object has one context for decoding: it is for one thread at a time.
* What was written is in the file when the call returns, but not on the disk.
"""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refault.errors import UsageError

from .arrays import Empty, Facts, FileVersion, check_dtype, require, sync
from .blosc2lib import Handles, library
from .grid import Rectangle, extents

__all__ = ["Blosc2Array", "Blosc2Place", "place_of_blosc2"]

TOGETHER_BYTES = 2 << 20
"""The most that is decoded with one call."""


class Blosc2Place(NamedTuple):
    """A file, or a folder of a sparse frame."""

    path: str

    @property
    def name(self) -> str:
        return self.path

    @property
    def far(self) -> bool:
        return False

    def open(self, *, writable: bool) -> Blosc2Array:
        """Open it."""
        return Blosc2Array(self, writable=writable)


class Blosc2Array:
    """See `ChunkedArray`."""

    def __init__(self, place: Blosc2Place, *, writable: bool) -> None:
        blosc2 = require("blosc2", "blosc2")
        self._path = place.path
        if not os.path.exists(place.path):
            raise FileNotFoundError(2, "there is no such file", place.path)
        try:
            array = blosc2.open(place.path, mode="a" if writable else "r")
        except Exception as error:
            raise UsageError(
                f"{place.path}: cannot be opened as a Blosc2 array: {error}; see whether it is one"
            ) from error
        if not isinstance(array, blosc2.NDArray):
            raise UsageError(
                f"{place.path}: is a {type(array).__name__} of Blosc2, not an NDArray; save it as"
                " one with blosc2.asarray"
            )
        self._array: Any = array
        dtype = check_dtype(array.dtype, place.name)
        self._version = None if writable else FileVersion(place.path)
        version = None if self._version is None else str(self._version)
        self.facts = Facts(
            dtype,
            array.shape,
            array.blocks,
            array.chunks,
            version=version,
            together=TOGETHER_BYTES,
        )
        self._lock = threading.Lock()
        found = None if writable or not array.ndim else library()
        self._handles = None if found is None else Handles(found, place.path)

    def read(self, rectangle: Rectangle, empty: Empty = np.empty) -> npt.NDArray[Any]:
        out = empty(extents(rectangle), self.facts.dtype)
        self.read_into(rectangle, out)
        return out

    def read_into(self, rectangle: Rectangle, out: npt.NDArray[Any]) -> None:
        # What is wrong is told by python-blosc2, which is asked again.
        if out.size and not (self._handles is not None and self._handles.read_into(rectangle, out)):
            bounds = [axis.start for axis in rectangle], [axis.stop for axis in rectangle]
            with self._lock:
                self._array.get_slice_numpy(out, bounds)
        if self._version is not None:
            self._version.check()

    def write(self, rectangle: Rectangle, values: npt.NDArray[Any]) -> None:
        with self._lock:
            self._array[rectangle] = np.asarray(values)

    def flush(self) -> None:
        sync(self._path)

    def close(self) -> None:
        """Free what the C library has; files are open only while they are read."""
        if self._handles is not None:
            self._handles.close()

    def is_permanent(self, error: BaseException) -> bool:
        return not (isinstance(error, MemoryError) or getattr(error, "errno", None))


def place_of_blosc2(array: Any) -> Blosc2Place:
    """Where an array of the caller's is.

    Raises
    ------
    UsageError
        It is in memory.
    """
    path = array.schunk.urlpath
    if path is None:
        raise UsageError(
            "this Blosc2 array is in the memory of this process, and pages come from another one;"
            " save it with array.save(path)"
        )
    return Blosc2Place(os.path.abspath(path))

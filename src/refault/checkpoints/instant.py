"""The arrays of a save, as they were at one instant."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from refault.client.copying import SharedBuffer, read_snapshot
from refault.client.marks import Mark
from refault.client.region import Region, region
from refault.client.snapshot import Snapshot, snapshot
from refault.errors import UsageError

__all__ = ["Instant", "Place", "place_of"]


Bytes: TypeAlias = npt.NDArray[np.uint8]


class Place(NamedTuple):
    """Which memory an array lies in."""

    region: weakref.ref[Region]
    address: int


def place_of(array: npt.NDArray[Any]) -> Place | None:
    """Where an array lies; None if not in a region."""
    try:
        found = region(array)
    except UsageError:
        return None
    return Place(weakref.ref(found), array.__array_interface__["data"][0])


class Instant:
    """One instant of several arrays.

    Those that lie in regions are taken by one snapshot; then the others are copied.

    Parameters
    ----------
    arrays
        By name.  Each is one piece of memory.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = dict(arrays)
        self.places = {name: place_of(array) for name, array in arrays.items()}
        paged = [array for name, array in arrays.items() if self.places[name] is not None]
        self._snapshot: Snapshot | None = snapshot(*paged) if paged else None
        self._buffers: list[SharedBuffer] = []
        try:
            self._copied = {
                name: _as_bytes(array.copy(order="K"))
                for name, array in arrays.items()
                if self.places[name] is None
            }
        except BaseException:
            self.close()
            raise

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
        """Yield some parts of an array's memory, each good until the last one has been looked at.

        Parameters
        ----------
        name
            Of the array.
        spans
            First byte of each part, and the one behind the last.

        Raises
        ------
        StoreError
            A page could not be read.
        """
        if self._snapshot is None or self.places[name] is None:
            whole = self._copied[name]
            for start, stop in spans:
                yield whole.data[start:stop]
            return
        total = sum(stop - start for start, stop in spans)
        buffer = self._buffer(total)
        read_snapshot(self._snapshot, self._arrays[name], list(spans), buffer)
        at = 0
        for start, stop in spans:
            yield buffer.data[at : at + stop - start]
            at += stop - start
        self._buffers.append(buffer)

    def _buffer(self, length: int) -> SharedBuffer:
        """One that was used before, if it is long enough."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            return SharedBuffer(length)
        return buffer if len(buffer) >= length else SharedBuffer(length)

    def changed(self, name: str, since: Mark) -> list[tuple[int, int]]:
        """Which bytes of an array have been written to since a mark."""
        assert self._snapshot is not None
        return self._snapshot.changed(self._arrays[name], since)

    def mark(self, name: str) -> Mark | None:
        """Return the mark of this instant; None for an array that lies in no region."""
        if self._snapshot is None or self.places[name] is None:
            return None
        return self._snapshot.mark(self._arrays[name])

    def close(self) -> None:
        """Give the snapshot back."""
        self._copied = {}
        self._arrays = {}
        self._buffers = []
        if self._snapshot is not None:
            self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Somebody will keep the error, which has our arrays in the frames that it came through.
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        self.close()


def _as_bytes(array: npt.NDArray[Any]) -> Bytes:
    flat = array if array.flags.c_contiguous else array.T
    return flat.reshape(-1).view(np.uint8)

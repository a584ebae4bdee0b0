"""The arrays of a save, as they were at one instant."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from refault.client.libc import read_memory
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
        try:
            self._bytes = {name: self._as_bytes(name, array) for name, array in arrays.items()}
        except BaseException:
            self.close()
            raise

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
        """Yield some parts of an array's memory, and wait for them without the GIL.

        Parameters
        ----------
        name
            Of the array.
        spans
            First byte of each part, and the one behind the last.

        Raises
        ------
        StoreError
            A page could not be read; it would be a SIGBUS if the page was just touched.
        """
        whole = self._bytes[name]
        if self.places[name] is None:
            for start, stop in spans:
                yield whole.data[start:stop]
            return
        buffer = np.empty(sum(stop - start for start, stop in spans), np.uint8)
        base = whole.ctypes.data
        if not read_memory([(base + a, b - a) for a, b in spans], buffer.ctypes.data):
            self._read_slowly(whole, spans, buffer)
        at = 0
        for start, stop in spans:
            yield buffer.data[at : at + stop - start]
            at += stop - start

    def _read_slowly(self, whole: Bytes, spans: Sequence[tuple[int, int]], buffer: Bytes) -> None:
        at = 0
        for start, stop in spans:
            part = whole[start:stop]
            region(part).populate(part)
            buffer[at : at + len(part)] = part
            at += len(part)

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
        self._bytes = {}
        self._arrays = {}
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

    def _as_bytes(self, name: str, array: npt.NDArray[Any]) -> Bytes:
        if self.places[name] is None or self._snapshot is None:
            frozen: npt.NDArray[Any] = array.copy(order="K")
        else:
            frozen = self._snapshot[array]
        flat = frozen if frozen.flags.c_contiguous else frozen.T
        return flat.reshape(-1).view(np.uint8)

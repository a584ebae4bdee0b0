"""A chunked array as a store: the bytes that it would have in memory."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from refault.errors import StoreError

from .arrays import ChunkedArray, Place
from .cache import BlockCache
from .grid import (
    Rectangle,
    block_shape,
    extents,
    in_rows,
    inside,
    intersection,
    overlapping,
    rectangles,
    tiles,
)
from .locks import ChunkLocks

__all__ = ["ChunkedStore"]

Of = TypeVar("Of")

BLOCK_BYTES = 256 << 10
"""Chunks are read together until there are so many bytes: a call of a library costs about 1 ms."""
PARALLEL = 8
READ_BYTES = 1 << 20
"""So many reads of so many bytes at a time: what is read ahead should have several chunks."""
LEAST_WRITE_BYTES = 64 << 10
"""The same for what is written: no more than a page unit, so that not much else is encoded anew."""
WRITE_BYTES = 16 << 20
"""The most that is encoded with one call, if a chunk is not larger."""
CACHE_BYTES = 64 << 20
"""The least that is kept of decoded blocks, if nothing else is said."""
MEMORY_SHARE = 16
"""The most that is kept, if nothing else is said: this part of the machine's memory."""
SPARE_BLOCKS = 8
"""Blocks beside those of one band: as many as are decoded at the same time."""


class ChunkedStore:
    """The bytes of an N-dimensional array that a library keeps in chunks.

    Parameters
    ----------
    place
        Where the array is.  It is opened here, and again wherever the store is unpickled.
    writable
        Whether it may be changed.
    order
        How the elements lie: "C", "F", or None for the array's own order.
    cache
        Bytes of decoded chunks that are kept.  None: as many as a sequential read needs, at least
        64 MiB, at most a sixteenth of the machine's memory.

    Attributes
    ----------
    dtype, shape, order
        Of the array; `refault.open` takes them from here.
    """

    parallel = PARALLEL
    read_bytes = READ_BYTES

    def __init__(
        self, place: Place, *, writable: bool, order: str | None = None, cache: int | None = None
    ) -> None:
        self.place = place
        self.writable = writable
        array = place.open(writable=writable)
        # It must not stay open here: who writes to a file of HDF5 must be alone.
        array.close()
        self.facts = array.facts
        self.order = order or self.facts.order
        self._prepare(cache)

    def __getstate__(self) -> dict[str, Any]:
        names = ("place", "writable", "facts", "order")
        return {name: getattr(self, name) for name in names} | {"cache": self._cache.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state.pop("cache")
        self.__dict__.update(state)
        self._prepare(cache)
        # Now, so that what is wrong is told when the array is opened, and not when it is touched.
        self._opened()

    def _prepare(self, cache: int | None) -> None:
        self._array: ChunkedArray | None = None
        self._opening = threading.Lock()
        self._locks = ChunkLocks()
        self._failed: BaseException | None = None
        # The array is seen so that its last axis is the one that lies together.
        facts = self.facts
        self._axes = self._turned(facts.shape)
        size = self.dtype.itemsize
        self._block = block_shape(self._axes, self._turned(facts.chunks), size, BLOCK_BYTES)
        chunks = self._turned(facts.write_chunks)
        self._write_block = block_shape(self._axes, chunks, size, LEAST_WRITE_BYTES)
        limit = self._cache_bytes() if cache is None else cache
        self._cache: BlockCache[npt.NDArray[Any]] = BlockCache(limit)

    def _opened(self) -> ChunkedArray:
        with self._opening:
            if self._array is None:
                array = self.place.open(writable=self.writable)
                found = array.facts
                if found != self.facts:
                    array.close()
                    raise StoreError(
                        f"{self.name}: has become another array: {found.shape} {found.dtype}"
                        f" instead of {self.shape} {self.dtype}; open it again",
                        permanent=True,
                    )
                self._array = array
            return self._array

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.facts.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.facts.shape

    @property
    def size(self) -> int:
        return self.facts.nbytes

    # -- reading --------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer`, or raise `StoreError`."""
        first, count, skip = self._elements("read", offset, len(buffer))
        try:
            if count * self.dtype.itemsize == len(buffer):
                self._fill(first, _as_bytes(buffer).view(self.dtype))
            else:
                # The range begins or ends within an element.
                values = np.empty(count, self.dtype)
                self._fill(first, values)
                _as_bytes(buffer)[:] = _as_bytes(values)[skip : skip + len(buffer)]
        except Exception as error:
            raise self._error("read", offset, error) from error

    def fetch(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset` on, or raise `StoreError`."""
        first, count, skip = self._elements("read", offset, length)
        try:
            values = self._in_one_block(first, count)
            if values is None:
                values = np.empty(count, self.dtype)
                self._fill(first, values)
        except Exception as error:
            raise self._error("read", offset, error) from error
        return memoryview(_as_bytes(values)[skip : skip + length])  # type: ignore[arg-type]

    def _in_one_block(self, first: int, count: int) -> npt.NDArray[Any] | None:
        """Elements as they lie together in a decoded block; None: they do not."""
        found = list(rectangles(self._axes, first, first + count))
        places = [place for one in found for place in overlapping(one, self._block)]
        if self.order == "F" or len(found) != 1 or len(places) != 1:
            return None
        ((place, whole, both),) = tiles(found[0], self._axes, self._block)
        part = self._decode(whole) if both == whole else self._part(place, whole, both)
        if isinstance(part, Future):
            part = self._part_of_others(part, whole, both)
        return part if part.flags.c_contiguous else None

    def _fill(self, first: int, out: npt.NDArray[Any]) -> None:
        found = list(rectangles(self._axes, first, first + len(out)))
        others = []
        for rectangle, values in zip(found, _cut(found, out), strict=True):
            for place, whole, both in tiles(rectangle, self._axes, self._block):
                part = values[inside(rectangle, both)]
                if both == whole and part.flags.c_contiguous and self.order == "C":
                    # All of the block is wanted, and can be decoded where it is wanted.
                    with self._unchanged(whole):
                        self._opened().read_into(whole, part)
                    continue
                block = self._part(place, whole, both)
                if isinstance(block, Future):
                    others.append((block, part, whole, both))
                else:
                    part[...] = block
        for flight, part, whole, both in others:
            part[...] = self._part_of_others(flight, whole, both)

    def _part(
        self, place: tuple[int, ...], whole: Rectangle, both: Rectangle
    ) -> npt.NDArray[Any] | Future[npt.NDArray[Any]]:
        """A part of a block; if somebody else is decoding that, what to wait for."""
        try:
            block = self._cache.get_unless_others_do(place, functools.partial(self._decode, whole))
        except Exception:
            # Another chunk of the block may be damaged, and those that are wanted whole.
            return self._decode(both)
        return block if isinstance(block, Future) else block[inside(whole, both)]

    def _part_of_others(
        self, flight: Future[npt.NDArray[Any]], whole: Rectangle, both: Rectangle
    ) -> npt.NDArray[Any]:
        try:
            return flight.result()[inside(whole, both)]
        except Exception:
            return self._decode(both)

    def _decode(self, rectangle: Rectangle) -> npt.NDArray[Any]:
        with self._unchanged(rectangle):
            block = self._opened().read(self._turned(rectangle))
        return block.T if self.order == "F" else block

    def _turned(self, axes: tuple[Of, ...]) -> tuple[Of, ...]:
        """From the order of the axes in the library to ours, or back."""
        return axes[::-1] if self.order == "F" else axes

    def _unchanged(self, rectangle: Rectangle) -> Any:
        """Nobody changes these elements, or others of their chunks, meanwhile."""
        keys = overlapping(rectangle, self._write_block) if self.writable else iter(())
        return self._locks.hold(keys)

    # -- writing --------------------------------------------------------------

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Store all of `buffer`, or raise `StoreError`."""
        if not self.writable:
            raise StoreError(
                f"{self.name}: is open for reading only; open it with mode 'r+'", permanent=True
            )
        first, count, skip = self._elements("write", offset, len(buffer))
        found = list(rectangles(self._axes, first, first + count))
        blocks = sorted({place for one in found for place in overlapping(one, self._write_block)})
        try:
            with self._locks.hold(blocks):
                try:
                    values = self._values(first, count, skip, buffer)
                    self._write(blocks, list(zip(found, _cut(found, values), strict=True)))
                finally:
                    self._cache.drop(
                        place
                        for block in blocks
                        for place in overlapping(self._whole(block, block), self._block)
                    )
        except Exception as error:
            raise self._error("write", offset, error) from error

    def _values(self, first: int, count: int, skip: int, buffer: memoryview) -> npt.NDArray[Any]:
        """The elements that `buffer` changes; of those that it cuts, the rest is read."""
        values = np.empty(count, self.dtype)
        size = self.dtype.itemsize
        cut = {0} if skip else set()
        if (skip + len(buffer)) % size:
            cut.add(count - 1)
        for index in cut:
            for rectangle in rectangles(self._axes, first + index, first + index + 1):
                values[index] = self._opened().read(self._turned(rectangle)).reshape(-1)[0]
        _as_bytes(values)[skip : skip + len(buffer)] = _as_bytes(buffer)
        return values

    def _write(
        self,
        blocks: list[tuple[int, ...]],
        changes: list[tuple[Rectangle, npt.NDArray[Any]]],
    ) -> None:
        """Encode every block once, whole: to change a part of one costs as much."""
        most = WRITE_BYTES // (math.prod(self._write_block) * self.dtype.itemsize)
        for begin, end in in_rows(blocks, max(1, most)):
            whole = self._whole(begin, end)
            content = np.empty(extents(whole), self.dtype)
            parts = [
                (content[inside(whole, both)], values[inside(rectangle, both)])
                for rectangle, values in changes
                if (both := intersection(whole, rectangle)) is not None
            ]
            theirs = self._turned(whole)
            if sum(values.size for _, values in parts) < content.size:
                old = self._opened().read(theirs)
                content[...] = old.T if self.order == "F" else old
            for part, values in parts:
                part[...] = values
            if self.order == "F":
                content = np.ascontiguousarray(content.T)
            self._opened().write(theirs, content.reshape(extents(theirs)))

    def _whole(self, begin: tuple[int, ...], end: tuple[int, ...]) -> Rectangle:
        """The elements of the blocks that are written at a time, from one to another one."""
        return tuple(
            slice(low * length, min((high + 1) * length, size))
            for low, high, length, size in zip(
                begin, end, self._write_block, self._axes, strict=True
            )
        )

    def flush(self) -> None:
        """Make everything written so far durable, or raise `StoreError`.

        An error of the disk is told once by the kernel: then every later call fails as well.
        """
        if not self.writable:
            return
        array = self._opened()
        try:
            if self._failed is None:
                array.flush()
        except Exception as error:
            self._failed = error
        if self._failed is not None:
            raise StoreError(
                f"{self.name}: changes may not have reached the disk: {self._failed}; write them"
                " elsewhere",
                permanent=True,
            ) from self._failed

    def close(self) -> None:
        """Close the array; it is opened again if it is used again."""
        with self._opening:
            array, self._array = self._array, None
        if array is not None:
            array.close()

    # -- what is wrong --------------------------------------------------------

    def _elements(self, verb: str, offset: int, length: int) -> tuple[int, int, int]:
        """First element, number of elements, and bytes of the first one before `offset`."""
        if not 0 <= offset <= self.size - length:
            raise StoreError(
                f"{self.name}: cannot {verb} {length} bytes at offset {offset}: it has"
                f" {self.size}; ask for less",
                permanent=True,
            )
        size = self.dtype.itemsize
        first, skip = divmod(offset, size)
        return first, -(-(skip + length) // size), skip

    def _error(self, verb: str, offset: int, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        element = self._turned(np.unravel_index(offset // self.dtype.itemsize, self._axes))
        array = self._array
        return StoreError(
            f"{self.name}: cannot {verb} its elements from"
            f" [{', '.join(str(int(index)) for index in element)}] on:"
            f" {type(error).__name__}: {error}; see whether the chunk there is whole",
            permanent=array is not None and array.is_permanent(error),
        )

    # -- how much is kept -----------------------------------------------------

    def _cache_bytes(self) -> int:
        block = math.prod(self._block) * self.dtype.itemsize
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        needed = self.band_bytes + SPARE_BLOCKS * block
        return min(max(CACHE_BYTES, needed), max(CACHE_BYTES, memory // MEMORY_SHARE))

    @property
    def cache_bytes(self) -> int:
        """Bytes of decoded chunks that are kept."""
        return self._cache.limit

    @property
    def band_bytes(self) -> int:
        """Bytes of decoded chunks that a read in order comes back to.

        It comes back to none, if each block lies together in memory.
        """
        for axis, (length, block) in enumerate(zip(self._axes, self._block, strict=True)):
            if block > 1:
                # From here on: all blocks of the row, if there is more than one.
                rest = zip(self._axes[axis + 1 :], self._block[axis + 1 :], strict=True)
                if all(block >= length for length, block in rest):
                    return 0
                lengths = (min(block, length), *self._axes[axis + 1 :])
                return math.prod(lengths) * self.dtype.itemsize
        return 0


def _cut(found: list[Rectangle], values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Give each rectangle its part of `values`, which has those of all, one after the other."""
    done = 0
    for rectangle in found:
        shape = extents(rectangle)
        count = math.prod(shape)
        yield values[done : done + count].reshape(shape)
        done += count


def _as_bytes(values: npt.NDArray[Any] | memoryview) -> npt.NDArray[np.uint8]:
    return np.asarray(values).view(np.uint8).reshape(-1)

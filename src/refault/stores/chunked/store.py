"""A chunked array as a store: the bytes that it would have in memory."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from refault.errors import StoreError

from ..remote import Policy
from .arrays import ChunkedArray, Place
from .cache import BlockCache
from .locks import ChunkLocks
from .reading import Cache, Reader
from .view import View, as_bytes
from .writing import Writer

__all__ = ["ChunkedStore"]

THREADS_MORE = 2
"""Threads that decode beside one for each CPU: one waits for the disk, one is left to demand."""
READ_BYTES = 1 << 20
"""What is decoded at a time of what is not far away."""
KEPT_READ_BYTES = 2 << 20
"""The same where blocks are larger: to take from what is kept costs less than to ask for it."""
CACHE_BYTES = 64 << 20
"""The least that is kept of decoded blocks, if nothing else is said."""
MEMORY_SHARE = 16
"""The most that is kept, if nothing else is said: this part of the machine's memory."""
SPARE_BLOCKS = 8
"""Blocks beside those of one band: as many as are decoded at the same time; of large ones, two."""


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
    version, parallel, read_bytes, ahead_bytes
        See `refault.stores.base`.
    """

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
        # What is wrong is told now, and not when the array is touched.  It does not stay open: who
        # unpickles the store may be on the way to the pager, and not the pager.
        self._opened()
        self.close()

    def _prepare(self, cache: int | None) -> None:
        self._array: ChunkedArray | None = None
        self._opening = threading.Lock()
        self._failed: BaseException | None = None
        self._view = View(self.facts, self.order, cache)
        self._cache: Cache = BlockCache(self._cache_bytes() if cache is None else cache)
        locks = ChunkLocks()
        changing = locks if self.writable else None
        self._reader = Reader(self._view, self._opened, self._cache, changing)
        self._writer = Writer(self._view, self._opened, self._cache, locks)
        policy = Policy()
        if self.place.far:
            self.parallel, self.read_bytes = policy.parallel, policy.read_bytes
        else:
            self.parallel = min(len(os.sched_getaffinity(0)) + THREADS_MORE, policy.parallel)
            kept = self._view.block_bytes >= KEPT_READ_BYTES
            self.read_bytes = KEPT_READ_BYTES if kept else READ_BYTES
        self.ahead_bytes = self.parallel * KEPT_READ_BYTES

    def _opened(self) -> ChunkedArray:
        with self._opening:
            if self._array is None:
                array = self.place.open(writable=self.writable)
                found = array.facts
                if found != self.facts:
                    array.close()
                    raise StoreError(
                        f"{self.name}: has changed since it was opened, or become another array:"
                        f" {found.shape} {found.dtype}, and it was {self.shape} {self.dtype}; open"
                        " it again",
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
    def version(self) -> str | None:
        return self.facts.version

    @property
    def size(self) -> int:
        return self.facts.nbytes

    # -- reading and writing --------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer`, or raise `StoreError`."""
        first, count, skip = self._elements("read", offset, len(buffer))
        try:
            if count * self.dtype.itemsize == len(buffer):
                self._reader.fill(first, as_bytes(buffer).view(self.dtype))
            else:
                # The range begins or ends within an element.
                values = np.empty(count, self.dtype)
                self._reader.fill(first, values)
                as_bytes(buffer)[:] = as_bytes(values)[skip : skip + len(buffer)]
        except Exception as error:
            raise self._error("read", offset, error) from error

    def fetch(self, offset: int, length: int) -> list[memoryview] | None:
        """Return `length` bytes from `offset` on, if they are kept as they lie in memory."""
        first, count, skip = self._elements("read", offset, length)
        if skip or count * self.dtype.itemsize != length:
            return None
        try:
            found = self._reader.in_blocks(first, count)
        except Exception:
            # Another chunk of the block may be damaged: `read_into` finds out.
            return None
        return None if found is None else [as_bytes(values).data for values in found]

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Store all of `buffer`, or raise `StoreError`."""
        if not self.writable:
            raise StoreError(
                f"{self.name}: is open for reading only; open it with mode 'r+'", permanent=True
            )
        first, count, skip = self._elements("write", offset, len(buffer))
        try:
            self._writer.write(first, count, skip, buffer)
        except Exception as error:
            raise self._error("write", offset, error) from error

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
        view = self._view
        element = view.turned(np.unravel_index(offset // self.dtype.itemsize, view.axes))
        array = self._array
        return StoreError(
            f"{self.name}: cannot {verb} its elements from"
            f" [{', '.join(str(int(index)) for index in element)}] on:"
            f" {type(error).__name__}: {error}; see whether the chunk there is whole",
            permanent=array is not None and array.is_permanent(error),
        )

    # -- how much is kept -----------------------------------------------------

    def _cache_bytes(self) -> int:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        block = self._view.block_bytes
        needed = self.band_bytes + max(2 * block, min(SPARE_BLOCKS * block, CACHE_BYTES))
        return min(max(CACHE_BYTES, needed), max(CACHE_BYTES, memory // MEMORY_SHARE))

    @property
    def cache_bytes(self) -> int:
        """Bytes of decoded chunks that are kept."""
        return self._cache.limit

    @property
    def band_bytes(self) -> int:
        """Bytes of decoded chunks that a read in order comes back to."""
        return self._view.band_bytes

"""Chunks of Zarr that are decoded here: without zarr's pipeline, and with the same codecs.

What zarr adds to the codec is as much again: an event loop, several threads and futures for each
chunk, fresh memory for what the codec returns, and a copy of that.  The two codecs that Zarr
arrays are written with by default can decode into memory that is given, without the GIL.

This is only for what is certain: chunks in a local folder, of elements that lie in memory as they
lie in the chunk, and that say themselves how long they are.  Whatever else there is, a chunk that
is not there, damaged, or of another length: zarr is asked, and what it says holds.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import require
from .blocks import BlockMemory
from .grid import Rectangle, inside, tiles
from .view import as_bytes

__all__ = ["PlainChunks", "plain_chunks"]

SHARED_BYTES = 4 << 20
"""From so much on, several threads decode the chunks of one call."""

_ZSTD_MAGIC = 0xFD2FB528
_BLOSC_HEADER = 16

Part = tuple[tuple[int, ...], Rectangle, Rectangle]
"""Place of a chunk, its elements in the array, and those of them that are wanted."""


def zstd_length(encoded: memoryview) -> int | None:
    """How long the content of a frame of Zstandard is (RFC 8878, 3.1.1.1); None: not said."""
    if len(encoded) < 5 or int.from_bytes(encoded[:4], "little") != _ZSTD_MAGIC:
        return None
    descriptor = encoded[4]
    single_segment = descriptor >> 5 & 1
    field = descriptor >> 6
    width = (single_segment, 2, 4, 8)[field]
    at = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(encoded) < at + width:
        return None
    return int.from_bytes(encoded[at : at + width], "little") + (256 if field == 1 else 0)


def blosc_length(encoded: memoryview) -> int | None:
    """How long the content of a buffer of Blosc is; None: it has no header."""
    if len(encoded) < _BLOSC_HEADER:
        return None
    found: int = struct.unpack_from("<I", encoded, 4)[0]
    return found


class PlainChunks:
    """Chunks that can be decoded here.

    Parameters
    ----------
    array
        A `zarr.Array`.
    codec
        One of numcodecs that decodes a chunk.
    length_of
        How long the content of an encoded chunk is.
    """

    def __init__(
        self, array: Any, codec: Any, length_of: Callable[[memoryview], int | None]
    ) -> None:
        self._get: Callable[[str], Any] = array.store.get_sync
        self._key: Callable[[tuple[int, ...]], str] = array.metadata.encode_chunk_key
        self._prefix = f"{array.path}/" if array.path else ""
        self._shape = tuple(int(length) for length in array.shape)
        self._chunks = tuple(int(length) for length in array.chunks)
        self._dtype = array.dtype
        self._size = math.prod(self._chunks) * self._dtype.itemsize
        self._codec = codec
        self._length_of = length_of
        self._memory = BlockMemory(self._size, 2 * self._size)

    def read_into(self, rectangle: Rectangle, out: npt.NDArray[Any]) -> bool:
        """Fill `out`; False: there is a chunk that is not for us, and `out` is undefined."""
        parts = tiles(rectangle, self._shape, self._chunks)

        def decode(part: Part) -> bool:
            return self._decode(part, out[inside(rectangle, part[2])])

        try:
            if out.nbytes < SHARED_BYTES or out.nbytes <= self._size:
                return all(map(decode, parts))
            # Each chunk fills a part of its own.
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                return all(threads.map(decode, parts))
        except Exception:
            return False

    def _decode(self, part: Part, out: npt.NDArray[Any]) -> bool:
        place, whole, both = part
        found = self._get(self._prefix + self._key(place))
        if found is None:
            return False
        encoded = memoryview(found.as_numpy_array()).cast("B")
        if self._length_of(encoded) != self._size:
            return False
        if out.nbytes == self._size and out.flags.c_contiguous:
            self._codec.decode(encoded, as_bytes(out))
            return True
        # A chunk at the end of the array is stored whole.
        values = self._memory.empty(self._chunks, self._dtype)
        self._codec.decode(encoded, as_bytes(values))
        out[...] = values[inside(whole, both)]
        return True


def plain_chunks(array: Any) -> PlainChunks | None:
    """How to decode the chunks of a `zarr.Array` here; None: it cannot be done, or not exactly."""
    zarr = require("zarr", "zarr")
    numcodecs = require("numcodecs", "zarr")
    if (
        type(array.store) is not zarr.storage.LocalStore
        or not hasattr(array.store, "get_sync")
        or not array.ndim
        or array.shards is not None
        or array.filters
        or array.dtype.kind not in "biufc"
        or not array.dtype.isnative
        or len(array.compressors) != 1
    ):
        return None
    kind: Any = type(array.compressors[0])
    if array.metadata.zarr_format == 2:
        if array.metadata.order != "C" or array.order != "C":
            return None
    else:
        serializer = array.serializer
        if type(serializer) is not zarr.codecs.BytesCodec or not _is_native(
            serializer, array.dtype
        ):
            return None
        if type(array.metadata.chunk_grid).__name__ != "RegularChunkGrid":
            return None
        kind = {
            zarr.codecs.ZstdCodec: numcodecs.Zstd,
            zarr.codecs.BloscCodec: numcodecs.Blosc,
        }.get(kind)
    if kind is numcodecs.Zstd:
        return PlainChunks(array, numcodecs.Zstd(), zstd_length)
    if kind is numcodecs.Blosc:
        return PlainChunks(array, numcodecs.Blosc(), blosc_length)
    return None


def _is_native(serializer: Any, dtype: np.dtype[Any]) -> bool:
    """Whether elements lie in a chunk as in memory."""
    return dtype.itemsize == 1 or (
        serializer.endian is not None and serializer.endian.value == sys.byteorder
    )

"""From changed elements to whole chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import ChunkedArray
from .grid import Rectangle, extents, in_rows, inside, intersection, overlapping, rectangles
from .locks import ChunkLocks
from .reading import Cache
from .view import View, as_bytes, cut

__all__ = ["Writer"]

WRITE_BYTES = 16 << 20
"""The most that is encoded with one call, if a chunk is not larger."""


class Writer:
    """Changes elements: each chunk is decoded once, changed, and encoded once.

    Parameters
    ----------
    library
        Gives the open array.
    cache
        What has changed is dropped there.
    """

    def __init__(
        self, view: View, library: Callable[[], ChunkedArray], cache: Cache, locks: ChunkLocks
    ) -> None:
        self.view = view
        self.library = library
        self.cache = cache
        self.locks = locks

    def write(self, first: int, count: int, skip: int, buffer: memoryview) -> None:
        """Change the bytes of `count` elements, from the byte `skip` of the first one on."""
        view = self.view
        found = list(rectangles(view.axes, first, first + count))
        blocks = sorted({place for one in found for place in overlapping(one, view.write_block)})
        with self.locks.hold(blocks):
            try:
                values = self._values(first, count, skip, buffer)
                self._write(blocks, list(zip(found, cut(found, values), strict=True)))
            finally:
                # Before anybody else may read them.
                self.cache.drop(
                    place
                    for block in blocks
                    for place in overlapping(view.written(block, block), view.block)
                )

    def _values(self, first: int, count: int, skip: int, buffer: memoryview) -> npt.NDArray[Any]:
        """The elements that `buffer` changes; of those that it cuts, the rest is read."""
        view = self.view
        values = np.empty(count, view.dtype)
        cuts = {0} if skip else set()
        if (skip + len(buffer)) % view.dtype.itemsize:
            cuts.add(count - 1)
        for index in cuts:
            (one,) = rectangles(view.axes, first + index, first + index + 1)
            values[index] = self.library().read(view.turned(one)).reshape(-1)[0]
        as_bytes(values)[skip : skip + len(buffer)] = as_bytes(buffer)
        return values

    def _write(
        self,
        blocks: list[tuple[int, ...]],
        changes: list[tuple[Rectangle, npt.NDArray[Any]]],
    ) -> None:
        view = self.view
        most = WRITE_BYTES // (math.prod(view.write_block) * view.dtype.itemsize)
        for begin, end in in_rows(blocks, max(1, most)):
            whole = view.written(begin, end)
            content = np.empty(extents(whole), view.dtype)
            parts = [
                (content[inside(whole, both)], values[inside(rectangle, both)])
                for rectangle, values in changes
                if (both := intersection(whole, rectangle)) is not None
            ]
            theirs = view.turned(whole)
            if sum(values.size for _, values in parts) < content.size:
                content[...] = view.seen(self.library().read(theirs))
            for part, values in parts:
                part[...] = values
            together = np.ascontiguousarray(view.seen(content)).reshape(extents(theirs))
            self.library().write(theirs, together)

"""From blocks to the elements that were asked for."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .ahead import Ahead
from .arrays import ChunkedArray
from .blocks import BlockMemory
from .cache import BlockCache
from .grid import (
    Rectangle,
    aligned,
    extents,
    inside,
    intersection,
    overlapping,
    rectangles,
    tiles,
)
from .locks import ChunkLocks
from .view import View, cut

__all__ = ["Cache", "Reader"]

DECODING_BYTES = 128 << 20
"""So much is being decoded at a time to be kept, or two blocks."""

AHEAD_BYTES = 8 << 20
"""Blocks of so many bytes are begun before anybody asks for them: the pager reads ahead no more."""
SPARE_BYTES = 64 << 20
"""The most that is kept of the memory of blocks that are not kept any longer."""

Cache: TypeAlias = BlockCache[npt.NDArray[Any]]


class Reader:
    """Reads elements, and decodes a block once for all who need a part of it at about one time.

    Parameters
    ----------
    library
        Gives the open array.
    locks
        Of the chunks, if they may change; None: they do not.
    """

    def __init__(
        self,
        view: View,
        library: Callable[[], ChunkedArray],
        cache: Cache,
        locks: ChunkLocks | None,
    ) -> None:
        self.view = view
        self.library = library
        self.cache = cache
        self.locks = locks
        self._memory = BlockMemory(view.block_bytes, SPARE_BYTES)
        count = math.prod(view.axes)
        self._ahead = Ahead(count)
        # Nothing of what is decoded ahead may be lost before it is used.
        self._decodes_ahead = AHEAD_BYTES <= view.block_bytes <= cache.limit // 2
        # Where all of it would be kept, the next reader in order finds it.
        self._uses_up = count * view.dtype.itemsize > cache.limit
        self._decoding = threading.Semaphore(max(2, DECODING_BYTES // max(1, view.block_bytes)))

    def fill(self, first: int, out: npt.NDArray[Any]) -> None:
        """Read elements from `first` on."""
        view = self.view
        found = list(rectangles(view.axes, first, first + len(out)))
        others = []
        for rectangle, values in zip(found, cut(found, out), strict=True):
            # Where all of some blocks is wanted, they are decoded where they are wanted.
            direct = aligned(rectangle, view.axes, view.block) if view.order == "C" else None
            if direct is not None:
                with self._unchanged(direct):
                    self.library().read_into(direct, values[inside(rectangle, direct)])
                if direct == rectangle:
                    continue
            for place, whole, both in tiles(rectangle, view.axes, view.block):
                if direct is not None and intersection(both, direct):
                    continue
                part = values[inside(rectangle, both)]
                block = self._part(place, whole, both)
                if isinstance(block, Future):
                    others.append((block, part, whole, both))
                else:
                    part[...] = block
        for flight, part, whole, both in others:
            part[...] = self._part_of_others(flight, whole, both)

    def in_blocks(self, first: int, count: int) -> list[npt.NDArray[Any]] | None:
        """Elements as they lie together in decoded blocks, one after the other, not copied.

        None: they do not, or they are all of a block, which need not be kept.
        """
        view = self.view
        if view.order == "F" or not view.together or not count:
            return None
        in_order = self._ahead.follows(first, count)
        wanted = []
        at = first
        while at < first + count:
            place, whole = self._block(at)
            start = view.number(whole)
            end = start + math.prod(extents(whole))
            part = slice(at - start, min(end, first + count) - start)
            if part == slice(0, end - start):
                return None
            wanted.append((place, whole, part))
            at = end
        blocks = self.cache.get_all(
            (place, functools.partial(self._decode, whole)) for place, whole, _ in wanted
        )
        parts = [
            block.reshape(-1)[part] for block, (_, _, part) in zip(blocks, wanted, strict=True)
        ]
        if in_order and self._uses_up:
            for (place, _, _), values in zip(wanted, parts, strict=True):
                self.cache.use_up(place, values.nbytes)
        if in_order and self._decodes_ahead and self._ahead.is_next(at):
            threading.Thread(
                target=self._decode_ahead, args=(at,), name="refault-ahead", daemon=True
            ).start()
        return parts

    def _decode_ahead(self, first: int) -> None:
        """Decode the block that begins with an element, so that it is there when it is wanted."""
        place, whole = self._block(first)
        # Who wants it is told what is wrong.
        with contextlib.suppress(Exception):
            self.cache.get_unless_others_do(place, functools.partial(self._decode, whole))

    def _block(self, element: int) -> tuple[tuple[int, ...], Rectangle]:
        """The block that an element is in: its place, and its elements."""
        (one,) = rectangles(self.view.axes, element, element + 1)
        place, whole, _ = next(tiles(one, self.view.axes, self.view.block))
        return place, whole

    def _part(
        self, place: tuple[int, ...], whole: Rectangle, both: Rectangle
    ) -> npt.NDArray[Any] | Future[npt.NDArray[Any]]:
        """A part of a block; if somebody else is decoding that, what to wait for."""
        try:
            block = self.cache.get_unless_others_do(place, functools.partial(self._decode, whole))
        except Exception:
            # Another chunk of the block may be damaged, and those that are wanted whole.
            return self._decode(both)
        return block if isinstance(block, Future) else np.asarray(block[inside(whole, both)])

    def _part_of_others(
        self, flight: Future[npt.NDArray[Any]], whole: Rectangle, both: Rectangle
    ) -> npt.NDArray[Any]:
        try:
            block = flight.result()
        except Exception:
            return self._decode(both)
        return np.asarray(block[inside(whole, both)])

    def _decode(self, rectangle: Rectangle) -> npt.NDArray[Any]:
        with self._decoding, self._unchanged(rectangle):
            theirs = self.view.turned(rectangle)
            return self.view.seen(self.library().read(theirs, self._memory.empty))

    def _unchanged(self, rectangle: Rectangle) -> AbstractContextManager[None]:
        """Nobody changes these elements, or others of their chunks, meanwhile."""
        if self.locks is None:
            return contextlib.nullcontext()
        return self.locks.hold(overlapping(rectangle, self.view.write_block))

"""From blocks to the elements that were asked for."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .arrays import ChunkedArray
from .cache import BlockCache
from .grid import Rectangle, aligned, inside, intersection, overlapping, rectangles, tiles
from .locks import ChunkLocks
from .view import View, cut

__all__ = ["Cache", "Reader"]

DECODING_BYTES = 128 << 20
"""So much is being decoded at a time to be kept, or two blocks."""

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

    def in_one_block(self, first: int, count: int) -> npt.NDArray[Any] | None:
        """Elements as they lie together in a decoded block, not copied.

        None: they do not, or they are all of it, and need not be kept.
        """
        view = self.view
        found = list(rectangles(view.axes, first, first + count))
        places = {place for one in found for place in overlapping(one, view.block)}
        if view.order == "F" or len(places) != 1 or not (view.together or len(found) == 1):
            return None
        place, whole, both = next(tiles(found[0], view.axes, view.block))
        if both == whole:
            return None
        block = self.cache.get(place, functools.partial(self._decode, whole))
        if not view.together:
            part = np.asarray(block[inside(whole, both)])
            return part if bool(part.flags.c_contiguous) else None
        start = first - view.number(whole)
        return np.asarray(block.reshape(-1)[start : start + count])

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
            return self.view.seen(self.library().read(self.view.turned(rectangle)))

    def _unchanged(self, rectangle: Rectangle) -> AbstractContextManager[None]:
        """Nobody changes these elements, or others of their chunks, meanwhile."""
        if self.locks is None:
            return contextlib.nullcontext()
        return self.locks.hold(overlapping(rectangle, self.view.write_block))

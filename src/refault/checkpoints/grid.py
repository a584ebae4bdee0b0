"""How an array is cut into chunks, each of which is one piece of its memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

__all__ = ["Grid", "Order"]

Order = Literal["C", "F"]


class Grid(NamedTuple):
    """Chunks of one array, numbered as they lie in memory.

    Attributes
    ----------
    lengths
        The array's shape, the axis that changes slowest in memory first.
    itemsize
        Bytes of an element.
    axis
        Which of `lengths` is cut; a chunk is 1 long before it, and whole behind it.
    rows
        How long a chunk is along `axis`; the last one may hold less.
    order
        "F": `lengths` is the shape backwards.
    dimensions
        Of the array; 0 for a single value, which has `lengths` (1,).
    """

    lengths: tuple[int, ...]
    itemsize: int
    axis: int
    rows: int
    order: Order
    dimensions: int

    @classmethod
    def of(cls, shape: tuple[int, ...], itemsize: int, order: Order, chunk_bytes: int) -> Grid:
        """Cut an array into chunks of at most `chunk_bytes`, or of one element.

        Chunks are as long as fits: where the bytes behind the axis are a power of two, so is the
        chunk, and begins where a page does.  Only if each of several rows is cut are the
        pieces made equal, since the last of every row is stored at full length.
        """
        lengths = _in_memory(shape, order)
        axis = 0
        while axis < len(lengths) - 1 and math.prod(lengths[axis + 1 :]) * itemsize > chunk_bytes:
            axis += 1
        row = math.prod(lengths[axis + 1 :]) * itemsize
        rows = max(1, min(lengths[axis], chunk_bytes // max(1, row)))
        if math.prod(lengths[:axis]) > 1:
            pieces = -(-lengths[axis] // rows)
            rows = -(-lengths[axis] // pieces)
        found = cls(lengths, itemsize, axis, rows, order, len(shape))
        # Chunks of the same shape can be numbered in several ways; `read` chooses one.
        return cls.read(shape, found.chunk_shape, itemsize, order) or found

    @classmethod
    def read(
        cls, shape: tuple[int, ...], chunk: tuple[int, ...], itemsize: int, order: Order
    ) -> Grid | None:
        """The grid with such chunks; None if they are not each one piece of memory."""
        lengths, cut = _in_memory(shape, order), _in_memory(chunk, order)
        whole = tuple(max(1, length) for length in lengths)
        for axis in range(len(lengths)):
            if all(part == 1 for part in cut[:axis]) and cut[axis + 1 :] == whole[axis + 1 :]:
                return cls(lengths, itemsize, axis, cut[axis], order, len(shape))
        return None

    @property
    def row_bytes(self) -> int:
        return math.prod(self.lengths[self.axis + 1 :]) * self.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Of a whole chunk, as it is stored."""
        return self.rows * max(1, self.row_bytes)

    @property
    def nbytes(self) -> int:
        return math.prod(self.lengths) * self.itemsize

    @property
    def pieces(self) -> int:
        """Chunks along the axis."""
        return -(-self.lengths[self.axis] // self.rows)

    @property
    def chunks(self) -> int:
        """Chunks of the array."""
        return math.prod(self.lengths[: self.axis]) * self.pieces if self.nbytes else 0

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """As in the array's metadata."""
        behind = (max(1, length) for length in self.lengths[self.axis + 1 :])
        return self._as_in_array((*(1,) * self.axis, self.rows, *behind))

    def span(self, number: int) -> tuple[int, int]:
        """Where the data of a chunk lie: bytes of the array's memory."""
        above, piece = divmod(number, self.pieces)
        length = self.lengths[self.axis]
        first = piece * self.rows
        start = (above * length + first) * self.row_bytes
        return start, start + min(self.rows, length - first) * self.row_bytes

    def number_at(self, offset: int) -> int:
        """The chunk that holds a byte of the array's memory."""
        above, row = divmod(offset // self.row_bytes, self.lengths[self.axis])
        return above * self.pieces + row // self.rows

    def key(self, number: int) -> str:
        """What Zarr calls a chunk."""
        above, piece = divmod(number, self.pieces)
        index = [piece]
        for length in reversed(self.lengths[: self.axis]):
            above, at = divmod(above, length)
            index.append(at)
        index.reverse()
        index += [0] * (len(self.lengths) - len(index))
        return "/".join(["c", *map(str, self._as_in_array(tuple(index)))])

    def number_of(self, index: tuple[int, ...]) -> int:
        """The chunk with these coordinates."""
        above = 0
        inside = _in_memory(index, self.order)
        for at, length in zip(inside[: self.axis], self.lengths, strict=False):
            above = above * length + at
        return above * self.pieces + (inside[self.axis] if index else 0)

    def overlapping(self, ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
        """Chunks that hold a byte of the ranges, each once; ranges are in order."""
        done = 0
        for low, high in ranges:
            if low < high:
                first, last = self.number_at(low), self.number_at(high - 1)
                yield from range(max(first, done), last + 1)
                done = max(done, last + 1)

    def _as_in_array(self, index: tuple[int, ...]) -> tuple[int, ...]:
        if not self.dimensions:
            return ()
        return index[::-1] if self.order == "F" else index


def _in_memory(shape: tuple[int, ...], order: Order) -> tuple[int, ...]:
    return (shape[::-1] if order == "F" else shape) or (1,)

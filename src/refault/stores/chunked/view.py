"""A chunked array, seen so that its last axis is the one that lies together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .arrays import Facts
from .grid import Rectangle, along_memory, block_shape, extents

__all__ = ["View", "as_bytes", "cut"]

Of = TypeVar("Of")

BLOCK_BYTES = 256 << 10
"""Chunks are read together until there are so many bytes: a call of a library costs about 1 ms."""
UNIT_BYTES = 512 << 10
"""A page unit: chunks that it has a part of together are read together, see `Facts.together`."""
LEAST_WRITE_BYTES = 64 << 10
"""The same for what is written: no more than a page unit, so that not much else is encoded anew."""


class View:
    """The axes of an array in the order "C" or "F", and the blocks it is read and written in.

    Attributes
    ----------
    axes
        The shape; with "F" the library's is the other way round.
    block, write_block
        What is decoded, and what is encoded, at a time: one chunk, or several that are small, or
        that lie side by side in memory.
    together
        Whether the elements of a block lie together in memory.

    Parameters
    ----------
    cache
        Bytes that may be kept of decoded blocks: there must be room for two.  None: for any.
    """

    def __init__(self, facts: Facts, order: str, cache: int | None = None) -> None:
        self.order = order
        self.dtype = facts.dtype
        self.axes = self.turned(facts.shape)
        size = self.dtype.itemsize
        most = facts.together if cache is None else min(facts.together, cache // 2)
        row = along_memory(self.axes, self.turned(facts.chunks), size, UNIT_BYTES, most)
        self.block = block_shape(self.axes, row, size, BLOCK_BYTES)
        self.together = not self._length_of_rows()
        chunks = self.turned(facts.write_chunks)
        self.write_block = block_shape(self.axes, chunks, size, LEAST_WRITE_BYTES)

    def turned(self, axes: tuple[Of, ...]) -> tuple[Of, ...]:
        """From the order of the axes in the library to ours, or back."""
        return axes[::-1] if self.order == "F" else axes

    def seen(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Elements of the library's as they are here, or back; no copy."""
        return values.T if self.order == "F" else values

    def written(self, begin: tuple[int, ...], end: tuple[int, ...]) -> Rectangle:
        """The elements of the blocks that are written at a time, from one to another one."""
        return tuple(
            slice(low * length, min((high + 1) * length, size))
            for low, high, length, size in zip(begin, end, self.write_block, self.axes, strict=True)
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of a block that is read."""
        return math.prod(self.block) * self.dtype.itemsize

    def number(self, whole: Rectangle) -> int:
        """How many elements come before a rectangle in memory."""
        found = 0
        for axis, length in zip(whole, self.axes, strict=True):
            found = found * length + axis.start
        return found

    @property
    def band_bytes(self) -> int:
        """Bytes of decoded blocks that a read in order comes back to.

        It comes back to none, if each block lies together in memory.
        """
        return self._length_of_rows() * self.dtype.itemsize

    def _length_of_rows(self) -> int:
        """Elements of all blocks that one row lies across; 0: blocks lie together in memory."""
        for axis, (length, block) in enumerate(zip(self.axes, self.block, strict=True)):
            if block > 1:
                # From here on: all blocks of the row, if there is more than one.
                rest = zip(self.axes[axis + 1 :], self.block[axis + 1 :], strict=True)
                if all(block >= length for length, block in rest):
                    return 0
                return math.prod((min(block, length), *self.axes[axis + 1 :]))
        return 0


def cut(found: list[Rectangle], values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Give each rectangle its part of `values`, which has those of all, one after the other."""
    done = 0
    for rectangle in found:
        shape = extents(rectangle)
        count = math.prod(shape)
        yield values[done : done + count].reshape(shape)
        done += count


def as_bytes(values: npt.NDArray[Any] | memoryview) -> npt.NDArray[np.uint8]:
    """The bytes of elements that lie together; no copy."""
    return np.asarray(values).reshape(-1).view(np.uint8)

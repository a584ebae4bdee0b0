"""Bytes and rectangles: which elements of an N-dimensional array a range of its memory is.

Everything here counts elements, of an array whose last axis is the one that lies together ("C").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

__all__ = [
    "Rectangle",
    "aligned",
    "along_memory",
    "block_shape",
    "extents",
    "in_rows",
    "inside",
    "intersection",
    "overlapping",
    "rectangles",
    "tiles",
]

Rectangle: TypeAlias = tuple[slice, ...]
"""One slice for each axis, with start and stop, without step."""


def rectangles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Rectangle]:
    """Cut elements ``[start, stop)`` into rectangles, in order.

    The elements of each rectangle lie together, and there are fewer than two for each axis.
    """
    while start < stop:
        # The elements of one index of axis `axis - 1`, as far out as the range allows.
        axis, inner = len(shape), 1
        while axis:
            whole = inner * shape[axis - 1]
            if start % whole or start + whole > stop:
                break
            axis, inner = axis - 1, whole
        if not axis:
            yield tuple(slice(0, length) for length in shape)
            return
        outer, place = divmod(start // inner, shape[axis - 1])
        count = min(shape[axis - 1] - place, (stop - start) // inner)
        found = [slice(place, place + count), *(slice(0, length) for length in shape[axis:])]
        for length in reversed(shape[: axis - 1]):
            outer, index = divmod(outer, length)
            found.insert(0, slice(index, index + 1))
        yield tuple(found)
        start += count * inner


def block_shape(
    shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int, least: int
) -> tuple[int, ...]:
    """Join neighbouring chunks until there are `least` bytes in a block.

    Those are joined first that lie side by side in memory.
    """
    block = [max(1, min(pair)) for pair in zip(chunks, shape, strict=True)]
    for axis in reversed(range(len(shape))):
        size = math.prod(block) * itemsize
        if size >= least:
            break
        chunk = max(1, chunks[axis])
        block[axis] = chunk * min(-(-shape[axis] // chunk), -(-least // size))
        block[axis] = max(1, min(block[axis], shape[axis]))
    return tuple(block)


def along_memory(
    shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int, reach: int, most: int
) -> tuple[int, ...]:
    """Join neighbouring chunks that `reach` bytes of memory have a part of, up to `most` bytes."""
    block = [max(1, min(pair)) for pair in zip(chunks, shape, strict=True)]
    inner = itemsize
    for axis in reversed(range(len(shape))):
        touched = min(-(-reach // inner), shape[axis])
        room = most // (math.prod(block) * itemsize)
        wanted = max(1, min(-(-touched // block[axis]), room))
        block[axis] = max(1, min(block[axis] * wanted, shape[axis]))
        inner *= max(1, shape[axis])
    return tuple(block)


def aligned(
    rectangle: Rectangle, shape: tuple[int, ...], block: tuple[int, ...]
) -> Rectangle | None:
    """The largest part of a rectangle that is made of whole blocks; None: it has none."""
    whole = tuple(
        slice(
            -(-axis.start // length) * length,
            axis.stop if axis.stop == end else axis.stop // length * length,
        )
        for axis, length, end in zip(rectangle, block, shape, strict=True)
    )
    return whole if all(axis.start < axis.stop for axis in whole) else None


def overlapping(rectangle: Rectangle, block: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The places, in a grid of blocks, of those that a rectangle touches, in order."""
    return itertools.product(
        *(
            range(axis.start // length, (axis.stop - 1) // length + 1)
            for axis, length in zip(rectangle, block, strict=True)
        )
    )


def tiles(
    rectangle: Rectangle, shape: tuple[int, ...], block: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Rectangle, Rectangle]]:
    """Cut a rectangle along a grid of blocks.

    Yields
    ------
    tuple
        Place of a block in the grid; its elements in the array, the last ones cut at the end of
        the array; those of them that are in the rectangle.
    """
    for place in overlapping(rectangle, block):
        whole = tuple(
            slice(index * length, min((index + 1) * length, end))
            for index, length, end in zip(place, block, shape, strict=True)
        )
        both = intersection(whole, rectangle)
        assert both is not None
        yield place, whole, both


def intersection(one: Rectangle, other: Rectangle) -> Rectangle | None:
    """What two rectangles have in common; None: nothing."""
    both = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return both if all(axis.start < axis.stop for axis in both) else None


def inside(outer: Rectangle, inner: Rectangle) -> Any:
    """Where `inner` is in an array that has the elements of `outer`; never a single element."""
    return (
        ...,
        *(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True)),
    )


def in_rows(
    places: list[tuple[int, ...]], most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Join blocks that are neighbours on the last axis, up to `most`: the first and the last one.

    `places` are sorted.
    """
    row: list[tuple[int, ...]] = []
    for place in places:
        follows = (
            bool(row and place) and len(row) < most and place == (*row[-1][:-1], row[-1][-1] + 1)
        )
        if row and not follows:
            yield row[0], row[-1]
            row = []
        row.append(place)
    if row:
        yield row[0], row[-1]


def extents(rectangle: Rectangle) -> tuple[int, ...]:
    """The shape of a rectangle."""
    return tuple(axis.stop - axis.start for axis in rectangle)

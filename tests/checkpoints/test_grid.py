"""Chunks are pieces of memory, and Zarr finds them where we put them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refault.checkpoints.grid import Grid

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
orders = st.sampled_from(["C", "F"])


def chunk_of(array: Any, grid: Grid, number: int) -> bytes:
    """The elements of one chunk in the order of memory, taken as Zarr takes them."""
    index = [int(part) for part in grid.key(number).split("/")[1:]]
    where = tuple(
        slice(at * length, (at + 1) * length)
        for at, length in zip(index, grid.chunk_shape, strict=True)
    )
    return bytes(array[where].tobytes(order=grid.order))


@given(shape=shapes, order=orders, chunk_bytes=st.integers(1, 400))
def test_every_byte_is_in_one_chunk(shape: Any, order: Any, chunk_bytes: int) -> None:
    grid = Grid.of(shape, 4, order, chunk_bytes)
    array = np.arange(math.prod(shape), dtype="i4").reshape(shape, order=order)
    memory = array.tobytes(order=order)
    assert grid.nbytes == len(memory)
    end = 0
    for number in range(grid.chunks):
        start, stop = grid.span(number)
        assert start == end
        assert 0 < stop - start <= grid.chunk_bytes <= max(chunk_bytes, 4)
        assert chunk_of(array, grid, number) == memory[start:stop]
        assert grid.number_at(start) == grid.number_at(stop - 1) == number
        index = tuple(int(part) for part in grid.key(number).split("/")[1:])
        assert grid.number_of(index) == number
        end = stop
    assert end == len(memory)


@given(shape=shapes, order=orders, chunk_bytes=st.integers(1, 400))
def test_the_chunk_shape_tells_the_grid(shape: Any, order: Any, chunk_bytes: int) -> None:
    grid = Grid.of(shape, 4, order, chunk_bytes)
    again = Grid.read(shape, grid.chunk_shape, 4, order)
    assert again == grid


@given(
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple),
    order=orders,
    chunk_bytes=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 30000), max_size=8),
)
def test_overlapping(shape: Any, order: Any, chunk_bytes: int, cuts: list[int]) -> None:
    grid = Grid.of(shape, 4, order, chunk_bytes)
    bounds = sorted(min(cut, grid.nbytes) for cut in cuts)
    ranges = list(zip(bounds[::2], bounds[1::2], strict=False))
    expected = [
        number
        for number in range(grid.chunks)
        if any(
            max(low, grid.span(number)[0]) < min(high, grid.span(number)[1]) for low, high in ranges
        )
    ]
    assert list(grid.overlapping(ranges)) == expected


@pytest.mark.parametrize(
    ("shape", "order", "chunk"),
    [
        ((1 << 20,), "C", (16384,)),  # the last one may be short, and all begin where pages do
        ((1000, 128, 128), "C", (1, 128, 128)),
        ((1000, 64, 128), "C", (2, 64, 128)),
        ((1000, 64, 128), "F", (1000, 16, 1)),
        ((10, 20000), "C", (1, 10000)),  # equal parts of a row, not 16384 and the rest
        ((3, 5), "C", (3, 5)),
        ((), "C", ()),
    ],
)
def test_64_kib_of_4_bytes(shape: Any, order: Any, chunk: Any) -> None:
    assert Grid.of(shape, 4, order, 1 << 16).chunk_shape == chunk


@pytest.mark.parametrize(("chunk", "order"), [((2, 2), "C"), ((3, 1), "C"), ((1, 3), "F")])
def test_chunks_that_lie_apart_are_no_grid(chunk: tuple[int, ...], order: Any) -> None:
    assert Grid.read((4, 4), chunk, 4, order) is None

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refault.stores.chunked.cache import BlockCache
from refault.stores.chunked.grid import (
    aligned,
    along_memory,
    block_shape,
    extents,
    in_rows,
    inside,
    intersection,
    overlapping,
    rectangles,
    tiles,
)
from refault.stores.chunked.locks import ChunkLocks

shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)


@given(shapes, st.data())
def test_rectangles_are_the_elements_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, numbers.size))
    stop = data.draw(st.integers(start, numbers.size))
    found = list(rectangles(shape, start, stop))
    parts = [numbers[one].reshape(-1) for one in found]
    assert list(itertools.chain(*parts)) == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(shapes, st.data())
def test_tiles_are_the_elements_of_a_rectangle(shape: tuple[int, ...], data: st.DataObject) -> None:
    block = tuple(data.draw(st.integers(1, 9)) for _ in shape)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, numbers.size - 1))
    for rectangle in rectangles(shape, start, data.draw(st.integers(start + 1, numbers.size))):
        out = np.full(extents(rectangle), -1)
        for place, whole, both in tiles(rectangle, shape, block):
            assert all(one.start == i * n for one, i, n in zip(whole, place, block, strict=True))
            assert (out[inside(rectangle, both)] == -1).all()
            out[inside(rectangle, both)] = numbers[whole][inside(whole, both)]
        assert np.array_equal(out, numbers[rectangle])


@given(shapes, st.integers(1, 8), st.integers(1, 3000), st.data())
def test_blocks_are_whole_chunks_and_large_enough(
    shape: tuple[int, ...], itemsize: int, least: int, data: st.DataObject
) -> None:
    chunks = tuple(data.draw(st.integers(1, 9)) for _ in shape)
    block = block_shape(shape, chunks, itemsize, least)
    for length, chunk, size in zip(block, chunks, shape, strict=True):
        assert length % chunk == 0 or length == size
    assert math.prod(block) * itemsize >= least or block == shape
    joined = [n for n, chunk in enumerate(chunks) if block[n] > chunk]
    if joined:
        # One chunk less on the axis that was joined last is too little.
        less = list(block)
        less[joined[0]] -= chunks[joined[0]]
        assert math.prod(less) * itemsize < least


@given(shapes, st.integers(1, 8), st.integers(1, 3000), st.integers(0, 3000), st.data())
def test_chunks_along_memory(
    shape: tuple[int, ...], itemsize: int, reach: int, most: int, data: st.DataObject
) -> None:
    chunks = tuple(data.draw(st.integers(1, 9)) for _ in shape)
    block = along_memory(shape, chunks, itemsize, reach, most)
    smallest = tuple(map(min, chunks, shape))
    for length, chunk, size in zip(block, chunks, shape, strict=True):
        assert (length % chunk == 0 or length == size) and length <= size
    assert math.prod(block) * itemsize <= max(most, math.prod(smallest) * itemsize)
    joined = [axis for axis, least in enumerate(smallest) if block[axis] > least]
    if joined:
        # All of the axes within, and not more of this one than the bytes reach.
        axis = joined[0]
        assert block[axis + 1 :] == shape[axis + 1 :]
        inner = math.prod(shape[axis + 1 :]) * itemsize
        assert (block[axis] - chunks[axis]) * inner < reach


@given(shapes, st.data())
def test_the_whole_blocks_of_a_rectangle(shape: tuple[int, ...], data: st.DataObject) -> None:
    block = tuple(data.draw(st.integers(1, 9)) for _ in shape)
    start = data.draw(st.integers(0, math.prod(shape) - 1))
    for rectangle in rectangles(shape, start, data.draw(st.integers(start + 1, math.prod(shape)))):
        found = aligned(rectangle, shape, block)
        whole = [one for _, one, both in tiles(rectangle, shape, block) if one == both]
        number = 0 if found is None else math.prod(extents(found))
        assert number == sum(math.prod(extents(one)) for one in whole)
        assert (
            found is None
            or np.empty(extents(rectangle))[inside(rectangle, found)].flags.c_contiguous
        )
        assert all(found is not None and intersection(found, one) == one for one in whole)


def test_rows_of_blocks() -> None:
    places = [(0, 1), (0, 2), (0, 3), (0, 5), (1, 0), (1, 1)]
    assert list(in_rows(places, 2)) == [
        ((0, 1), (0, 2)),
        ((0, 3), (0, 3)),
        ((0, 5), (0, 5)),
        ((1, 0), (1, 1)),
    ]
    assert list(in_rows([()], 2)) == [((), ())]
    assert list(overlapping((), ())) == [()]


class Decoder:
    """Counts what it decodes, and waits until it may go on."""

    def __init__(self) -> None:
        self.count = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def __call__(self) -> np.ndarray:  # type: ignore[type-arg]
        self.count += 1
        self.begun.set()
        assert self.go_on.wait(10)
        if self.error:
            raise self.error
        return np.zeros(100, np.uint8)


def got(cache: BlockCache[np.ndarray], key: int, decode: Decoder) -> np.ndarray:  # type: ignore[type-arg]
    return cache.get_all([(key, decode)])[0]


def test_what_one_decodes_the_others_wait_for() -> None:
    cache: BlockCache[np.ndarray] = BlockCache(1000)  # type: ignore[type-arg]
    decode = Decoder()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(got, cache, 1, decode) for _ in range(4)]
        assert decode.begun.wait(10)
        decode.go_on.set()
        blocks = [one.result(10) for one in found]
    assert decode.count == 1
    assert all(block is blocks[0] for block in blocks)
    assert cache.nbytes == 100


def test_who_needs_several_begins_with_what_nobody_else_decodes() -> None:
    cache: BlockCache[np.ndarray] = BlockCache(1000)  # type: ignore[type-arg]
    first, second = Decoder(), Decoder()
    second.go_on.set()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(got, cache, 1, first)
        assert first.begun.wait(10)
        both = pool.submit(cache.get_all, [(1, first), (2, second)])
        try:
            assert second.begun.wait(10)
        finally:
            first.go_on.set()
        assert one.result(10) is both.result(10)[0]
        assert both.result(10)[1] is got(cache, 2, second)
    assert (first.count, second.count) == (1, 1)


def test_what_failed_is_decoded_again() -> None:
    cache: BlockCache[np.ndarray] = BlockCache(1000)  # type: ignore[type-arg]
    decode = Decoder()
    decode.go_on.set()
    decode.error = ValueError("no")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            got(cache, 1, decode)
    decode.error = None
    assert got(cache, 1, decode).nbytes == 100
    assert decode.count == 3


def test_the_least_recently_used_goes() -> None:
    cache: BlockCache[np.ndarray] = BlockCache(300)  # type: ignore[type-arg]
    decode = Decoder()
    decode.go_on.set()
    for key in (1, 2, 3, 1, 4, 1, 3):
        got(cache, key, decode)
        assert cache.nbytes <= 300
    assert decode.count == 4
    got(cache, 2, decode)
    assert decode.count == 5
    small: BlockCache[np.ndarray] = BlockCache(99)  # type: ignore[type-arg]
    got(small, 1, decode)
    got(small, 1, decode)
    assert (decode.count, small.nbytes) == (7, 0)


def test_what_changes_while_it_is_decoded_is_not_kept() -> None:
    cache: BlockCache[np.ndarray] = BlockCache(1000)  # type: ignore[type-arg]
    old, new = Decoder(), Decoder()
    new.go_on.set()
    with ThreadPoolExecutor(1) as pool:
        flight = pool.submit(got, cache, 1, old)
        assert old.begun.wait(10)
        cache.drop([1, 2])
        block = got(cache, 1, new)
        old.go_on.set()
        assert flight.result(10) is not block
    assert got(cache, 1, new) is block
    cache.drop([1])
    assert cache.nbytes == 0
    got(cache, 1, new)
    assert new.count == 2


def test_locks_of_chunks_do_not_wait_in_a_circle() -> None:
    locks = ChunkLocks()
    keys = [(i, j) for i in range(20) for j in range(20)]
    inside = [0] * len(keys)

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(50):
            some = chance.choice(len(keys), 5, replace=False)
            with locks.hold(keys[int(index)] for index in some):
                for index in some:
                    inside[index] += 1
                    assert inside[index] == 1
                for index in some:
                    inside[index] -= 1

    with ThreadPoolExecutor(8) as pool:
        for one in [pool.submit(work, seed) for seed in range(8)]:
            one.result(30)

"""Each library against numpy, without a pager: shapes, chunks, dtypes, ranges, changes."""

from __future__ import annotations

import pathlib
import pickle
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.chunked import KINDS, load, numbers, save, saved
from refault.errors import StoreError
from refault.stores.chunked import ChunkedStore, find, view, writing
from refault.stores.chunked.arrays import Facts

DTYPES: dict[str, Any] = {
    name: name for name in ("u1", "<i2", ">i4", "<f2", ">f8", "?", "<c8", ">c16", "S3", "<U2")
} | {"record": [("a", "<i4"), ("b", ">f8"), ("c", "S5")]}
REFUSED = {
    # What the library itself cannot store.
    "shards": {"record"},
    "hdf5": {"<U2"},
    "hdf5-plain": {"<U2"},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of a few chunks, so that small arrays have many."""
    monkeypatch.setattr(view, "BLOCK_BYTES", 64)
    monkeypatch.setattr(view, "LEAST_WRITE_BYTES", 32)
    monkeypatch.setattr(writing, "WRITE_BYTES", 256)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        yield


def memory(array: npt.NDArray[Any], order: str) -> bytearray:
    return bytearray(array.tobytes("F" if order == "F" else "C"))


def read(store: ChunkedStore, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


examples = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", KINDS)
@examples
@given(data=st.data())
def test_any_range_of_any_array(kind: str, data: st.DataObject) -> None:
    possible = sorted(DTYPES.keys() - REFUSED.get(kind, set()))
    dtype = data.draw(st.sampled_from(possible))
    shape = data.draw(st.lists(st.integers(1, 9), max_size=3).map(tuple))
    chunks = tuple(data.draw(st.integers(1, 10)) for _ in shape)
    order = data.draw(st.sampled_from(["C", "F"]))
    array = numbers(shape, DTYPES[dtype])
    with saved(kind, array, chunks) as (path, key):
        # The byte order may be another one: Zarr 3 has none.
        array = load(path, key)
        cache = data.draw(st.sampled_from([0, 100, 1 << 20]))
        store = ChunkedStore(
            find(path, key=key, writable=True), writable=True, order=order, cache=cache
        )
        assert (store.shape, store.dtype, store.size) == (array.shape, array.dtype, array.nbytes)
        content = memory(array, order)
        try:
            for _ in range(data.draw(st.integers(1, 6))):
                offset = data.draw(st.integers(0, len(content)))
                length = data.draw(st.integers(0, len(content) - offset))
                if dtype != "?" and data.draw(st.booleans()):
                    new = bytes(i % 100 + 1 for i in range(length))
                    if dtype == "<U2":
                        offset, length, new = offset // 8 * 8, length // 8 * 8, b"y\0\0\0\0\0\0\0"
                        new *= length // 8
                    store.write_from(offset, memoryview(new))
                    content[offset : offset + length] = new
                assert read(store, offset, length) == content[offset : offset + length]
                assert store.fetch(offset, length) == content[offset : offset + length]
            assert read(store, 0, len(content)) == content
            store.flush()
        finally:
            store.close()
        assert memory(load(path, key), order) == content


@pytest.mark.parametrize("kind", KINDS)
def test_many_write_to_the_same_chunks(kind: str) -> None:
    """Places beside each other, which no write may take with it; what is beside stays readable."""
    array = numbers((60, 50), "<i4")
    length = 331  # bytes: neither elements nor rows
    with saved(kind, array, (25, 20)) as (path, key):
        store = ChunkedStore(find(path, key=key, writable=True), writable=True)
        content = memory(load(path, key), "C")
        places = list(range(0, len(content) - length, length))
        unchanged = content[-40:]

        def work(number: int) -> None:
            for place in places[number::4]:
                store.write_from(place, memoryview(bytes([number + 1]) * length))
                assert read(store, place, length) == bytes([number + 1]) * length
                assert read(store, len(content) - 40, 40) == unchanged

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(4) as pool:
                for one in [pool.submit(work, number) for number in range(4)]:
                    one.result(60)
        finally:
            sys.setswitchinterval(before)
        for number in range(4):
            for place in places[number::4]:
                content[place : place + length] = bytes([number + 1]) * length
        assert read(store, 0, len(content)) == content
        store.close()
        assert memory(load(path, key), "C") == content


def test_a_store_travels(tmp_path: pathlib.Path) -> None:
    path, key = save("hdf5", tmp_path, numbers((30, 20), "<i4"), (7, 9))
    store = ChunkedStore(find(path, key=key), writable=False, order="F", cache=12345)
    read(store, 0, 10)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.name, copy.order, copy.cache_bytes) == (store.name, "F", 12345)
    assert read(copy, 0, copy.size) == memory(load(path, key), "F")
    assert copy.version == store.version is not None
    with pytest.raises(StoreError, match="open for reading only") as caught:
        copy.write_from(0, memoryview(b"1234"))
    assert caught.value.permanent
    pickled = pickle.dumps(store)
    copy.close()
    store.close()
    save("hdf5", tmp_path, numbers((30, 21), "<i4"), (7, 9))
    with pytest.raises(StoreError, match=r"another array: \(30, 21\) int32, and it was \(30, 20\)"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("shape", "chunks", "band"),
    [
        ((1000, 1000), (10, 1000), 0),
        ((1000, 1000), (1, 500), 0),
        ((1000, 1000), (20, 500), 20 * 1000 * 8),
        ((100, 200, 300), (4, 50, 300), 4 * 200 * 300 * 8),
        ((100, 200, 300), (1, 50, 100), 50 * 300 * 8),
        ((1000000,), (5000,), 0),
    ],
)
def test_what_a_read_in_order_comes_back_to(
    shape: tuple[int, ...], chunks: tuple[int, ...], band: int
) -> None:
    facts = Facts(np.dtype("f8"), shape, chunks, chunks)
    assert view.View(facts, "C").band_bytes == band
    turned = Facts(np.dtype("f8"), shape[::-1], chunks[::-1], chunks[::-1])
    assert view.View(turned, "F").band_bytes == band

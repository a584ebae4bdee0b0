"""Each library against numpy, without a pager: shapes, chunks, dtypes, ranges, changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.chunked import KINDS, load, numbers, saved
from refault.stores.chunked import ChunkedStore, find, view, writing

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

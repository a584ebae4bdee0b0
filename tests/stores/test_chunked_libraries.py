"""Each library against numpy, without a pager: shapes, chunks, dtypes, ranges, changes."""

from __future__ import annotations

import pathlib
import pickle
import sys
import threading
import time
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
from refault.stores.chunked import ChunkedStore, blosc2lib, blosc2s, find, reading, view, writing
from refault.stores.chunked.arrays import ChunkedArray, Facts

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
    monkeypatch.setattr(view, "UNIT_BYTES", 48)
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
        writable = data.draw(st.booleans())
        store = ChunkedStore(
            find(path, key=key, writable=writable), writable=writable, order=order, cache=cache
        )
        assert (store.shape, store.dtype, store.size) == (array.shape, array.dtype, array.nbytes)
        content = memory(array, order)
        try:
            for _ in range(data.draw(st.integers(1, 6))):
                offset = data.draw(st.integers(0, len(content)))
                length = data.draw(st.integers(0, len(content) - offset))
                if writable and dtype != "?" and data.draw(st.booleans()):
                    new = bytes(i % 100 + 1 for i in range(length))
                    if dtype == "<U2":
                        offset, length, new = offset // 8 * 8, length // 8 * 8, b"y\0\0\0\0\0\0\0"
                        new *= length // 8
                    store.write_from(offset, memoryview(new))
                    content[offset : offset + length] = new
                assert read(store, offset, length) == content[offset : offset + length]
                kept = store.fetch(offset, length)
                assert kept is None or b"".join(kept) == content[offset : offset + length]
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


def test_blosc2_is_read_by_its_c_library_and_by_itself_if_that_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = np.random.default_rng(3).random((300, 200))
    path, _ = save("blosc2", tmp_path, right, (128, 90), blocks=(33, 45))
    content = right.tobytes()

    def by(library: Any, *, opened: bool = True) -> tuple[bool, bool]:
        """Which of the two were asked, of eight threads that read all of it."""
        asked: list[tuple[bool, bool]] = []
        monkeypatch.setattr(blosc2s, "library", library)
        store = ChunkedStore(find(path), writable=False)
        array: Any = store._opened()
        handles, python = array._handles, array._array

        class Told:
            def read_into(self, *arguments: Any) -> bool:
                asked.append((True, False))
                return bool(handles.read_into(*arguments))

            def get_slice_numpy(self, *arguments: Any) -> Any:
                asked.append((False, True))
                return python.get_slice_numpy(*arguments)

            def close(self) -> None:
                handles.close()

        array._handles = handles and Told()
        array._array = Told()
        if handles is not None and not opened:
            handles._path = b"/nowhere"
        with ThreadPoolExecutor(8) as pool:
            found = b"".join(
                pool.map(lambda at: read(store, at, 1600), range(0, len(content), 1600))
            )
        assert found == content
        if handles is not None:
            assert len(handles._spare) in (range(1, 9) if opened else [0])
            store.close()
            assert handles._spare == []
        return tuple(map(any, zip(*asked, strict=True)))  # type: ignore[return-value]

    assert blosc2lib.library() is not None, "the wheels of python-blosc2 have it"
    assert by(blosc2lib.library) == (True, False)
    assert by(blosc2lib.library, opened=False) == (True, True)
    assert by(lambda: None) == (False, True)


class Squares:
    """256 x 2048 numbers in chunks of 64 x 64, which notes what it is asked for; see `Place`."""

    name = "squares"
    far = False

    def __init__(self, together: int) -> None:
        self.facts = Facts(np.dtype("f8"), (256, 2048), (64, 64), (64, 64), together=together)
        self.content = np.arange(256 * 2048.0).reshape(256, 2048)
        self.asked: list[Any] = []

    def open(self, *, writable: bool) -> ChunkedArray:
        return self  # type: ignore[return-value]

    def close(self) -> None:
        pass

    def read(self, rectangle: Any, empty: Any = np.empty) -> npt.NDArray[Any]:
        self.asked.append(rectangle)
        time.sleep(0.002)  # the others come meanwhile
        return self.content[rectangle].copy()

    def read_into(self, rectangle: Any, out: npt.NDArray[Any]) -> None:
        out[...] = self.read(rectangle)


def read_in_order(place: Squares, cache: int, runs: int, threads: int = 8) -> tuple[int, int]:
    """Read all in runs, some at a time; how many elements were decoded, how many runs kept."""
    store = ChunkedStore(place, writable=False, cache=cache)
    content = place.content.tobytes()
    kept = 0

    def run(number: int) -> bool:
        length = len(content) // runs
        found = store.fetch(number * length, length)
        other = read(store, number * length, length) if found is None else b"".join(found)
        assert other == content[number * length : (number + 1) * length]
        return found is not None

    with ThreadPoolExecutor(threads) as pool:
        kept = sum(pool.map(run, range(runs)))
    decoded = sum((rows.stop - rows.start) * (cols.stop - cols.start) for rows, cols in place.asked)
    return decoded, kept


def test_no_more_is_decoded_at_a_time_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view, "UNIT_BYTES", 64 << 10)
    monkeypatch.setattr(reading, "DECODING_BYTES", 3 << 18)
    place = Squares(together=1 << 18)
    at_once = most = 0
    lock = threading.Lock()
    read_it = place.read

    def counting(rectangle: Any, empty: Any) -> npt.NDArray[Any]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        found = read_it(rectangle)
        with lock:
            at_once -= 1
        return found

    monkeypatch.setattr(place, "read", counting)
    read_in_order(place, 8 << 20, 64)
    assert (most, len(place.asked)) == (3, 16)


def test_chunks_side_by_side_are_decoded_once_with_one_call_and_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view, "UNIT_BYTES", 64 << 10)
    size = 256 * 2048
    # A page unit is four rows: a band of 32 chunks is one block, of 1 MiB.
    place = Squares(together=1 << 20)
    assert read_in_order(place, 2 << 20, 64) == (size, 64)
    assert len(place.asked) == 4
    # Runs that are whole blocks are not kept, but decoded where they are wanted.
    place = Squares(together=1 << 20)
    assert read_in_order(place, 2 << 20, 4) == (size, 0)
    assert len(place.asked) == 4
    # No more than half of what may be kept is decoded together, and no more than is allowed.
    for together, cache, calls in (
        (1 << 20, 1 << 20, 8),
        (1 << 18, 2 << 20, 16),
        (0, 2 << 20, 128),
    ):
        place = Squares(together=together)
        assert read_in_order(place, cache, 64, threads=1) == (size, 0)
        assert len(place.asked) == calls

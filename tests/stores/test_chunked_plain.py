"""Chunks of Zarr that are decoded without zarr: which ones, and that they are what zarr says."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import threading
import time
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.chunked import load, numbers, save
from refault.errors import StoreError
from refault.stores.chunked import ChunkedStore, find, plain, reading, view
from refault.stores.chunked.ahead import Ahead
from refault.stores.chunked.blocks import BlockMemory
from refault.stores.chunked.cache import BlockCache
from refault.stores.chunked.plain import zstd_length
from refault.stores.chunked.zarrs import ZarrArray, ZarrPlace

CODECS: dict[str, dict[str, Any]] = {
    "2-zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd(3)},
    "2-blosc": {
        "zarr_format": 2,
        "compressors": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
    },
    "3-zstd": {"zarr_format": 3, "compressors": zarr.codecs.ZstdCodec(checksum=True)},
    "3-blosc": {"zarr_format": 3, "compressors": zarr.codecs.BloscCodec(typesize=4)},
}
OTHERS: dict[str, dict[str, Any]] = {
    "2-big": {"zarr_format": 2, "dtype": ">f4"},
    "2-columns": {"zarr_format": 2, "order": "F"},
    "2-filter": {"zarr_format": 2, "filters": numcodecs.Delta("<f4")},
    "2-text": {"zarr_format": 2, "dtype": "S4"},
    "2-raw": {"zarr_format": 2, "compressors": None},
    "2-gzip": {"zarr_format": 2, "compressors": numcodecs.GZip()},
    "3-big": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "3-turned": {"filters": zarr.codecs.TransposeCodec(order=(1, 0))},
    "3-checksum": {"compressors": (zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec())},
    "3-shards": {"shards": (24, 36)},
    "3-text": {"dtype": "S4"},
}


def make(folder: pathlib.Path, array: npt.NDArray[Any], **others: Any) -> str:
    path = str(folder / "data.zarr")
    zarr.create_array(
        path,
        **{"shape": array.shape, "dtype": array.dtype, "chunks": (12, 18), "fill_value": 7}
        | others,
    )[...] = array
    return path


def opened(path: str, *, zarr_reads: bool = True) -> ZarrArray:
    place = find(path)
    assert isinstance(place, ZarrPlace)
    array = place.open(writable=False)
    if not zarr_reads:
        array._read = None  # type: ignore[assignment, method-assign]
    return array


class Folders:
    """An array in each of the codecs, read without zarr."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.right = numbers((50, 61), "<f4")
        self.arrays = {}
        for name, options in CODECS.items():
            (folder / name).mkdir()
            self.arrays[name] = opened(make(folder / name, self.right, **options), zarr_reads=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("plain"))


def slices(length: int) -> st.SearchStrategy[slice]:
    pairs = st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)
    return pairs.map(lambda pair: slice(min(pair), max(pair)))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(CODECS)), slices(50), slices(61), st.booleans())
def test_any_rectangle_without_zarr(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, name: str, rows: slice, columns: slice,
    shared: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(plain, "SHARED_BYTES", 0 if shared else 1 << 30)
    array, right = folders.arrays[name], folders.right[rows, columns]
    assert np.array_equal(array.read((rows, columns)), right)
    out = np.empty_like(right)
    array.read_into((rows, columns), out)
    assert np.array_equal(out, right)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", "<u8", "<f2", "<f8", "<c16"])
def test_numbers_of_any_kind(tmp_path: pathlib.Path, dtype: str) -> None:
    right = numbers((40, 30), dtype)
    array = opened(make(tmp_path, right), zarr_reads=False)
    assert np.array_equal(array.read((slice(0, 40), slice(0, 30))), right)


@pytest.mark.filterwarnings("ignore:.*Zarr V3 specification.*")
@pytest.mark.parametrize("name", OTHERS)
def test_all_else_is_left_to_zarr(tmp_path: pathlib.Path, name: str) -> None:
    array = opened(
        make(tmp_path, numbers((50, 61), OTHERS[name].get("dtype", "<f4")), **OTHERS[name])
    )
    assert array._plain is None
    assert opened(make(tmp_path, np.ones((5, 6)), overwrite=True))._plain is not None


def test_a_chunk_that_is_not_there_is_zarrs(tmp_path: pathlib.Path) -> None:
    path = make(tmp_path, numbers((48, 36), "<f4"))
    pathlib.Path(path, "c/1/0").unlink()
    pathlib.Path(path, "c/3/1").unlink()
    right = load(path, None)
    assert (right[12:24, :18] == 7).all()
    array = opened(path)
    assert np.array_equal(array.read((slice(0, 48), slice(0, 36))), right)
    assert np.array_equal(array.read((slice(12, 14), slice(0, 9))), right[12:14, :9])


ZSTD = numcodecs.Zstd()
CHUNK = 12 * 18 * 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"what is this",
        ZSTD.encode(b"x" * CHUNK)[:-3],
        ZSTD.encode(b"x" * (CHUNK - 4)),
        ZSTD.encode(b"x" * (CHUNK + 4)),
        ZSTD.encode(b"x" * CHUNK) + ZSTD.encode(b"y" * CHUNK),
        ZSTD.encode(b"x" * (CHUNK // 2)) + ZSTD.encode(b"y" * (CHUNK // 2)),
    ],
    ids=["empty", "text", "cut", "short", "long", "two", "halves"],
)
def test_a_chunk_with_other_content_is_what_zarr_makes_of_it(
    tmp_path: pathlib.Path, content: bytes
) -> None:
    """Bytes of the chunk that was decoded before, in the same memory, are never taken for it."""
    path = make(tmp_path, numbers((24, 36), "<f4"))
    pathlib.Path(path, "c/1/1").write_bytes(content)
    store = ChunkedStore(find(path), writable=False)
    found, right = None, None
    with contextlib.suppress(Exception):
        right = load(path, None).tobytes()
    buffer = bytearray(24 * 36 * 4)
    with contextlib.suppress(StoreError):
        store.read_into(0, memoryview(buffer))
        found = bytes(buffer)
    assert found == right
    if right is None:
        chunks = opened(path)._plain
        assert chunks is not None
        assert not chunks.read_into((slice(0, 24), slice(0, 36)), np.empty((24, 36), "<f4"))


@pytest.mark.parametrize("length", [1, 255, 256, 257, 65791, 65792, 1 << 20])
def test_a_frame_of_zstd_says_how_long_it_is(length: int) -> None:
    assert zstd_length(memoryview(ZSTD.encode(b"x" * length))) == length


def test_what_is_no_frame_of_zstd_says_nothing() -> None:
    streamed = bytes.fromhex("28b52ffd0058") + bytes(20)  # whose length is not known
    cut = ZSTD.encode(b"x" * 70_000)[:7]
    for content in (b"", b"x" * 100, streamed, cut):
        assert zstd_length(memoryview(content)) is None


def test_memory_is_used_again_when_nobody_has_it() -> None:
    memory = BlockMemory(1000, spare=2500)
    first = memory.empty((25, 5), np.dtype("f8"))
    where = first.ctypes.data
    first[...] = 1.0
    part = memoryview(first.reshape(-1).view("u1"))[8:16]
    other = memory.empty((1000,), np.dtype("u1"))
    other[...] = 2
    assert other.ctypes.data != where
    del first
    assert memory.nbytes == 0
    assert memory.empty((125,), np.dtype("f8")).ctypes.data != where
    assert memory.nbytes == 1000  # of that one
    assert part.tobytes() == np.float64(1.0).tobytes()
    part.release()
    del part
    gc.collect()
    assert memory.nbytes == 2000
    found = [memory.empty((500,), np.dtype("u1")) for _ in range(4)]
    assert where in [one.ctypes.data for one in found]
    assert len({one.ctypes.data for one in found}) == 4
    assert memory.nbytes == 0
    del found
    assert memory.nbytes == 2000  # not more than was said
    memory.empty((499,), np.dtype("u1"))
    memory.empty((1001,), np.dtype("u1"))
    assert memory.nbytes == 2000


def test_threads_never_have_the_same_memory(tmp_path: pathlib.Path) -> None:
    memory = BlockMemory(4096, spare=4 * 4096)
    wrong = []

    def work(number: int) -> None:
        for round_ in range(300):
            mine = memory.empty((512,), np.dtype("i8"))
            mine[...] = number * 1000 + round_
            time.sleep(0)
            if not (mine == number * 1000 + round_).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not wrong
    assert memory.nbytes <= 4 * 4096


def test_reads_that_follow_on_each_other() -> None:
    ahead = Ahead(4000)
    found = [
        ahead.follows(first, 100)
        # One somewhere else, and two in another order than they were asked for.
        for first in (0, 100, 200, 1500, 400, 300, 500, 1600)
    ]
    assert found == [False, True, True, False, False, True, True, True]
    assert [ahead.is_next(block) for block in (1000, 1000, 2000, 4000, 1000)] == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_a_block_that_was_read_in_order_is_forgotten() -> None:
    cache: BlockCache[npt.NDArray[np.uint8]] = BlockCache(100)
    for key in "ab":
        cache.get_all([(key, lambda: np.zeros(40, "u1"))])
    cache.use_up("a", 30)
    assert cache.nbytes == 80
    cache.use_up("a", 10)
    assert (cache.nbytes, list(cache._kept)) == (40, ["b"])
    cache.use_up("a", 40)  # nobody has it
    # What was used of a block that is gone does not count for it when it is there again.
    cache.use_up("b", 30)
    cache.drop("b")
    cache.get_all([("b", lambda: np.zeros(40, "u1"))])
    cache.use_up("b", 30)
    assert cache.nbytes == 40


def test_the_next_block_is_decoded_before_anybody_asks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "BLOCK_BYTES", 64)
    monkeypatch.setattr(view, "UNIT_BYTES", 256)
    monkeypatch.setattr(reading, "AHEAD_BYTES", 1024)
    right = np.arange(64 * 32.0).reshape(64, 32)
    squares, _ = save("zarr3", tmp_path, right, (8, 8))  # blocks are bands of 2 KiB
    rows = make(tmp_path / "rows", right, chunks=(8, 32))  # and that are chunks

    def kept_after(reads: list[int], cache: int, path: str = squares) -> int:
        store = ChunkedStore(find(path), writable=False, cache=cache)
        for at in reads:
            found = store.fetch(at, 256)
            assert found is not None
            assert b"".join(found) == right.tobytes()[at : at + 256]
        for one in threading.enumerate():
            if one is not threading.current_thread() and one.name.startswith("refault-ahead"):
                one.join(60)
        return len(store._cache._kept)

    assert kept_after([0, 256], 1 << 20) == 2
    assert kept_after([0, 256, 512, 768], 1 << 20) == 2
    assert kept_after([0, 512, 1024], 1 << 20) == 1
    assert kept_after([14 * 1024, 14 * 1024 + 256], 1 << 20) == 1  # the last block
    assert kept_after([0, 256], 4096, rows) == 2
    assert kept_after([0, 256], 2048, rows) == 1  # there is room for one
    # What was read to its end goes, unless there is room for all.
    everything = list(range(0, 64 * 256, 256))
    assert kept_after(everything, 8192) <= 2
    assert kept_after(everything, 1 << 20) == 8


def test_what_lies_in_several_blocks_is_not_copied(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "BLOCK_BYTES", 64)
    monkeypatch.setattr(view, "UNIT_BYTES", 256)
    right = np.arange(60 * 32.0).reshape(60, 32)
    path, _ = save("zarr3", tmp_path, right, (8, 8))  # blocks are bands of 2 KiB
    store = ChunkedStore(find(path), writable=False)
    content = right.tobytes()
    for offset, lengths in ((0, [8]), (1000, [1048, 2040]), (2040, [8, 8]), (14328, [8, 1000])):
        found = store.fetch(offset, sum(lengths))
        assert found is not None
        assert [len(part) for part in found] == lengths
        assert b"".join(found) == content[offset : offset + sum(lengths)]
    assert store.fetch(1000, 1048 + 2048) is None  # all of a block need not be kept
    assert store.fetch(1001, 8) is None  # a part of an element

"""Bytes that change where they lie: found wherever there is a checksum, at 1 % and at 20 %.

Of 100 blocks so many have one byte that is wrong.  What is delivered is right; what cannot be is an
error, of exactly those blocks.
"""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import redis

from helpers import servers
from helpers.chunked import save
from helpers.teststores import Versioned
from refault.errors import StoreError
from refault.stores import DiskCache, Redis
from refault.stores.chunked import ChunkedStore, find

BLOCK, BLOCKS = 4096, 100
CONTENT = random.Random(4).randbytes(BLOCK * BLOCKS)

pytestmark = pytest.mark.parametrize("percent", [1, 20])


def chosen(percent: int) -> set[int]:
    return set(random.Random(percent).sample(range(BLOCKS), BLOCKS * percent // 100))


def flip(data: bytes, number: int) -> bytes:
    """One byte is another one."""
    flipped = bytearray(data)
    flipped[random.Random(number).randrange(len(data))] ^= 0x10
    return bytes(flipped)


def flip_in(path: pathlib.Path, number: int, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        data = flip(file.read(length), number)
        file.seek(start)
        file.write(data)


def failed(read_into: Callable[[int, memoryview], Any]) -> set[int]:
    """The blocks that are an error; all others are right."""
    found = set()
    for number in range(BLOCKS):
        buffer = bytearray(BLOCK)
        try:
            read_into(number * BLOCK, memoryview(buffer))
        except StoreError:
            found.add(number)
        else:
            assert buffer == CONTENT[number * BLOCK : (number + 1) * BLOCK], number
    return found


def test_disk_cache_fetches_them_again(tmp_path: pathlib.Path, percent: int) -> None:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    with closing(DiskCache(Versioned(path, 1), tmp_path / "cache", block=BLOCK)) as store:
        assert not failed(store.read_into)
        blocks = sorted((tmp_path / "cache" / "refault-blocks").glob("??/*"))
        assert len(blocks) == BLOCKS
        for number in chosen(percent):
            size = blocks[number].stat().st_size
            flip_in(blocks[number], number, size - BLOCK, BLOCK)
        assert not failed(store.read_into)
        assert store.damaged == len(chosen(percent))
        assert store.misses == BLOCKS + store.damaged


def test_redis(server: servers.RedisServer, percent: int) -> None:
    store = Redis(server.url, f"flipped-{percent}", size=len(CONTENT), block=BLOCK)
    with closing(store), closing(redis.Redis.from_url(server.url)) as one:
        store.write_from(0, memoryview(CONTENT))
        for number in chosen(percent):
            key = store._info.block_key(number)
            value: Any = one.get(key)
            one.set(key, flip(value, number))
        assert failed(store.read_into) == chosen(percent)


def test_zarr(tmp_path: pathlib.Path, percent: int) -> None:
    from zarr.codecs import Crc32cCodec

    array = np.frombuffer(CONTENT, "u1")
    path, _ = save("zarr3", tmp_path, array, (BLOCK,), compressors=[Crc32cCodec()])
    for number in chosen(percent):
        flip_in(pathlib.Path(path, "c", str(number)), number, 0, BLOCK + 4)
    with closing(
        ChunkedStore(find(path, key=None, writable=False), writable=False, cache=0)
    ) as store:
        assert failed(store.read_into) == chosen(percent)


def test_hdf5(tmp_path: pathlib.Path, percent: int) -> None:
    import h5py

    path = tmp_path / "x.h5"
    array = np.frombuffer(CONTENT, "u1")
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", data=array, chunks=(BLOCK,), fletcher32=True)
        places = [made.id.get_chunk_info(number) for number in range(BLOCKS)]
    for number in chosen(percent):
        assert places[number].chunk_offset == (number * BLOCK,)
        flip_in(path, number, places[number].byte_offset, BLOCK)
    with closing(
        ChunkedStore(find(str(path), key="x", writable=False), writable=False, cache=0)
    ) as store:
        assert failed(store.read_into) == chosen(percent)

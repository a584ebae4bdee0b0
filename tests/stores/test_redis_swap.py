"""Swap on Redis servers: what is put there comes back, or an error does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from helpers import servers
from refault.errors import StoreError
from refault.stores.redis import scripts
from refault.stores.redis.swap import RedisSwap

PAGE = 65536
CHANCE = random.Random(1)
NOISE = CHANCE.randbytes(PAGE)
TEXT = (b"nothing new under the sun; " * 3000)[:PAGE]
ZEROS = bytes(PAGE)


@pytest.fixture
def client(server: servers.RedisServer) -> Iterator[redis.Redis]:
    with closing(redis.Redis(port=server.port)) as one:
        yield one
        one.flushall()


@pytest.fixture
def swap(server: servers.RedisServer) -> Iterator[RedisSwap]:
    one = RedisSwap(server.url)
    yield one
    one.close()


def store(swap: RedisSwap, *pages: bytes, first: int = 0) -> None:
    swap.store_all([((1, first + i), memoryview(page)) for i, page in enumerate(pages)])


def load(swap: RedisSwap, *indexes: int) -> list[bytes]:
    buffers = [bytearray(b"\xee" * PAGE) for _ in indexes]
    swap.load_all([((1, i), memoryview(one)) for i, one in zip(indexes, buffers, strict=True)])
    return [bytes(one) for one in buffers]


def keys(client: redis.Redis) -> list[bytes]:
    return list(client.scan_iter(count=1000))


def test_pages_come_back(swap: RedisSwap, client: redis.Redis) -> None:
    store(swap, NOISE, TEXT, ZEROS)
    assert load(swap, 0, 1, 2) == [NOISE, TEXT, ZEROS]
    sizes = sorted(client.strlen(key) for key in keys(client))
    assert len(sizes) == 2
    assert sizes[0] < PAGE // 10
    store(swap, TEXT, NOISE, first=1)
    store(swap, ZEROS)
    assert load(swap, 2, 0, 1) == [NOISE, ZEROS, TEXT]
    assert len(keys(client)) == 2


def test_only_zeros_need_no_waiting(swap: RedisSwap, client: redis.Redis) -> None:
    store(swap, NOISE, ZEROS)
    buffer = bytearray(b"\xee" * PAGE)
    assert not swap.load_nowait((1, 0), memoryview(buffer))
    assert not swap.load_nowait((1, 2), memoryview(buffer))
    assert swap.load_nowait((1, 1), memoryview(buffer))
    assert buffer == ZEROS


def test_close_leaves_nothing(server: servers.RedisServer, client: redis.Redis) -> None:
    client.set("mine", "stays")
    with closing(RedisSwap(server.url)) as swap, closing(RedisSwap(server.url)) as other:
        store(other, TEXT)
        for first in range(0, 600, 100):
            store(swap, *[TEXT] * 100, first=first)
        assert len(keys(client)) == 602
        swap.discard_all(1)
        with pytest.raises(StoreError, match="there is no page"):
            load(swap, 0)
        swap.close()
        assert len(keys(client)) == 2
        assert load(other, 0) == [TEXT]
    assert keys(client) == [b"mine"]


def test_a_lost_page_is_an_error(swap: RedisSwap, client: redis.Redis) -> None:
    store(swap, NOISE, TEXT)
    client.flushall()
    with pytest.raises(StoreError, match="no longer has") as caught:
        load(swap, 1)
    assert caught.value.permanent
    with pytest.raises(StoreError, match=r"there is no page \(1, 7\)"):
        load(swap, 7)


def test_an_older_page_is_an_error(swap: RedisSwap, client: redis.Redis) -> None:
    store(swap, NOISE)
    (key,) = keys(client)
    before = client.get(key)
    store(swap, TEXT)
    client.set(key, before)
    with pytest.raises(StoreError, match="not the version that was written last") as caught:
        load(swap, 0)
    assert caught.value.permanent
    client.set(key, before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(StoreError, match="does not hold what was written"):
        load(swap, 0)


def test_a_late_write_does_not_undo_a_later_one(swap: RedisSwap, client: redis.Redis) -> None:
    store(swap, NOISE)
    (key,) = keys(client)
    late = client.get(key)
    store(swap, TEXT)
    assert client.eval(scripts.PUT, 1, key, late) == scripts.OVERTAKEN
    assert load(swap, 0) == [TEXT]


def test_what_could_not_be_stored_is_missing_and_not_old() -> None:
    with servers.redis() as server, closing(redis.Redis(port=server.port)) as one:
        swap = RedisSwap(server.url)
        store(swap, TEXT)
        one.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="raise its maxmemory") as caught:
            store(swap, NOISE)
        assert not caught.value.permanent
        with pytest.raises(StoreError, match="there is no page"):
            load(swap, 0)
        one.config_set("maxmemory", 0)
        store(swap, NOISE)
        assert load(swap, 0) == [NOISE]
        server.kill()
        with pytest.raises(StoreError, match="are left behind"):
            swap.close()


def test_in_a_cluster() -> None:
    with servers.redis_cluster() as nodes:
        pages = [CHANCE.randbytes(PAGE) for _ in range(200)]
        with closing(RedisSwap(nodes[0].url)) as swap:
            store(swap, *pages)
            assert min(int(node.ask("DBSIZE")[1:]) for node in nodes) > 20
            assert load(swap, *range(200)) == pages
        assert all(node.ask("DBSIZE") == b":0" for node in nodes)

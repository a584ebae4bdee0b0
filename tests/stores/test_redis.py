"""An array in the memory of Redis servers: right, or an error that says what was lost."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis

from helpers import servers
from helpers.leftovers import connections, open_files
from refault.errors import StoreError, UsageError
from refault.stores import Redis
from refault.stores.objects import dump_object, load_object
from refault.stores.redis.layout import PAGE_BLOCKS, ArrayInfo, generation
from refault.stores.redis.swap import RedisSwap

SIZE = 5 * 65536 + 4321
CONTENT = random.Random(1).randbytes(SIZE)


@pytest.fixture(params=["single", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "single":
        return str(request.getfixturevalue("server").url)
    return str(request.getfixturevalue("cluster")[0].url)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@contextmanager
def client(url: str) -> Iterator[Any]:
    with closing(redis.Redis.from_url(url)) as plain:
        if not plain.info("cluster")["cluster_enabled"]:
            yield plain
            return
    with closing(redis.RedisCluster.from_url(url)) as cluster:
        yield cluster
        cluster.disconnect_connection_pools()


def keys(url: str) -> set[bytes]:
    with client(url) as one:
        return set(one.scan_iter("*", count=1000))


def read(store: Redis, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def full(url: str, key: str, **options: Any) -> Redis:
    store = Redis(url, key, size=SIZE, **options)
    store.write_from(0, memoryview(CONTENT))
    return store


def copy(store: Redis) -> Redis:
    found = load_object(dump_object(store), [])
    assert isinstance(found, Redis)
    return found


def test_new_array_is_zeros_and_keeps_what_is_written(url: str, key: str) -> None:
    with closing(Redis(url, key, size=SIZE)) as store:
        assert read(store, 0, SIZE) == bytes(SIZE)
        store.write_from(65530, memoryview(b"across blocks"))
        assert read(store, 65530, 13) == b"across blocks"
        store.write_from(SIZE - 4, memoryview(b"end!"))
        assert read(store, SIZE - 4, 4) == b"end!"
        store.flush()
        with closing(copy(store)) as other:
            right = bytearray(SIZE)
            right[65530:65543] = b"across blocks"
            right[-4:] = b"end!"
            assert read(other, 0, SIZE) == right
        assert read(store, 3 * 65536, 65536) == bytes(65536)


def test_close_closes_all_connections(url: str, key: str) -> None:
    port = int(url.rpartition(":")[2])
    assert connections(port) == 0
    files = open_files()
    store = full(url, key)
    assert read(store, 0, SIZE) == CONTENT
    assert connections(port) > 0
    store.close()
    assert connections(port) == 0
    assert open_files() == files
    store.close()
    assert read(store, 0, 1) == CONTENT[:1]
    store.close()


def test_an_array_is_found_again_by_its_name(url: str, key: str) -> None:
    full(url, key, block=4096).close()
    with closing(Redis(url, key)) as store:
        assert (store.size, store.block) == (SIZE, 4096)
        assert read(store, 0, SIZE) == CONTENT
    with pytest.raises(UsageError, match="there is an array"):
        Redis(url, key, size=SIZE)
    with pytest.raises(UsageError, match="there is no array"):
        Redis(url, "another")


def test_a_cluster_spreads_blocks_and_keeps_the_record_twice(
    cluster: list[servers.RedisServer], key: str
) -> None:
    size = 64 << 20
    with closing(Redis(cluster[0].url, key, size=size)) as store:
        for offset in range(0, size, 1 << 20):
            store.write_from(offset, memoryview(bytes(1 << 20)))
        counts = [int(node.ask("DBSIZE")[1:]) for node in cluster]
        assert min(counts) > 200, counts
        first, second = store._info.copies
        with client(cluster[0].url) as one:
            nodes = {
                one.get_node_from_key(ArrayInfo.meta_key(key, copy)).name
                for copy in (first, second)
            }
        assert len(nodes) == 2
        store.delete()


def test_delete_leaves_nothing(url: str, key: str) -> None:
    before = keys(url)
    blocks = PAGE_BLOCKS + 10
    with closing(Redis(url, key, size=blocks * 4096, block=4096)) as store:
        for number in (0, 5, PAGE_BLOCKS - 1, blocks - 1):
            store.write_from(number * 4096, memoryview(b"x" * 4096))
        assert len(keys(url) - before) >= 4
        store.delete()
        assert keys(url) == before
        with pytest.raises(StoreError, match="no longer") as caught:
            store.write_from(0, memoryview(b"x" * 4096))
        assert caught.value.permanent
        with pytest.raises(StoreError, match="no longer"):
            read(store, 0, 4096)
        with pytest.raises(StoreError, match="no longer"):
            store.flush()
    assert keys(url) == before


def test_an_earlier_array_of_the_name_is_not_seen(url: str, key: str) -> None:
    old = full(url, key)
    with closing(old), client(url) as one:
        block = old._info.block_key(1)
        value = one.get(block)
        old.delete()
        one.set(block, value)
        with closing(Redis(url, key, size=SIZE)) as new:
            assert read(new, 0, SIZE) == bytes(SIZE)
            new.write_from(65536, memoryview(b"new"))
            assert read(new, 65536, 5) == b"new\0\0"
            with pytest.raises(StoreError, match="no longer"):
                old.write_from(0, memoryview(b"x"))


@pytest.mark.parametrize("who", ["the writer", "a reader", "who comes later"])
def test_a_lost_block_is_an_error(url: str, key: str, who: str) -> None:
    with closing(full(url, key)) as store, client(url) as one:
        reader = copy(store)
        assert read(reader, 0, 1) == CONTENT[:1]
        assert one.delete(store._info.block_key(2)) == 1
        asked = {"the writer": store, "a reader": reader}.get(who) or Redis(url, key)
        with closing(reader), closing(asked):
            with pytest.raises(StoreError, match=r"block 2 .*no longer has it") as caught:
                read(asked, 0, SIZE)
            assert caught.value.permanent
            assert key in str(caught.value)
            with pytest.raises(StoreError, match="no longer has it"):
                asked.write_from(2 * 65536, memoryview(b"part of it"))
            assert read(asked, 3 * 65536, 100) == CONTENT[3 * 65536 : 3 * 65536 + 100]
            # What is written as a whole is there again.
            asked.write_from(2 * 65536, memoryview(CONTENT[2 * 65536 : 3 * 65536]))
            assert read(asked, 0, SIZE) == CONTENT


@pytest.mark.parametrize("who", ["the writer", "who comes later"])
def test_an_older_version_of_a_block_is_an_error(url: str, key: str, who: str) -> None:
    with closing(full(url, key)) as store, client(url) as one:
        name = store._info.block_key(2)
        before = one.get(name)
        store.write_from(2 * 65536, memoryview(b"newer"))
        one.set(name, before)
        with closing(store if who == "the writer" else Redis(url, key)) as asked:
            with pytest.raises(StoreError, match=r"block 2 .*older") as caught:
                read(asked, 2 * 65536, 10)
            assert caught.value.permanent


def test_a_reader_sees_what_is_written_later(url: str, key: str) -> None:
    with closing(Redis(url, key, size=SIZE)) as store, closing(copy(store)) as reader:
        assert read(reader, 0, SIZE) == bytes(SIZE)
        store.write_from(0, memoryview(CONTENT))
        assert read(reader, 0, SIZE) == CONTENT


def test_a_block_lost_between_two_looks_of_a_reader(url: str, key: str) -> None:
    with closing(Redis(url, key, size=SIZE)) as store, closing(copy(store)) as reader:
        assert read(reader, 0, SIZE) == bytes(SIZE)
        store.write_from(0, memoryview(CONTENT))
        with client(url) as one:
            one.delete(store._info.block_key(3))
        with pytest.raises(StoreError, match="block 3"):
            read(reader, 0, SIZE)


@pytest.mark.parametrize("what", ["byte", "short", "another block", "text"])
def test_damage_is_found(url: str, key: str, what: str) -> None:
    with closing(full(url, key)) as store, client(url) as one:
        names = [store._info.block_key(number) for number in (1, 2)]
        value = bytearray(one.get(names[0]))
        if what == "byte":
            value[1000] ^= 1
        elif what == "short":
            del value[-1]
        elif what == "text":
            value[:] = b"hello"
        else:
            value[:] = one.get(names[1])
        one.set(names[0], bytes(value))
        with pytest.raises(StoreError, match="does not hold what was written"):
            read(store, 65536, 10)


def test_only_the_last_writer_writes(url: str, key: str) -> None:
    with closing(full(url, key)) as one, closing(copy(one)) as other:
        other.write_from(0, memoryview(b"other"))
        for call in (
            lambda: one.write_from(65536, memoryview(b"one")),
            one.flush,
        ):
            with pytest.raises(StoreError, match="another process") as caught:
                call()
            assert caught.value.permanent
        with pytest.raises(StoreError, match="another process"):
            one.write_from(0, memoryview(b"one"))
        assert read(other, 0, 5) == b"other"
        assert read(one, 0, 5) == b"other"


def test_a_writer_that_came_in_between_is_noticed_by_its_blocks(url: str, key: str) -> None:
    with closing(full(url, key)) as store, client(url) as one:
        newer = store._info.pack(0, generation(500, 1), bytes(65536))
        one.set(store._info.block_key(0), newer)
        with pytest.raises(StoreError, match="another process"):
            store.write_from(0, memoryview(CONTENT[:65536]))
        assert one.get(store._info.block_key(0)) == newer


def test_zeros_are_not_taken_for_granted_by_a_writer_of_before(url: str, key: str) -> None:
    """Blocks that were never written are not asked for; unless somebody else may have."""
    with closing(Redis(url, key, size=SIZE)) as one, closing(copy(one)) as other:
        one.write_from(0, memoryview(b"one"))
        assert read(one, 65536, 10) == bytes(10)
        other.write_from(65536, memoryview(b"other"))
        with pytest.raises(StoreError, match="another process"):
            read(one, 65536, 10)


def test_a_late_write_does_not_undo_a_later_one(url: str, key: str) -> None:
    """A server that was paused carries out what its clients gave up on, in any order."""
    with closing(full(url, key)) as store, client(url) as one:
        name = store._info.block_key(0)
        late = store._info.pack(0, store._record.next_generation(), bytes(65536))
        store.write_from(0, memoryview(CONTENT[:65536]))
        from refault.stores.redis import scripts

        assert one.eval(scripts.PUT, 1, name, late) == scripts.OVERTAKEN
        assert read(store, 0, 65536) == CONTENT[:65536]


def test_what_is_noted_does_not_become_less(url: str, key: str) -> None:
    with closing(full(url, key)) as store:
        server = store._connect()
        late = store._record.next_generation()
        store.write_from(0, memoryview(b"newer"))
        newest = store._record.known(server, 0)
        assert newest > late
        store._record.note(server, 0, [late])
        with closing(Redis(url, key)) as later:
            assert later._record.known(server, 0) == newest


def test_a_node_without_its_data_is_noticed(cluster: list[servers.RedisServer], key: str) -> None:
    """A copy of the record is missing; who has the array open notices by the blocks."""
    url = cluster[0].url
    with closing(full(url, key)) as store, client(url) as one:
        lost = ArrayInfo.meta_key(key, store._info.copies[1])
        before = one.hgetall(lost)
        one.delete(lost)
        with pytest.raises(StoreError, match="a node has lost its data") as caught:
            Redis(url, key)
        assert caught.value.permanent
        with pytest.raises(UsageError, match="there is an array"):
            Redis(url, key, size=SIZE)
        with pytest.raises(StoreError, match="no longer on the server"):
            store.flush()
        one.hset(lost, mapping=before)
        one.delete(store._info.page_key(store._info.copies[1], 0))
        with closing(Redis(url, key)) as again, pytest.raises(StoreError, match="no longer"):
            read(again, 0, 1)


def test_a_server_that_is_restarted_is_found_again(key: str) -> None:
    with servers.redis() as server:
        with closing(full(server.url, key, timeout=2)) as store:
            server.kill()
            with pytest.raises(StoreError, match="see whether the server runs") as caught:
                read(store, 0, 1)
            assert not caught.value.permanent
            server.start()
            assert read(store, 0, SIZE) == CONTENT
            server.kill()
            server.lose_data()
            server.start()
            with pytest.raises(StoreError, match="no longer has it"):
                read(store, 0, SIZE)
            with pytest.raises(StoreError, match="no longer"):
                store.write_from(0, memoryview(CONTENT))


WRITER = """
import sys
from refault.stores import Redis
store = Redis(sys.argv[1], sys.argv[2])
for version in range(1, 1 << 20):
    for first in range(0, 8, 2):
        content = version.to_bytes(8, "big") * 1024
        store.write_from(first * 4096, memoryview(content))
        print(version, first, flush=True)
"""


def test_a_writer_that_is_killed_leaves_what_it_wrote(url: str, key: str) -> None:
    """Each write that returned is there, or the one after it; none is half there or refused."""
    with closing(Redis(url, key, size=8 * 4096, block=4096)) as store:
        for lines in (1, 30, 57):
            child = subprocess.Popen(
                [sys.executable, "-c", WRITER, url, key], stdout=subprocess.PIPE, text=True
            )
            with child:
                assert child.stdout is not None
                said = [child.stdout.readline() for _ in range(lines)]
                child.kill()
                said += child.stdout.read().splitlines()
            with closing(copy(store)) as later:
                for line in said[-4:]:
                    version, first = map(int, line.split())
                    for number in (first, first + 1):
                        found = read(later, number * 4096, 4096)
                        assert found in [n.to_bytes(8, "big") * 512 for n in (version, version + 1)]
                assert len(read(later, 0, store.size)) == store.size


def test_a_cluster_that_is_gone_is_a_store_error(key: str) -> None:
    with servers.redis_cluster() as nodes:
        store, swap = full(nodes[0].url, key, timeout=2), RedisSwap(nodes[0].url)
        swap.store_all([((1, 0), memoryview(CONTENT[:65536]))])
        for node in nodes:
            node.kill()
        with closing(store):
            # The first time connections end, then there is no node to ask for others.
            for _ in range(2):
                with pytest.raises(StoreError, match="see whether the server runs") as caught:
                    read(store, 0, SIZE)
                assert not caught.value.permanent
            with pytest.raises(StoreError, match="are left behind"):
                swap.close()


def test_a_paused_server_is_given_up_on_and_loses_nothing(key: str) -> None:
    with servers.redis() as server:
        with closing(full(server.url, key, timeout=0.2)) as store:
            server.pause()
            with pytest.raises(StoreError, match="Timeout") as caught:
                store.write_from(0, memoryview(CONTENT[::-1]))
            assert not caught.value.permanent
            with pytest.raises(StoreError, match="Timeout"):
                read(store, 0, 1)
            server.resume()
            store.write_from(0, memoryview(CONTENT))
            assert read(store, 0, SIZE) == CONTENT


def test_a_server_that_would_evict_is_refused(key: str) -> None:
    options = ["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"]
    with servers.redis(options) as server, client(server.url) as one:
        with pytest.raises(UsageError, match="CONFIG SET maxmemory-policy noeviction"):
            Redis(server.url, key, size=SIZE)
        one.config_set("maxmemory-policy", "noeviction")
        with closing(Redis(server.url, key, size=32 << 20)) as store:
            with pytest.raises(StoreError, match="raise its maxmemory") as caught:
                for offset in range(0, 32 << 20, 1 << 20):
                    store.write_from(offset, memoryview(bytes(1 << 20)))
            assert not caught.value.permanent
            assert read(store, 0, 1 << 20) == bytes(1 << 20)


def test_a_password_is_needed_and_never_told(key: str) -> None:
    with servers.redis(["--requirepass", "opensesame"]) as server:
        good = server.url.replace("//", "//default:opensesame@")
        with closing(Redis(good, key, size=SIZE)) as store:
            assert "opensesame" not in store.name + repr(store)
            assert read(store, 0, 1) == b"\0"
        for bad in (server.url, good.replace("open", "shut")):
            with pytest.raises(StoreError, match="user and password") as caught:
                Redis(bad, key, size=SIZE)
            assert caught.value.permanent
            assert "sesame" not in str(caught.value)


def test_what_makes_no_sense_is_refused(server: servers.RedisServer) -> None:
    for arguments, match in (
        ({"key": "a{b}", "size": 1}, "without braces"),
        ({"key": "", "size": 1}, "without braces"),
        ({"key": "a\nb", "size": 1}, "can be printed"),
        ({"key": "a", "size": 0}, "at least one"),
        ({"key": "a", "size": 1, "block": 5000}, "power of two"),
        ({"key": "a", "size": 1, "block": 1024}, "power of two"),
    ):
        with pytest.raises(UsageError, match=match):
            Redis(server.url, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="redis://HOST"):
        Redis("http://localhost", "a", size=1)
    with closing(Redis(server.url, "range", size=100)) as store:
        for offset, length in ((99, 2), (100, 1), (-1, 1), (0, 101)):
            with pytest.raises(StoreError, match="ends at 100"):
                read(store, offset, length)
            with pytest.raises(StoreError, match="ends at 100"):
                store.write_from(offset, memoryview(bytes(length)))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UsageError, match=r"pip install 'refault\[redis\]'"):
        Redis("redis://localhost", "a", size=1)

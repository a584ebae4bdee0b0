"""Arrays in the memory of Redis servers, paged for real, while servers come and go."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from helpers import servers
from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.slow,
    pytest.mark.usefixtures("nothing_left"),
]

SIZE = 16 << 20


def sort(url: str, size: str, started: str) -> None:
    import pathlib

    import numpy as np

    import refault
    from refault.stores import Redis

    right = np.random.default_rng(6).integers(0, 1 << 64, int(size) // 8, dtype=np.uint64)
    far = Redis(url, "numbers", size=right.nbytes, timeout=5)
    x = refault.open(far, "r+", dtype="u8", resident=right.nbytes // 2, deadline=100)
    x[:] = right
    pathlib.Path(started).touch()
    x.sort()
    right.sort()
    assert np.array_equal(x, right)
    region = refault.region(x)
    region.flush()
    seen = region.statistics()
    assert seen.peak_resident <= right.nbytes // 2, seen
    assert seen.bytes_written > right.nbytes, seen
    del x
    region.close()
    y = refault.open(Redis(url, "numbers"), dtype="u8", resident=right.nbytes // 2, deadline=100)
    assert np.array_equal(y, right)
    print(f"{seen.faults} faults, {seen.retries_store_error} retries, {seen.store_errors} errors")


def by_url(url: str) -> None:
    import pickle

    import numpy as np

    import refault
    from refault.stores import Redis

    right = np.arange(100_000)
    with_key = url + "?key=my%20numbers"
    x = refault.open(Redis(url, "my numbers", size=right.nbytes), "r+", dtype="i8")
    x[:] = right
    refault.region(x).flush()
    for found in (
        refault.open(with_key, dtype="i8", resident="256KiB"),
        refault.open(with_key, "c", dtype="i8", storage_options={"timeout": 5}),
        pickle.loads(pickle.dumps(refault.handle(refault.open(with_key, dtype="i8")))).open(),
    ):
        assert np.array_equal(found, right)
    y = refault.open(with_key, "r+", dtype="i8")
    y[7] = -1
    refault.region(y).flush()
    assert refault.open(with_key, dtype="i8")[7] == -1
    for bad, options, text in (
        (url, {}, "say which array of it"),
        (url + "?key=it", {}, "there is no array"),
        (with_key + "&key=it", {}, "say which array of it"),
        (with_key, {"db": 3}, "timeout alone"),
        (with_key + "&db=9", {}, "there is no array"),
    ):
        try:
            refault.open(bad, storage_options=options)
        except refault.UsageError as error:
            assert text in str(error), error
            assert "key=" not in str(error) or "NAME" in str(error), error
        else:
            raise AssertionError(bad)


def test_an_array_by_its_url() -> None:
    with servers.redis() as server:
        run_child(by_url, timeout=60, args=[server.url])


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread; it must have ended without an error when the block has."""
    errors = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def test_sort_while_one_of_three_nodes_is_killed_and_comes_back(
    tmp_path: pathlib.Path,
) -> None:
    started = tmp_path / "started"
    with servers.redis_cluster() as nodes:
        first, _, victim = nodes

        def interrupt() -> None:
            servers.wait_for(started.exists, "the sort")
            victim.be_missed()
            victim.start()

        with meanwhile(interrupt):
            done = run_child(
                sort,
                timeout=100,
                args=[first.url, str(SIZE), str(started)],
                beside=lambda: (node.pid for node in nodes),
            )
        held = [int(node.ask("DBSIZE")[1:]) for node in nodes]
    print(done.stdout, done.stderr, held)
    assert min(held) > 20
    assert " 0 errors" not in done.stdout
    assert "try 1 failed, the next one is in" in done.stderr


def lose(url: str, filled: str, emptied: str) -> None:
    import os
    import pathlib

    import refault
    from refault.stores import Redis

    size, unit = 8 << 20, 65_536
    far = Redis(url, "numbers", size=size, timeout=5)
    x = refault.open(far, "r+", dtype="u1", resident=1 << 20)
    x[:] = 7
    region = refault.region(x)
    region.flush()
    region.evict()
    pathlib.Path(filled).touch()
    # The parent empties one node, and opens this fifo for writing when it is up again.
    os.close(os.open(emptied, os.O_RDONLY))
    wrong = 0
    for start in range(0, size, unit):
        part = slice(start, start + unit)
        try:
            region.populate(part)
        except refault.StoreError as error:
            assert error.permanent, error
            assert "no longer has it" in str(error), error
            wrong += 1
            last = start
        else:
            assert (x[part] == 7).all()
    assert wrong, "nothing was lost"
    print(f"{wrong} of {size // unit} refused")
    print("went on with", x[last])


def test_what_a_node_has_lost_is_never_zeros(tmp_path: pathlib.Path) -> None:
    filled, emptied = tmp_path / "filled", tmp_path / "emptied"
    os.mkfifo(emptied)
    with servers.redis_cluster() as nodes:
        victim = nodes[1]

        def interrupt() -> None:
            servers.wait_for(filled.exists, "the array")
            victim.kill()
            victim.lose_data()
            victim.start()
            servers.wait_for(lambda: servers.is_whole(nodes[0]), "the node's return")
            os.close(os.open(emptied, os.O_WRONLY))

        with meanwhile(interrupt):
            done = run_child(
                lose,
                timeout=60,
                args=[nodes[0].url, str(filled), str(emptied)],
                expect=-signal.SIGBUS,
                beside=lambda: (node.pid for node in nodes),
            )
    assert "refused" in done.stdout
    assert "went on" not in done.stdout


def far_zeros(url: str, end: str) -> None:
    import os
    import signal

    import numpy as np
    import redis

    import refault

    size = 16 << 20
    right = np.random.default_rng(7).integers(0, 1 << 20, size // 8)
    x = refault.zeros(right.shape, "i8", resident=size // 4, swap=url)
    x[:] = right
    x[: 1 << 17] = 0
    right[: 1 << 17] = 0
    for _ in range(2):
        assert np.array_equal(x, right)
    with refault.snapshot(x) as before:
        x += 1
        assert np.array_equal(x, right + 1)
        assert np.array_equal(before[x], right)
    y = refault.full((1 << 20,), 7.5, resident="1MiB", swap=url)
    y[::2] = np.arange(1 << 19)
    assert (y[1::2] == 7.5).all() and (y[::2] == np.arange(1 << 19)).all()
    seen = refault.region(x).statistics()
    assert seen.peak_resident <= size // 4, seen
    assert seen.swap_writes > 0 and seen.swap_reads > 0, seen
    assert seen.more["swap_pages"] == 0, seen
    server = redis.Redis.from_url(url)
    assert server.dbsize() > 100
    server.close()
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["done", "killed"])
def test_what_is_evicted_goes_to_a_server_and_is_removed_at_the_end(end: str) -> None:
    with servers.redis() as server:
        expect = -signal.SIGKILL if end == "killed" else 0
        run_child(far_zeros, timeout=60, args=[server.url, end], expect=expect)
        assert server.ask("DBSIZE") == b":0"


def no_server(url: str) -> None:
    import refault

    for wrong, error, message in (
        (url, refault.StoreError, "see whether the server runs"),
        ("http://localhost", refault.UsageError, "give redis://HOST:PORT/DB"),
    ):
        try:
            refault.zeros((10,), swap=wrong)
        except error as caught:
            assert message in str(caught), caught
        else:
            raise AssertionError(wrong)
    assert refault.zeros((10,))[0] == 0


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    (port,) = servers.free_ports(1)
    run_child(no_server, timeout=30, args=[f"redis://{servers.HOST}:{port}"])


def lost_swap(url: str, filled: str, emptied: str) -> None:
    import os
    import pathlib

    import numpy as np

    import refault

    x = refault.zeros((8 << 20,), "u1", resident="1MiB", swap=url)
    x[:] = np.arange(8 << 20) % 251
    refault.region(x).evict()
    pathlib.Path(filled).touch()
    os.close(os.open(emptied, os.O_RDONLY))
    try:
        refault.region(x).populate(slice(0, 10))
    except refault.StoreError as error:
        assert error.permanent
        print(error)
    print("went on with", x[5])


def test_what_swap_has_lost_is_never_zeros(tmp_path: pathlib.Path) -> None:
    filled, emptied = tmp_path / "filled", tmp_path / "emptied"
    os.mkfifo(emptied)
    with servers.redis() as server:

        def interrupt() -> None:
            servers.wait_for(filled.exists, "the array")
            assert server.ask("FLUSHALL") == b"+OK"
            os.close(os.open(emptied, os.O_WRONLY))

        with meanwhile(interrupt):
            done = run_child(
                lost_swap,
                timeout=60,
                args=[server.url, str(filled), str(emptied)],
                expect=-signal.SIGBUS,
            )
    assert "no longer has" in done.stdout
    assert "went on" not in done.stdout

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

SIZE = 32 << 20


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
            victim.kill()
            servers.wait_for(lambda: not servers.is_whole(first), "the end of the node")
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
    assert min(held) > SIZE // (64 << 10) // 5
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

"""Eight threads on a region sixteen times as large as its memory, and never a wrong byte.

A thread owns every eighth stripe of 1000 bytes, so that every page unit belongs to all of
them, and compares each stripe it touches with a plain array that holds the same.
REFAULT_STRESS_SECONDS is how long each kind of region is tried; REFAULT_STRESS_SEED
repeats a run as far as threads can be repeated.
"""

from __future__ import annotations

import os
import pathlib
import secrets

import numpy as np
import pytest

from helpers.child import run_child
from helpers.memfds import sampled
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.slow,
    pytest.mark.usefixtures("served_by"),
]

SECONDS = float(os.environ.get("REFAULT_STRESS_SECONDS", "2"))
SEED = int(os.environ.get("REFAULT_STRESS_SEED", "0")) or secrets.randbits(32)
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
SIZE = 2 << 30 if MEMORY > 8 << 30 else 256 << 20
RESIDENT = SIZE >> 4
PAGE = 64 << 10
LIMIT = 2 * SECONDS + 60


def stress(path: str, mode: str, size: str, resident: str, seconds: str, seed: str) -> None:
    import concurrent.futures
    import random
    import time
    from typing import Any

    import numpy as np

    import refault

    threads, stripe = 8, 1000
    length = int(size)
    if path:
        x = refault.open(path, mode, dtype="u1", resident=int(resident))
        plain = np.fromfile(path, "u1")
    else:
        x = refault.zeros(length, "u1", resident=int(resident))
        plain = np.zeros(length, "u1")
    region = refault.region(x)
    groups = length // (threads * stripe)
    ours = x[: groups * threads * stripe].reshape(groups, threads, stripe)
    theirs = plain[: groups * threads * stripe].reshape(groups, threads, stripe)
    end = time.monotonic() + float(seconds)

    def work(number: int, ours: Any, theirs: Any) -> int:
        dice = random.Random(int(seed) + number)
        bytes_ = np.random.default_rng(int(seed) + number)
        done = 0
        while time.monotonic() < end:
            first = dice.randrange(groups)
            where = slice(first, min(groups, first + dice.choice((1, 1, 1, 2, 9, 64))))
            mine, wanted = ours[where, number], theirs[where, number]
            kind = dice.randrange(100)
            if kind < 30:
                assert np.array_equal(mine, wanted), (number, where, done)
            elif kind < 55:
                new = bytes_.integers(0, 256, mine.shape, np.uint8)
                mine[...] = new
                wanted[...] = new
            elif kind < 80:
                mine += np.uint8(kind)
                wanted += np.uint8(kind)
                assert np.array_equal(mine, wanted), (number, where, done)
            elif kind < 93:
                at = dice.randrange(stripe)
                mine[0, at] = wanted[0, at] = kind
                assert mine[0, at - 1] == wanted[0, at - 1], (number, where, at, done)
            elif kind < 95:
                region.prefetch(mine)
            elif kind < 97:
                region.populate(mine, write=bool(done & 1))
            elif kind == 97:
                region.evict(mine)
            elif kind == 98:
                region.flush(mine)
            else:
                with region.pin(mine):
                    assert np.array_equal(mine, wanted), (number, where, done)
            done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads), [ours] * threads, [theirs] * threads))
    seen = region.statistics()
    step = 16 << 20
    for at in range(0, length, step):
        assert np.array_equal(x[at : at + step], plain[at : at + step]), at
    assert seen.peak_resident <= int(resident), seen
    del x, ours
    region.close()
    if path:
        found = np.memmap(path, "u1", "r")
        for at in range(0, length, step):
            part = found[at : at + step]
            if mode == "c":
                start = at // 8
                expected = np.arange(start, start + len(part) // 8, dtype="u8").view("u1")
            else:
                expected = plain[at : at + step]
            assert np.array_equal(part, expected), at
    print(
        f"{done} operations, {seen.faults} faults, {seen.evictions} evictions,"
        f" {seen.refaults} refaults, at most {seen.max_attempts} tries"
    )
    assert done > 50
    assert seen.evictions > 100, seen


@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("mode", ["r+", "c", "swap"])
@pytest.mark.usefixtures("nothing_left")
def test_no_wrong_byte(mode: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "numbers"
    print(f"seed {SEED}")
    if mode != "swap":
        np.arange(SIZE // 8, dtype="u8").tofile(path)
    name = "" if mode == "swap" else str(path)
    with sampled() as memory:
        done = run_child(
            stress,
            timeout=LIMIT,
            args=[name, mode, str(SIZE), str(RESIDENT), str(SECONDS), str(SEED)],
        )
    path.unlink(missing_ok=True)
    print(done.stdout, f"memfd: at most {memory.peak / 2**20:.1f} MiB")
    assert RESIDENT // 2 < memory.peak <= RESIDENT + PAGE


def evicted_under_the_pen(path: str) -> None:
    import threading
    import time

    import numpy as np

    import refault

    if path:
        x = refault.open(path, "r+", dtype="u1", page_size="64KiB")
    else:
        x = refault.zeros(1 << 18, "u1", page_size="64KiB")
    x[:] = 0
    region = refault.region(x)
    over = threading.Event()

    def take_away() -> None:
        while not over.is_set():
            region.evict()
            region.flush()

    threads = [threading.Thread(target=take_away) for _ in range(2)]
    for thread in threads:
        thread.start()
    rounds = 0
    end = time.monotonic() + 2
    while time.monotonic() < end:
        # numpy gives the GIL up for it: pages go while they are being written.
        np.add(x, 1, out=x)
        rounds += 1
    over.set()
    for thread in threads:
        thread.join()
    assert rounds > 10
    assert (x == rounds % 256).all(), (rounds, np.unique(x))
    print(f"{rounds} rounds, {region.statistics().bytes_written >> 20} MiB written")


@pytest.mark.parametrize("kind", ["r+", "swap"])
@pytest.mark.usefixtures("nothing_left")
def test_no_write_is_lost_while_its_page_goes(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(1 << 18))
    done = run_child(evicted_under_the_pen, timeout=30, args=[str(path) if kind == "r+" else ""])
    print(done.stdout)

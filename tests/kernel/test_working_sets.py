"""Working sets on real memory: what the second run must not wait for any more."""

from __future__ import annotations

import pathlib

import pytest

from helpers.child import Result, run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left"),
]


def run(code: object, *args: object, expect: int = 0) -> Result:
    assert callable(code)
    done = run_child(
        code,
        timeout=30,
        args=[str(one) for one in args],
        env=ENVIRONMENT,
        expect=expect,
    )
    print(done.stdout, end="")
    return done


def demand_faults(folder: str, pattern: str) -> None:
    import random

    import refault
    from helpers import child_tools

    unit = 64 << 10
    size = 1024 * unit
    store = child_tools.Counting(size, folder + "/log", seconds=0.004)
    right = child_tools.content(0, size)
    random.seed(6)
    if pattern == "runs":
        units = [32 * run + at for run in range(20) for at in range(16)]
    else:
        units = random.sample(range(1024), 240)
    random.shuffle(units)

    def open_and_touch(wait: bool) -> refault.RegionStatistics:
        x = refault.open(
            store, page_size=unit, resident="32MiB", working_set=folder + "/it.workingset"
        )
        region = refault.region(x)
        if wait:
            region.wait_for_prefetch()
        for index in units:
            at = index * unit + random.randrange(unit)
            assert x[at] == right[at], at
        touched = set()
        for start, end in region.working_set():
            touched |= {at // unit for at in range(start, end, unit)}
        assert touched == {0, *units}  # the first was looked at by `open`
        return region.statistics()

    first = open_and_touch(False)
    asked = store.asked()
    assert first.major > 0.9 * len(units), first
    assert sum(length for _, length in asked) == len({0, *units}) * unit
    for wait in (False, True):
        # At once, while they are being read; and once they are there.
        second = open_and_touch(wait)
        asked = store.asked()
        print(pattern, first.major, second.major, second.minor, second.prefetched, len(asked))
        assert second.major <= (0 if wait else first.major / 10), (first, second)
        assert second.evictions == 0
        # Nothing came in that is not needed, nothing twice; what lies between is no more than it.
        assert {start // unit for start, _ in asked} <= {0, *units}
        assert second.bytes_read == len({0, *units}) * unit
        assert sum(length for _, length in asked) <= 2 * second.bytes_read
        assert len(asked) < 0.6 * len(units), len(asked)


@pytest.mark.usefixtures("served_by")
@pytest.mark.parametrize("pattern", ["runs", "scattered"])
def test_a_tenth_of_the_demand_faults(tmp_path: pathlib.Path, pattern: str) -> None:
    run(demand_faults, tmp_path, pattern)


def budget(folder: str) -> None:
    import refault
    from helpers import child_tools

    unit = 64 << 10
    units = 512
    store = child_tools.Counting(units * unit, folder + "/log", seconds=0.0005)

    def open_it() -> tuple[object, refault.Region]:
        x = refault.open(
            store,
            dtype="u1",
            page_size=unit,
            resident=64 * unit,
            readahead=False,
            working_set=folder + "/it",
        )
        return x, refault.region(x)

    x, region = open_it()
    for turn in range(3):
        for index in range(turn, units, 3):
            x[index * unit]
            # What is needed again and again, and evicted in between.
            if index % 8 == 0:
                x[(index // 8 % 20 + 100) * unit]
    assert len(region.working_set()) == 1
    del x, region
    store.asked()
    _x, region = open_it()
    region.wait_for_prefetch()
    statistics = region.statistics()
    assert statistics.evictions == 0
    assert 56 <= statistics.prefetched <= 64, statistics
    assert statistics.peak_resident <= 64 * unit
    asked = set()
    for start, length in store.asked():
        asked |= {at // unit for at in range(start, start + length, unit)}
    assert asked >= set(range(100, 120)), sorted(asked)


def test_never_more_than_fits_and_what_is_needed_most_first(tmp_path: pathlib.Path) -> None:
    run(budget, tmp_path)


def memory_is_short(folder: str) -> None:
    import os
    import time

    import refault
    from helpers import child_tools

    gate = folder + "/gate"
    open(gate, "x").close()
    unit = 64 << 10
    # The first 64 units always answer, the others as long as the gate is there.
    store = child_tools.Blocking(192 * unit, gate, 64 * unit)

    def open_it():
        return refault.open(
            store,
            dtype="u1",
            page_size=unit,
            resident=64 * unit,
            readahead=False,
            working_set=folder + "/it",
        )

    x = open_it()
    for index in range(66, 186, 2):
        x[index * unit]
    del x
    os.unlink(gate)
    x = open_it()
    region = refault.region(x)
    while not region.statistics().prefetched:
        time.sleep(0.005)
    for index in range(56):
        x[index * unit]
    begun = region.statistics().prefetched
    open(gate, "x").close()
    while region.statistics().bytes_read < (56 + begun) * unit:
        time.sleep(0.005)
    time.sleep(0.1)
    statistics = region.statistics()
    assert statistics.prefetched <= begun + 4 < 60, statistics
    assert statistics.evictions == 0, statistics


def test_what_the_program_needs_meanwhile_is_not_evicted_for_it(tmp_path: pathlib.Path) -> None:
    run(memory_is_short, tmp_path)


def demand_first(folder: str) -> None:
    import os

    import refault
    from helpers import child_tools

    gate = folder + "/gate"
    open(gate, "x").close()
    unit = 64 << 10
    size = 256 * unit
    right = child_tools.content(0, size)
    # Behind the first 32 units it answers as long as the gate is there.
    store = child_tools.Blocking(size, gate, 32 * unit)

    def open_it():
        return refault.open(
            store, dtype="u1", page_size=unit, readahead=False, working_set=folder + "/it"
        )

    x = open_it()
    for index in range(64, 256, 2):
        x[index * unit]
    del x
    os.unlink(gate)
    x = open_it()
    region = refault.region(x)
    for index in range(32):
        assert x[index * unit + 7] == right[index * unit + 7]
    statistics = region.statistics()
    assert 0 < statistics.prefetched < 96, statistics
    # They are under way still, and a thread or two are left; to close waits for none of them.
    assert statistics.resident > statistics.bytes_read == 32 * unit, statistics
    del x
    region.close()
    open(gate, "x").close()
    x = open_it()
    for index in range(64, 256, 2):
        assert x[index * unit + 7] == right[index * unit + 7]


def test_a_fault_does_not_wait_behind_what_is_prefetched(tmp_path: pathlib.Path) -> None:
    run(demand_first, tmp_path)


def files(folder: str) -> None:
    import os
    import pathlib

    import numpy as np

    import refault

    unit = 64 << 10
    path = pathlib.Path(folder, "numbers.npy")
    kept = pathlib.Path(folder, "numbers.npy.workingset")
    right = np.arange(64 * unit // 8, dtype="i8")
    np.save(path, right)

    def touch(*units: int, mode: str = "r") -> refault.RegionStatistics:
        x = refault.open(path, mode, page_size=unit, working_set="auto")
        y = refault.open(path, mode, working_set="auto")
        for index in units:
            at = index * unit // 8
            assert x[at] == y[at] == at
        region = refault.region(y)
        del x, y
        statistics = region.statistics()
        region.close()
        return statistics

    # Two regions, one file, one set.
    assert touch(3, 40).prefetched == 0
    assert kept.exists()
    first = kept.read_bytes()
    assert touch(3, 40).prefetched == 2
    assert kept.read_bytes() == first
    # Our own changes are no reason to forget it.
    x = refault.open(path, "r+", page_size=unit, working_set="auto")
    x[3 * unit // 8] = 3 * unit // 8
    x[20 * unit // 8 + 1] = 20 * unit // 8 + 1
    del x
    assert touch().prefetched == 3
    # Somebody else's are: then places may mean something else.
    np.save(path, right)
    os.utime(path, (1, 1))
    assert touch(7).prefetched == 0
    assert touch(7).prefetched == 1
    # Damaged: told, not used, replaced.
    kept.write_bytes(kept.read_bytes()[:-1])
    assert touch(7).prefetched == 0
    assert touch(7).prefetched == 1
    # Elsewhere; and where nothing can be written, nothing fails.
    x = refault.open(path, page_size=unit, working_set=pathlib.Path(folder, "new", "it"))
    x[0]
    del x
    assert os.listdir(folder + "/new") == ["it"]
    x = refault.open(path, page_size=unit, working_set="/proc/nowhere/it")
    assert x[5] == 5
    del x
    assert sorted(os.listdir(folder)) == ["new", "numbers.npy", "numbers.npy.workingset"]


def something_else(folder: str) -> None:
    import pathlib

    import refault
    from refault.client import opening

    data, kept = pathlib.Path(folder, "data"), pathlib.Path(folder, "it")
    data.write_bytes(bytes(1 << 20))
    kept.write_text("notes")
    # It has become something else since `open` looked.
    opening.place = lambda *_: str(kept)
    x = refault.open(data, working_set=kept)
    region = refault.region(x)
    x[0]
    del x
    region.close()
    assert kept.read_text() == "notes"


def test_what_is_something_else_is_not_replaced(tmp_path: pathlib.Path) -> None:
    said = run(something_else, tmp_path).stderr
    assert "/it: it is no working set, and stays as it is" in said


def test_files(tmp_path: pathlib.Path) -> None:
    said = run(files, tmp_path).stderr.splitlines()
    damaged, unwritable = said
    assert "numbers.npy.workingset: this working set is not used: its checksum" in damaged
    assert "/proc/nowhere/it: the working set cannot be kept" in unwritable


def ends(path: str, how: str) -> None:
    import atexit
    import os
    import signal
    import time

    import refault

    # It comes after ours: the file is there before the program has ended.
    atexit.register(lambda: print(os.path.exists(path + ".workingset")))
    unit = 64 << 10
    again = os.path.exists(path + ".workingset")
    x = refault.open(path, page_size=unit, readahead=False, working_set="auto")
    globals()["alive"] = x
    prefetched = 0
    while again and not prefetched:
        time.sleep(0.005)
        prefetched = refault.region(x).statistics().prefetched
    for index in range(0, 64, 2):
        x[index * unit]
    print(prefetched, len(refault.region(x).working_set()), flush=True)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "pager killed":
        from refault.client.connection import connect

        os.kill(connect().pager, signal.SIGKILL)
        os._exit(0)


@pytest.mark.parametrize("how", ["end of the program", "killed", "pager killed"])
def test_how_a_run_ends(tmp_path: pathlib.Path, how: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 256 * 64)
    expect = -9 if how == "killed" else 0
    said = run(ends, path, how, expect=expect).stdout
    assert said == ("0 32\nTrue\n" if how == "end of the program" else "0 32\n")
    kept = tmp_path / "data.workingset"
    # Nobody is left to write it if the pager is killed; half of it is never there.
    assert kept.exists() == (how != "pager killed")
    if kept.exists():
        again = run(ends, path, "pager killed").stdout
        assert 0 < int(again.split()[0]) <= 32
        assert int(run(ends, path, "end of the program").stdout.split()[0]) > 0
    assert {one.name for one in tmp_path.iterdir()} <= {"data", "data.workingset"}


def by_hand(folder: str) -> None:
    import json
    import time

    import refault
    from helpers import child_tools

    unit = 16 << 10
    size = 256 * unit + 100
    store = child_tools.Counting(size, folder + "/log", seconds=0)
    right = child_tools.content(0, size)

    def open_it():
        return refault.open(
            store, dtype="u1", offset=50, shape=(255, unit), page_size=unit, resident="2MiB"
        )

    x = open_it()
    region = refault.region(x)
    assert region.working_set() == []
    for row in range(3):
        x[row, 0]
    # It is read in order: more was read than was used.
    while not region.statistics().readahead:
        x[3, 0]
    used = region.working_set()
    assert used[0][0] == 0 and used[-1][1] <= 20 * unit, used
    assert sum(end - start for start, end in used) < region.statistics().resident, used
    for row in (9, 100, 250):
        assert x[row, 7] == right[50 + row * unit + 7]
    used = region.working_set()
    assert all(0 <= start < end <= x.nbytes for start, end in used)
    rows = {row for start, end in used for row in range(start // unit, -(-end // unit))}
    assert rows >= {0, 1, 2, 9, 100, 250} and len(rows) < 40, rows
    # A part of it, counted from there; and what is evicted was used all the same.
    assert region.working_set(slice(100, 101)) == [(0, unit - 50)]
    region.evict()
    assert region.working_set() == used
    del x, region
    kept = [tuple(pair) for pair in json.loads(json.dumps(used))]
    x = open_it()
    region = refault.region(x)
    begun = region.prefetch(kept)
    assert begun >= sum(end - start for start, end in kept), begun
    units: set[int] = set()
    for start, end in kept:
        units |= set(range((start + 50) // unit, (end + 49) // unit + 1))
    while region.statistics().bytes_read < len(units) * unit:
        time.sleep(0.005)
    assert region.working_set() == []
    before = region.statistics().major
    for row in (0, 1, 2, 9, 100, 250):
        assert x[row, 7] == right[50 + row * unit + 7]
    assert region.statistics().major == before
    # Anything else in a list is a mistake; ranges that lie elsewhere are cut.
    assert region.prefetch([(-5, -1), (1 << 50, 1 << 60)]) == 0
    for wrong in ([1, 2], ["ab", "c"], [(1, 2, 3)]):
        try:
            region.prefetch(wrong)
        except refault.UsageError as error:
            assert "ranges of bytes" in str(error)
        else:
            raise AssertionError(wrong)


def test_by_hand(tmp_path: pathlib.Path) -> None:
    run(by_hand, tmp_path)


def failing(folder: str) -> None:
    import refault
    from helpers import child_tools

    unit = 64 << 10
    good = child_tools.Counting(256 * unit, folder + "/log", version="it")
    bad = child_tools.Failing(256 * unit, permanent=False, good=unit)
    bad.version = "it"
    parameters = {"page_size": unit, "dtype": "u1", "working_set": folder + "/it"}
    x = refault.open(good, **parameters)
    x[:: 2 * unit].sum()
    del x
    x = refault.open(bad, **parameters)
    region = refault.region(x)
    region.wait_for_prefetch()
    statistics = region.statistics()
    # It was not asked for all of the 128: for what was under way, six reads of eight each.
    assert 0 < statistics.store_errors <= 6 * 8, statistics
    del x
    region.close()
    # Bytes of another version: not used.
    good.version = "another"
    x = refault.open(good, **parameters)
    region = refault.region(x)
    region.wait_for_prefetch()  # there is nothing to wait for
    assert region.statistics().prefetched == 0


def test_a_store_that_fails_is_not_asked_for_all_of_it(tmp_path: pathlib.Path) -> None:
    run(failing, tmp_path)


def small_pages(path: str) -> None:
    import time

    import numpy as np

    import refault

    x = refault.open(path, "r+", resident="16MiB", working_set="auto")
    region = refault.region(x)
    began = region.page_size
    rng = np.random.default_rng(1)
    deadline = time.monotonic() + 15
    where = rng.integers(0, len(x), 20_000)
    while region.page_size != 4096 and time.monotonic() < deadline:
        for at in where:
            x[at]
    print(began, region.page_size)


def test_pages_of_the_size_that_fitted_before(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "data"
    with open(path, "wb") as file:
        file.truncate(256 << 20)
    assert run(small_pages, path).stdout.split() == ["65536", "4096"]
    assert run(small_pages, path).stdout.split() == ["4096", "4096"]

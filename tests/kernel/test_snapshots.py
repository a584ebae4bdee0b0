"""Snapshots of real memory: one instant, while threads and processes go on writing."""

from __future__ import annotations

import os
import pathlib
import secrets

import numpy as np
import pytest

from helpers import spilling_pager
from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]

MIB = 1 << 20
SEED = int(os.environ.get("REFAULT_STRESS_SEED", "0")) or secrets.randbits(32)
Path = pathlib.Path
SPILLING = {"spilling_pager.py": pathlib.Path(spilling_pager.__file__).read_text()}


def contents(path: str, mode: str) -> None:
    import numpy as np

    import refault

    if mode == "zeros":
        x = refault.zeros(1 << 20, "i8", resident="1MiB")
        x[:] = np.arange(1 << 20)
    else:
        x = refault.open(path, mode, dtype="i8", resident="1MiB")
    y = refault.full((300, 7), 3, "u2", "F")
    before = np.arange(1 << 20)
    if mode != "r":
        x[::5000] += 1
        before[::5000] += 1
    with refault.snapshot(x, y[3:]) as snap:
        if mode != "r":
            x[:] = -1
        y[:] = 9
        then = snap[x]
        assert then.dtype == x.dtype and then.shape == x.shape
        assert not then.flags.writeable
        assert np.array_equal(then, before)
        assert np.array_equal(snap[x[100:9000:7][::-1]], before[100:9000:7][::-1])
        assert snap[y].strides == y.strides
        assert (snap[y] == 3).all()
        assert (y == 9).all()
        if mode != "r":
            assert (x == -1).all()
        seen = refault.region(then).statistics()
        assert seen.peak_resident <= seen.budget == 16 << 20
        del then
    if mode == "r+":
        refault.region(x).flush()
        assert (np.fromfile(path, "i8") == -1).all()


@pytest.mark.parametrize("mode", ["r", "r+", "c", "zeros"])
def test_a_snapshot_is_what_was_there(tmp_path: Path, mode: str) -> None:
    """In memory, in swap, in the file; written to, written back and evicted since."""
    path = tmp_path / "numbers"
    np.arange(MIB, dtype="i8").tofile(path)
    run_child(contents, timeout=60, args=[str(path), mode])


def several() -> None:
    import numpy as np

    import refault

    x = refault.zeros(1 << 18, "i8", resident="512KiB", page_size="4KiB")
    taken = []
    for number in range(6):
        x[number::7] = number + 1
        taken.append((refault.snapshot(x), np.array(x)))
    x[:] = -1
    dice = np.random.default_rng(1)
    for at in dice.permutation(len(taken)):
        snap, then = taken[at]
        assert np.array_equal(snap[x], then)
        snap.close()
        snap.close()
        assert snap.closed


def test_several_at_once_share_what_they_have_in_common() -> None:
    run_child(several, timeout=60)


def shared_copies() -> None:
    import refault
    from refault.client import connection

    def pager_memory() -> int:
        with open(f"/proc/{connection.current().pager}/statm") as file:
            return int(file.read().split()[1]) * 4096

    x = refault.zeros(4 << 20, "u1")
    x[:] = 1
    with refault.snapshot(x):
        x[:] = 2
        assert refault.region(x).statistics().copies == x.nbytes
    assert refault.region(x).statistics().copies == 0
    before = pager_memory()
    snaps = [refault.snapshot(x) for _ in range(10)]
    x[:] = 3
    grown = pager_memory() - before
    assert grown < 8 << 20, grown
    assert all((snap[x] == 2).all() for snap in snaps)


def test_ten_snapshots_of_one_instant_have_one_copy() -> None:
    run_child(shared_copies, timeout=60)


def cut(folder: str, count: str, seed: str) -> None:
    """Writers in other processes, which no lock of ours holds up: the snapshot is a cut."""
    import os
    import random
    import signal

    import refault

    cells, stride, writers = 128, 512, 2  # each cell in a page of 4 KiB of its own
    share = cells // writers
    x, y = (
        refault.open(
            f"{folder}/{name}",
            "w+",
            dtype="i8",
            shape=(cells * stride,),
            resident="256KiB",
            page_size="4KiB",
        )
        for name in "xy"
    )
    # The log of each writer: how far it is, in a page of its own; and two counters.
    log = refault.open(f"{folder}/log", "w+", dtype="i8", shape=(16 * stride,), page_size="4KiB")
    x[::stride] = 1000
    children = []
    for writer in range(writers):
        pid = os.fork()
        if pid == 0:
            dice = random.Random(int(seed) + writer)
            mine, low = log[2 * writer * stride :], writer * share
            step = 0
            while True:
                source, target = low + dice.randrange(share), low + dice.randrange(share)
                step += 3
                mine[0] = step - 2
                x[source * stride] -= 1
                mine[0] = step - 1
                y[target * stride] += 1
                mine[0] = step
                mine[stride] = step  # always after, in another page
        children.append(pid)
    try:
        stages = set()
        for _ in range(int(count)):
            with refault.snapshot(x, y, log) as snap:
                then_x, then_y, then = snap[x][::stride], snap[y][::stride], snap[log]
                for writer in range(writers):
                    part = slice(writer * share, (writer + 1) * share)
                    step, after = then[2 * writer * stride], then[(2 * writer + 1) * stride]
                    total = then_x[part].sum() + then_y[part].sum()
                    # A write that has been made, and one more of which only the log says "next".
                    missing = share * 1000 - total
                    allowed = {0: (0,), 1: (0, 1), 2: (1, 0)}[step % 3]
                    assert missing in allowed, (step, missing)
                    assert after == step - step % 3 or (step % 3 == 0 and after == step - 3)
                    stages.add(step % 3)
                del then_x, then_y, then
        assert len(stages) > 1, "the writers stood still"
        for name, array in (("x", x), ("y", y)):
            seen = refault.region(array).statistics()
            assert seen.evictions, name
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.slow
def test_a_snapshot_is_a_consistent_cut(tmp_path: Path, served_by: str) -> None:
    """The sum never changes, and nothing newer is there without what was written before it."""
    print(f"REFAULT_STRESS_SEED={SEED}")
    count = "500" if served_by == "native" else "100"
    run_child(cut, timeout=100, args=[str(tmp_path), count, str(SEED)])


def threads(seconds: str, seed: str) -> None:
    """Many threads write whole arrays, which numpy does without the GIL, while others look."""
    import threading
    import time

    import numpy as np

    import refault

    count, size = 3, 1 << 16
    arrays = [refault.zeros(size, "i8", resident="256KiB") for _ in range(count)]
    end = time.monotonic() + float(seconds)
    problems = []

    def write(own: np.ndarray) -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            own[:] = number  # in order of the addresses

    def look() -> None:
        try:
            while time.monotonic() < end:
                with refault.snapshot(*arrays) as snap:
                    for array in arrays:
                        then = snap[array]
                        steps = np.flatnonzero(np.diff(then))
                        assert len(steps) <= 1, steps
                        assert then[0] - then[-1] in (0, 1)
                    del then
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=write, args=(array,)) for array in arrays]
    workers += [threading.Thread(target=look) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]


@pytest.mark.slow
def test_threads_that_write_in_order() -> None:
    run_child(threads, timeout=60, args=["3", str(SEED)])


def third_retry() -> None:
    import numpy as np
    from spilling_pager import use_spilling_pager

    import refault

    use_spilling_pager()
    x = refault.zeros(1 << 16, "i8", resident="128KiB", page_size="4KiB")
    x[:] = np.arange(1 << 16)
    region = refault.region(x)
    with refault.snapshot(x) as snap:
        region.evict()
        before = region.statistics()
        x[5] = 99
        after = region.statistics()
        assert after.faults - before.faults == 1
        assert after.attempts - before.attempts == 3
        assert after.retries_read - before.retries_read == 1
        assert after.retries_write_protect - before.retries_write_protect == 1
        assert snap[x][5] == 5 and x[5] == 99
        assert np.array_equal(np.delete(snap[x], 5), np.delete(x, 5))


def test_three_tries_of_a_page_in_swap_that_a_snapshot_protects() -> None:
    """The mail's scenario.  Swap keeps nothing in memory, so that a read must wait."""
    run_child(third_retry, timeout=60, files=SPILLING)


def marks() -> None:
    import refault

    x = refault.zeros(1 << 20, "u1", page_size="4KiB")
    region = refault.region(x)
    x[:] = 1
    with region.mark() as mark:
        assert region.dirty(since=mark) == []
        x[4096] = 2
        x[8192:8200] = 2
        x[-1] = 2
        _ = x[100_000]
        assert region.dirty(since=mark) == [(4096, 12288), ((1 << 20) - 4096, 1 << 20)]
        assert region.dirty(slice(5000, 9000), since=mark) == [(0, 4000)]
        region.evict()
        assert region.dirty(slice(5000, 9000), since=mark) == [(0, 4000)], "evicted, and known"
        with refault.snapshot(x) as snap:
            x[0] = 3
            assert snap.changed(x, mark) == [(4096, 12288), ((1 << 20) - 4096, 1 << 20)]
            later = snap.mark(x)
        assert region.dirty(since=later) == [(0, 4096)]
        assert len(region.dirty(since=mark)) == 2
        x[::8192] = 4
        assert len(region.dirty(since=later)) == 128
    later.close()
    for bad in (mark, later):
        try:
            region.dirty(since=bad)
        except refault.UsageError as error:
            assert "closed" in str(error)
        else:
            raise AssertionError
    big = refault.zeros(1 << 26, "u1", page_size="4KiB", resident="8MiB")
    with refault.region(big).mark() as mark:
        big[::8192] = 1
        found = refault.region(big).dirty(since=mark)
        assert found == [(at, at + 4096) for at in range(0, 1 << 26, 8192)]


def test_marks_tell_what_was_written() -> None:
    run_child(marks, timeout=60)


def native_goes_on() -> None:
    import refault
    from refault import native

    x = refault.zeros(1 << 22, "u1", page_size="4KiB")
    x[:] = 1
    region = refault.region(x)
    mark = region.mark()
    before = region.statistics()
    x[::4096] = 2
    during = region.statistics()
    assert during.faults - before.faults == 1024
    assert len(region.dirty(since=mark)) == 1
    x[::4096] = 3
    assert region.statistics().faults == during.faults, "one fault for each page, once"
    if native.available():
        assert during.native - before.native >= 1020, "by native code, although it is noted"
    mark.close()
    x[::4096] = 4
    assert region.statistics().faults == during.faults


def test_a_mark_costs_one_fault_for_each_page() -> None:
    run_child(native_goes_on, timeout=60)


def copied_natively() -> None:
    import numpy as np

    import refault
    from refault import native

    x = refault.zeros(1 << 22, "u1", page_size="4KiB")
    region = refault.region(x)
    x[:] = 1
    for number in range(1, 3):
        with refault.snapshot(x) as snap:
            before = region.statistics()
            x[::4096] = number + 1
            during = region.statistics()
            assert during.faults - before.faults == 1024
            assert during.attempts - before.attempts == 2048
            assert during.retries_write_protect - before.retries_write_protect == 1024
            assert during.copies == x.nbytes
            x[1::4096] = number + 1
            assert region.statistics().faults == during.faults, "one fault for each page, once"
            if native.available():
                assert during.native - before.native >= 1000, during.native - before.native
            # What is newest when another ends has its copies; what it lacks is made for both.
            with refault.snapshot(x):
                x[: 100 * 4096 : 4096] = 77
            x[: 200 * 4096 : 4096] = 77
            then = snap[x]
            assert np.array_equal(np.unique(then[::4096]), [number])
            assert region.statistics().copies == x.nbytes
            del then
            x[::4096] = number + 1
    assert region.statistics().copies == 0


def test_a_first_write_is_two_tries_and_one_copy() -> None:
    """Asked for, copied, and let go: by native code, but for the first ones after an instant."""
    run_child(copied_natively, timeout=60)


def grows(path: str) -> None:
    import refault

    x = refault.open(path, "r+", dtype="i8", page_size="4KiB")
    with refault.snapshot(x) as snap:
        x[: 50 * 512 : 512] = 1
        with open(path, "ab") as file:
            file.write(bytes(200 * 4096))
        y = refault.open(path, "r+", dtype="i8", page_size="4KiB")
        y[::512] = 2
        seen = refault.region(y).statistics()
        assert seen.copies == 300 * 4096 and seen.retries_write_protect == 300
        assert len(snap[x]) == 100 * 512 and not snap[x].any()
        assert (y[::512] == 2).all() and (x[::512] == 2).all()


def test_a_file_that_grows_under_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    np.zeros(100 * 512, "i8").tofile(path)
    run_child(grows, timeout=60, args=[str(path)])


def misuse() -> None:
    import numpy as np

    import refault

    def refuses(call, *words: str) -> None:
        try:
            call()
        except refault.UsageError as error:
            assert all(word in str(error) for word in words), error
        else:
            raise AssertionError(words)

    x, y = refault.zeros(1000), refault.zeros(1000)
    refuses(refault.snapshot, "at least one")
    refuses(lambda: refault.snapshot(np.zeros(3)), "does not lie")
    snap = refault.snapshot(x)
    refuses(lambda: snap[y], "not part")
    then = snap[x]
    refuses(snap.close, "while arrays")
    assert then[5] == 0
    del then
    snap.close()
    refuses(lambda: snap[x], "closed")
    with refault.region(x).mark() as mark:
        refuses(lambda: refault.region(y).dirty(since=mark), "is one of")
    with refault.snapshot(refault.zeros((0, 3)), x) as snap:
        assert snap[x[5:5]].shape == (0,)
    try:
        with refault.snapshot(x) as snap:
            then = snap[x]
            raise KeyError
    except KeyError:
        assert not snap.closed
    del then
    # An array of a snapshot needs nobody but itself.
    x[:] = 1
    then = refault.snapshot(x)[x]
    x[:] = 2
    assert (then == 1).all()


def test_misuse_is_refused() -> None:
    run_child(misuse, timeout=60)


def outlives(path: str) -> None:
    import numpy as np

    import refault

    x = refault.open(path, "r+", dtype="i8", resident="1MiB")
    x[::100] = -5
    wanted = np.array(x)
    snap = refault.snapshot(x)
    then = snap[x]
    x[:] = 7
    refault.region(x).flush()
    del x
    assert np.array_equal(then, wanted)
    assert (np.fromfile(path, "i8") == 7).all()
    again = refault.open(path, "r+", dtype="i8")
    assert (again == 7).all()
    again[:] = 8
    assert np.array_equal(then, wanted)


def test_the_array_may_end_before_its_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    np.arange(MIB // 2, dtype="i8").tofile(path)
    run_child(outlives, timeout=60, args=[str(path)])


def killed(path: str) -> None:
    import os
    import signal

    import refault

    x = refault.open(path, "r+", dtype="i8", resident="1MiB")
    x[:] = 1
    snap = refault.snapshot(x)
    x[:] = 2
    assert (snap[x] == 1).all()
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_with_a_snapshot_open(tmp_path: Path) -> None:
    """What was written last is in the file; nothing is left (see `nothing_left`)."""
    path = tmp_path / "numbers"
    np.zeros(MIB // 2, "i8").tofile(path)
    run_child(killed, timeout=60, args=[str(path)], expect=-9)
    assert (np.fromfile(path, "i8") == 2).all()


def full_disk() -> None:
    import resource

    import numpy as np

    import refault

    size, step = 32 << 20, 1 << 20
    # The pager's too, which is started now: its temporary file may not grow beyond that.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    dice = np.random.default_rng(1)
    arrays = [refault.zeros(size, "u1") for _ in range(3)]
    for array in arrays:
        array[:] = np.frombuffer(dice.bytes(size), "u1")
    wanted = [np.array(array) for array in arrays]
    with refault.snapshot(*arrays) as snap:
        lost = 0
        for array, was in zip(arrays, wanted, strict=True):
            array ^= 255  # does not hang, though the snapshot cannot keep all of it
            assert np.array_equal(array, was ^ 255)
        for array, was in zip(arrays, wanted, strict=True):
            then = snap[array]
            for at in range(0, size, step):
                part = slice(at, at + step)
                try:
                    refault.region(then).populate(part)
                except refault.StoreError as error:
                    assert "lost" in str(error), error
                    lost += 1
                else:
                    assert np.array_equal(then[part], was[part])
            del then
        assert 0 < lost < 96
    # The next one has what fits into memory.
    with refault.snapshot(*arrays) as snap:
        arrays[0][:step] = 0
        assert np.array_equal(snap[arrays[0]], wanted[0] ^ 255)


def test_full_disk_loses_the_snapshot_and_not_the_program() -> None:
    result = run_child(full_disk, timeout=100)
    assert "the snapshot will be incomplete" in result.stderr


def ten_a_second(count: str) -> None:
    import gc
    import os

    import refault
    from refault.client import connection

    def measured() -> tuple[int, int, int]:
        gc.collect()
        pager = connection.current().pager
        refault.region(x).statistics()
        with open(f"/proc/{pager}/statm") as file:
            memory = int(file.read().split()[1]) * 4096
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{pager}/fd")), memory

    x = refault.zeros(8 << 20, "u1", resident="4MiB")
    y = refault.zeros(8 << 20, "u1", resident="4MiB")
    before = None
    for number in range(int(count)):
        with refault.snapshot(x, y) as snap:
            x[:: 4 << 16] = number & 255
            y[:: 1 << 16] = number & 255
            assert snap[x][0] == (number - 1) & 255 or number == 0
        if number == 40:
            before = measured()
    after = measured()
    assert before is not None
    assert after[0] == before[0] and after[1] <= before[1] + 2, (before, after)
    assert after[2] < before[2] + (8 << 20), (before, after)
    # Nothing is protected any more that nobody asks for: at most one fault each, and none then.
    region = refault.region(x)
    x[:: 1 << 16] = 1
    region.populate(slice(0, 2 << 20), write=True)
    seen = region.statistics().faults
    x[: 2 << 20] = 2
    assert region.statistics().faults == seen
    assert region.statistics().dirty


@pytest.mark.slow
def test_many_snapshots_leave_nothing(served_by: str) -> None:
    """As many as ten a second for a minute."""
    count = "600" if served_by == "native" else "150"
    run_child(ten_a_second, timeout=100, args=[count])


def anything(folder: str, seed: str, seconds: str) -> None:
    """Writes, evictions, flushes, snapshots and marks in any order, against copies."""
    import random
    import time

    import numpy as np

    import refault

    dice = random.Random(int(seed))
    size = 300_000
    arrays = [
        refault.open(f"{folder}/a", "w+", dtype="u1", shape=(size,), resident="64KiB",
                     page_size="4KiB"),
        refault.zeros(size, "u1", resident="128KiB", page_size="8KiB"),
        refault.zeros(size, "u1"),
    ]  # fmt: skip
    plain = [np.zeros(size, "u1") for _ in arrays]
    snaps: list[tuple[refault.Snapshot, list[np.ndarray]]] = []
    marks: list[list[tuple[refault.Mark, set[int]]]] = [[] for _ in arrays]

    def pages(written: set[int], page: int) -> list[tuple[int, int]]:
        units = sorted({at // page for at in written})
        found: list[tuple[int, int]] = []
        for unit in units:
            low, high = unit * page, min(size, (unit + 1) * page)
            if found and found[-1][1] == low:
                low = found.pop()[0]
            found.append((low, high))
        return found

    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        which = dice.randrange(len(arrays))
        array, region = arrays[which], refault.region(arrays[which])
        kind = dice.randrange(100)
        if kind < 60:
            at, length = dice.randrange(size), dice.choice((1, 1, 5, 5000, 100_000))
            part = slice(at, min(size, at + length))
            value = dice.randrange(256)
            array[part] = value
            plain[which][part] = value
            for _, written in marks[which]:
                written.update(range(part.start, part.stop, 2048), (part.stop - 1,))
        elif kind < 65:
            region.evict()
        elif kind < 68:
            region.flush()
        elif kind < 74 and len(snaps) < 5:
            snaps.append((refault.snapshot(*arrays), [np.array(one) for one in plain]))
        elif kind < 78 and snaps:
            snap, _ = snaps.pop(dice.randrange(len(snaps)))
            snap.close()
        elif kind < 88 and snaps:
            snap, then = snaps[dice.randrange(len(snaps))]
            low = dice.randrange(size)
            part = slice(low, low + dice.choice((10, 10_000, size)))
            assert np.array_equal(snap[array][part], then[which][part])
        elif kind < 92 and len(marks[which]) < 3:
            if dice.random() < 0.5:
                marks[which].append((region.mark(), set()))
            else:
                with refault.snapshot(*arrays) as snap:
                    marks[which].append((snap.mark(array), set()))
        elif kind < 95 and marks[which]:
            mark, written = marks[which][dice.randrange(len(marks[which]))]
            assert region.dirty(since=mark) == pages(written, region.page_size)
        elif kind < 97 and marks[which]:
            mark, _ = marks[which].pop(dice.randrange(len(marks[which])))
            mark.close()
        else:
            assert np.array_equal(array, plain[which])


@pytest.mark.slow
def test_anything_in_any_order(tmp_path: Path) -> None:
    print(f"REFAULT_STRESS_SEED={SEED}")
    run_child(anything, timeout=90, args=[str(tmp_path), str(SEED), "6"])


def forks(path: str) -> None:
    import os

    import numpy as np

    import refault

    x = refault.open(path, "r+", dtype="i8", resident="1MiB")
    x[:] = 1
    with refault.snapshot(x) as snap:
        then = snap[x]
        pid = os.fork()
        if pid == 0:
            x[:] = 2
            assert (then == 1).all()
            with refault.snapshot(x) as own:
                x[5] = 3
                assert (own[x] == 2).all()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert x[5] == 3 and (then == 1).all()
        assert np.array_equal(snap[x[3:9]], then[3:9])
        del then


def test_a_child_writes_to_what_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    np.zeros(MIB // 2, "i8").tofile(path)
    run_child(forks, timeout=60, args=[str(path)])

"""Windows: a file that is read in order is mapped itself, within the bound, and never as zeros."""

from __future__ import annotations

import pathlib

import pytest

import refault.native
from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(
        not refault.native.available(),
        reason="no native library: there was no C compiler when refault was installed",
    ),
]

SIZE = (96 << 20) + 8 * 1001


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Words 1, 2, 3, ...: none of them is 0; the end is in the middle of a page."""
    import numpy as np

    path = tmp_path_factory.mktemp("windows") / "numbers"
    np.arange(1, SIZE // 8 + 1, dtype="u8").tofile(path)
    return str(path)


def run(
    code: object,
    *args: object,
    timeout: float = 100,
    expect: int = 0,
    forks: bool = False,
    **env: str,
) -> str:
    assert callable(code)
    words = [str(one) for one in args]
    done = run_child(
        code,
        timeout=timeout,
        args=words,
        env=ENVIRONMENT | env,
        expect=expect,
        watchdog=not forks,
    )
    return done.stdout + done.stderr


def in_order(path: str) -> None:
    """All of it, twice, with a look at what is mapped of the file."""
    import re

    import numpy as np

    import refault

    def mapped_of_file() -> int:
        with open("/proc/self/smaps") as maps:
            parts = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", maps.read())
        return sum(
            int(found[1]) << 10
            for part in parts
            if path in part.partition("\n")[0] and (found := re.search(r"Rss: +(\d+)", part))
        )

    limit = 32 << 20
    x = refault.open(path, dtype="u8", resident=limit)
    # Where huge pages of the file fit.
    assert not x.__array_interface__["data"][0] % (2 << 20)
    region = refault.region(x)
    most = windows = 0
    for _ in range(2):
        for start in range(0, len(x), 100_000):
            part = x[start : start + 100_000]
            assert (part == np.arange(start + 1, start + 1 + len(part))).all()
            most = max(most, mapped_of_file())
            windows = max(windows, region.statistics().more["windows"])
    seen = region.statistics()
    assert windows >= 2, seen
    # Half of the budget, and one that is on its way out.
    assert 4 << 20 < most <= limit // 2 + limit // 8, most
    assert seen.peak_resident <= limit, seen
    assert seen.faults < 800, seen
    region.evict()
    assert mapped_of_file() == 0
    with open("/proc/self/maps") as maps:
        mappings = sum("/memfd:refault:" in line for line in maps)
    assert mappings == 1, (
        "what is put back must join the rest: no call crosses from one to the other"
    )
    seen = region.statistics()
    assert (seen.more["windows"], seen.more["window_bytes"], seen.resident) == (0, 0, 0), seen
    assert x[-1] == len(x)


def test_file_is_mapped_within_the_bound(numbers: str) -> None:
    run(in_order, numbers)


def test_without_native_code_there_are_none(numbers: str) -> None:
    def plain(path: str) -> None:
        import numpy as np

        import refault

        x = refault.open(path, dtype="u8", resident="32MiB", page_size="64KiB")
        assert (x == np.arange(1, len(x) + 1)).all()
        seen = refault.region(x).statistics()
        assert not seen.more["windows"], seen
        assert seen.readahead > 1000, seen

    run(plain, numbers, REFAULT_NATIVE="0")


def touched_all_the_time(path: str) -> None:
    """Threads read at random while another one reads in order, and windows come and go."""
    import threading

    import numpy as np

    import refault

    x = refault.open(path, dtype="u8", resident="48MiB", page_size="64KiB")
    expected = np.arange(1, len(x) + 1, dtype="u8")
    region = refault.region(x)
    stop = threading.Event()
    wrong: list[object] = []

    def around(offset: int) -> None:
        """A word of every page around the reader, over and over."""
        while not stop.is_set():
            low, high = max(0, position[0] - 1_500_000), position[0] + 1_000_000
            found = x[low + offset : high : 512]
            bad = np.flatnonzero(found != expected[low + offset : high : 512])
            if len(bad):
                wrong.append((low + offset + bad * 512, found[bad]))
                return

    def anywhere(seed: int) -> None:
        dice = np.random.default_rng(seed)
        while not stop.is_set():
            # Most of them where the reader is: that is where mappings change.
            near = position[0] + dice.integers(-1 << 20, 1 << 20, 200)
            places = np.where(dice.random(200) < 0.8, near, dice.integers(0, len(x), 200))
            places = np.clip(places, 0, len(x) - 1)
            found = np.take(x, places, mode="clip")
            bad = np.flatnonzero(found != expected[places])
            if len(bad):
                wrong.append((places[bad], found[bad]))
                return

    position = [0]
    threads = [threading.Thread(target=anywhere, args=(seed,)) for seed in range(2)]
    threads += [threading.Thread(target=around, args=(offset,)) for offset in (3, 300)]
    for thread in threads:
        thread.start()
    windows = 0
    for number in range(10):
        for start in range(0, len(x), 50_000):
            position[0] = start
            if not (x[start : start + 50_000] == expected[start : start + 50_000]).all():
                wrong.append(start)
            if start % 1_000_000 == 0:
                windows += region.statistics().more["windows"]
                if number % 2:
                    region.evict(slice(max(0, start - 1_000_000), start + 1_000_000))
        if wrong:
            break
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert windows > 20, windows
    seen = region.statistics()
    assert seen.peak_resident <= 48 << 20, seen
    # What is in memory, and not only what was looked at through windows.
    region.evict()
    region.populate(slice(0, 1_000_000))
    assert (x[:1_000_000] == expected[:1_000_000]).all()


def test_no_zeros_while_windows_come_and_go(numbers: str) -> None:
    run(touched_all_the_time, numbers)


def disk_is_kept_busy(path: str) -> None:
    import ctypes
    import mmap
    import os
    import time

    import numpy as np

    import refault

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    shown = np.memmap(path, "u1", "r")

    def cached(at: int) -> bool:
        state = ctypes.c_ubyte()
        page = ctypes.c_void_p(shown.ctypes.data + at)
        assert not libc.mincore(page, mmap.PAGESIZE, ctypes.byref(state))
        return bool(state.value & 1)

    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(70 << 20):
        print("stays in memory")
        return
    x = refault.open(path, dtype="u8", resident="256MiB")
    part = x[: (33 << 20) // 8]
    assert part.sum() == len(part) * (len(part) + 1) // 2
    # The reader is in a window that ends before 48 MiB: the whole next one is being read.  The
    # kernel itself is two of its own windows ahead at most.
    deadline = time.monotonic() + 20
    while not cached(70 << 20):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_disk_is_kept_busy(numbers: str) -> None:
    if "stays in memory" in run(disk_is_kept_busy, numbers):
        pytest.skip("the files of this test are in memory: nothing can be dropped")


def test_writer_comes(numbers: str, tmp_path: pathlib.Path) -> None:
    """Who opens the file for writing sees his changes through the reader's array at once."""
    path = tmp_path / "own"
    path.write_bytes(pathlib.Path(numbers).read_bytes())

    def written(path: str) -> None:
        import refault

        x = refault.open(path, dtype="u8", resident="32MiB")
        assert x.sum() == len(x) * (len(x) + 1) // 2
        region = refault.region(x)
        assert region.statistics().more["windows"]
        y = refault.open(path, "r+", dtype="u8")
        assert not region.statistics().more["windows"]
        y[:] = 7
        assert (x == 7).all()
        assert not region.statistics().more["windows"]

    run(written, path)


def test_child_reads_on(numbers: str) -> None:
    def forked(path: str) -> None:
        import os

        import numpy as np

        import refault

        x = refault.open(path, dtype="u8", resident="32MiB")
        expected = np.arange(1, len(x) + 1)
        half = len(x) // 2
        assert (x[:half] == expected[:half]).all()
        region = refault.region(x)
        assert region.statistics().more["windows"]
        child = os.fork()
        if not child:
            status = 1
            try:
                # What the parent has windows over, and what nobody has read yet.
                assert (x == expected).all()
                status = 0
            finally:
                os._exit(status)
        assert (x == expected).all()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    run(forked, numbers, forks=True)


def rounds(path: str) -> None:
    """Open, read, close, again and again: nothing grows."""
    import os

    import numpy as np

    import refault

    def counted() -> tuple[int, int, int]:
        with open("/proc/self/maps") as maps:
            lines = len(maps.readlines())
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), lines

    expected = np.arange(1, (48 << 20) // 8 + 1)
    for number in range(60):
        with refault.region(
            refault.open(path, dtype="u8", shape=len(expected), resident="32MiB")
        ) as region:
            assert (region.array == expected).all()
            assert region.statistics().more["windows"]
        if number == 9:
            before = counted()
    after = counted()
    assert all(b <= a + 3 for a, b in zip(before, after, strict=True)), (before, after)


def test_rounds_leave_nothing(numbers: str) -> None:
    run(rounds, numbers)


def pager_killed(path: str) -> None:
    import os
    import signal

    import refault
    from refault.client.connection import current

    x = refault.open(path, dtype="u8", resident="32MiB")
    assert x[: len(x) // 2].sum()
    assert refault.region(x).statistics().more["windows"]
    os.kill(current().pager, signal.SIGKILL)
    print("alive", flush=True)
    print(x[len(x) // 2 : len(x) // 2 + (1 << 21)].sum(), x.sum())


def test_pager_killed_under_windows(numbers: str) -> None:
    """What nobody brings is a SIGBUS, never zeros."""
    text = run(pager_killed, numbers, expect=-7)
    assert text.startswith("alive\n")
    assert "it gets SIGBUS" in text


def cut_short(path: str) -> None:
    import os

    import refault

    x = refault.open(path, dtype="u8", resident="32MiB")
    half = len(x) // 2
    assert x[:half].sum()
    assert refault.region(x).statistics().more["windows"]
    os.truncate(path, 4096)
    print("alive", flush=True)
    print(x[:half].sum())


def test_file_cut_short_under_a_window(numbers: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "own"
    path.write_bytes(pathlib.Path(numbers).read_bytes())
    assert run(cut_short, path, expect=-7).startswith("alive\n")


def pins(path: str) -> None:
    import numpy as np

    import refault

    x = refault.open(path, dtype="u8", resident="32MiB")
    expected = np.arange(1, len(x) + 1)
    assert (x == expected).all()
    region = refault.region(x)
    assert region.statistics().more["windows"]
    low = x.__array_interface__["data"][0] + (len(x) - 500_000) * 8
    with region.pin(slice(len(x) - 500_000, len(x))):
        seen = region.statistics()
        assert seen.pinned >= 500_000 * 8
        with open("/proc/self/maps") as maps:
            files = [line for line in maps if path in line]
        assert all(int(line.partition("-")[0], 16) < low for line in files), files
        # Pressure from everywhere else; it stays.
        assert (x == expected).all()
        assert region.statistics().pinned == seen.pinned
    assert (x == expected).all()
    assert region.statistics().peak_resident <= 32 << 20


def test_pins(numbers: str) -> None:
    run(pins, numbers)


def shared_budget(path: str) -> None:
    """Windows give way when another region of the process needs the memory."""
    import numpy as np

    import refault

    refault.configure(resident="32MiB")
    x = refault.open(path, dtype="u8")
    y = refault.zeros(24 << 20, "u1")
    expected = np.arange(1, len(x) + 1)
    for number in range(1, 4):
        assert (x == expected).all()
        y[:] = number
        assert (y == number).all()
    seen = refault.region(x).statistics()
    assert seen.native, seen


def test_budget_of_the_process(numbers: str) -> None:
    run(shared_budget, numbers)


def passes(path: str) -> None:
    """In a budget that is full of other pages, and again and again: it is windows all the time."""
    import numpy as np

    import refault

    x = refault.open(path, dtype="u8", resident="32MiB", page_size="64KiB")
    region = refault.region(x)
    expected = np.arange(1, len(x) + 1)
    places = np.random.default_rng(5).integers(0, len(x), 3000)
    assert (np.take(x, places, mode="clip") == expected[places]).all()
    full = region.statistics()
    assert full.resident > 30 << 20, full
    address = x.__array_interface__["data"][0]
    for number in range(1, 5):
        assert (x == expected).all()
        seen = region.statistics()
        # Page units that were copied: the beginning, the end, and one for each window.
        assert seen.readahead - full.readahead < number * 300, (number, seen)
        with open("/proc/self/maps") as maps:
            starts = [int(line.partition("-")[0], 16) for line in maps]
        assert sum(address <= start < address + x.nbytes for start in starts) < 30
    assert seen.peak_resident <= 32 << 20, seen
    region.evict()
    with open("/proc/self/maps") as maps:
        starts = [int(line.partition("-")[0], 16) for line in maps]
    # What is put back is again one mapping.
    assert sum(address <= start < address + x.nbytes for start in starts) == 1


def test_pass_after_pass(numbers: str) -> None:
    run(passes, numbers)


def pin_nearly_all(path: str) -> None:
    """The newest window, elsewhere, goes too if there is nothing else to be had."""
    import numpy as np

    import refault

    x = refault.open(path, dtype="u8", resident="32MiB")
    region = refault.region(x)
    quarter = len(x) // 4
    expected = np.arange(1, len(x) + 1)
    assert (x[:quarter] == expected[:quarter]).all()
    assert region.statistics().more["windows"]
    last = len(x) - 100_000
    first = last - (31 << 20) // 8
    with region.pin(slice(first, last)):
        assert (x[first:last] == expected[first:last]).all()
        assert not region.statistics().more["windows"]
    assert region.statistics().peak_resident <= 32 << 20


def test_newest_window_goes_if_nothing_else_can(numbers: str) -> None:
    run(pin_nearly_all, numbers)


def without_descriptors(path: str) -> None:
    """What cannot be given back, because there may be no more open files, is an error."""
    import os
    import resource

    import refault

    x = refault.open(path, dtype="u8", resident="32MiB")
    region = refault.region(x)
    assert x.sum() == len(x) * (len(x) + 1) // 2
    assert region.statistics().more["windows"]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, limits[1]))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    # A request takes two, and one of them is left when it has been sent; the agent needs two.
    os.close(taken.pop())
    os.close(taken.pop())
    try:
        region.evict()
    except refault.KernelError as error:
        assert "open files" in str(error), error
    else:
        raise AssertionError("windows were given back without a descriptor")
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    seen = region.statistics()
    assert seen.more["windows"], seen
    assert seen.resident >= seen.more["window_bytes"]
    region.evict()
    assert not region.statistics().resident
    assert x.sum() == len(x) * (len(x) + 1) // 2


def test_no_descriptors(numbers: str) -> None:
    assert "no more are made" in run(without_descriptors, numbers)


def forks(path: str) -> None:
    """There is no agent while the process forks, and a child inherits no window."""
    import os
    import threading

    import numpy as np

    threads: list[int] = []
    # Called after all hooks that are registered later.
    os.register_at_fork(before=lambda: threads.append(len(os.listdir("/proc/self/task"))))
    import refault

    x = refault.open(path, dtype="u8", resident="32MiB", page_size="64KiB")
    assert x[:2_000_000].sum()
    before = len(os.listdir("/proc/self/task"))
    for _ in range(2):
        child = os.fork()
        if not child:
            with open("/proc/self/maps") as maps:
                found = [line for line in maps if path in line]
            os._exit(bool(found))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert threads == [before - 1] * 2, (threads, before)
    assert len(os.listdir("/proc/self/task")) == before
    # While they come and go.
    expected = np.arange(1, len(x) + 1)
    wrong: list[int] = []

    def read() -> None:
        for _ in range(3):
            for start in range(0, len(x), 100_000):
                if not (x[start : start + 100_000] == expected[start : start + 100_000]).all():
                    wrong.append(start)

    reader = threading.Thread(target=read)
    reader.start()
    children = []
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        while reader.is_alive() and len(children) < 40:
            child = os.fork()
            if not child:
                with open("/proc/self/maps") as maps:
                    found = [line for line in maps if path in line]
                os._exit(bool(found) or int(x[len(x) // 2]) != len(x) // 2 + 1)
            children.append(child)
            reader.join(0.05)
    reader.join()
    assert not wrong, wrong
    assert not any(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children)
    assert refault.region(x).statistics().more["windows"]


def test_forks(numbers: str) -> None:
    run(forks, numbers, forks=True)


def others_write(path: str, other: str) -> None:
    """Pages of another region are protected while windows come and go: neither waits for long."""
    import threading

    import numpy as np

    import refault

    x = refault.open(path, dtype="u8", resident="32MiB")
    y = refault.open(other, "w+", dtype="u8", shape=(8 << 20) // 8, resident="2MiB")
    expected = np.arange(1, len(x) + 1)
    stop = threading.Event()
    rounds = 0

    def write() -> None:
        nonlocal rounds
        while not stop.is_set():
            rounds += 1
            y[:] = rounds
            assert (y == rounds).all()

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(6):
        assert (x == expected).all()
    stop.set()
    thread.join()
    assert rounds > 1
    refault.region(y).flush()
    assert (np.fromfile(other, "u8") == rounds).all()


def test_another_region_is_written(numbers: str, tmp_path: pathlib.Path) -> None:
    run(others_write, numbers, tmp_path / "other")

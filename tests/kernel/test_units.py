"""Page units of a size that fits: on real memory, under load, with every byte compared."""

from __future__ import annotations

import os
import pathlib
import secrets

import numpy as np
import pytest

from helpers import flipping_pager
from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd, pytest.mark.usefixtures("nothing_left")]

MIB = 1 << 20
FLIPPING = {"flipping_pager.py": pathlib.Path(flipping_pager.__file__).read_text()}
SEED = int(os.environ.get("REFAULT_STRESS_SEED", "0")) or secrets.randbits(32)


def numbers(folder: pathlib.Path, size: int) -> str:
    """A file of the u8 numbers from 0 on; its last unit is a short one."""
    path = folder / "numbers"
    np.arange(size // 8, dtype="u8").tofile(path)
    return str(path)


def flipping(path: str, mode: str, seconds: str, seed: str) -> None:
    import random
    import threading
    import time

    import numpy as np
    from flipping_pager import use_flipping_pager

    import refault

    use_flipping_pager()
    x = refault.open(path, mode, dtype="u8", resident="16MiB")
    region = refault.region(x)
    plain = np.fromfile(path, "u8")
    threads, stripe = 4, 50
    groups = len(x) // (threads * stripe)
    view = x[: groups * threads * stripe].reshape(groups, threads, stripe)
    theirs = plain[: groups * threads * stripe].reshape(groups, threads, stripe)
    end = time.monotonic() + float(seconds)
    sizes = set()
    done = [0] * threads
    problems = []

    def work(number: int, ours: np.ndarray) -> None:
        dice = random.Random(int(seed) + number)
        try:
            while time.monotonic() < end:
                first = dice.randrange(groups)
                where = slice(first, min(groups, first + dice.choice((1, 1, 1, 9, 64, 500))))
                mine, wanted = ours[where, number], theirs[where, number]
                kind = dice.randrange(100)
                if kind < 50 or mode == "r":
                    assert np.array_equal(mine, wanted), (number, where)
                elif kind < 80:
                    mine += np.uint64(kind)
                    wanted += np.uint64(kind)
                else:
                    wanted[...] = dice.randrange(1 << 60)
                    mine[...] = wanted
                if kind == 99:
                    region.prefetch(mine)
                elif kind == 98:
                    region.populate(mine)
                elif kind == 97:
                    region.evict(mine)
                elif kind == 96 and number == 0:
                    region.flush(mine)
                elif kind == 95:
                    with region.pin(mine[:9]):
                        assert np.array_equal(mine, wanted), (number, where)
                elif kind == 94:
                    sizes.add(region.page_size)
                done[number] += 1
        except BaseException as error:
            problems.append(error)
            raise

    running = [threading.Thread(target=work, args=(number, view)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    seen = region.statistics()
    print(sum(done), "operations,", seen.unit_changes, "changes,", sizes, seen)
    assert not problems, problems
    assert np.array_equal(x, plain)
    assert seen.unit_changes >= 4, seen
    assert sizes == {4096, 65536, 262144}
    assert seen.peak_resident <= 16 << 20, seen
    del x, view
    region.close()
    assert mode == "r" or np.array_equal(np.fromfile(path, "u8"), plain)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_no_wrong_byte_while_units_change(mode: str, tmp_path: pathlib.Path) -> None:
    print(f"seed {SEED}")
    path = numbers(tmp_path, 64 * MIB + 8 * 1000)
    done = run_child(flipping, timeout=60, args=[path, mode, "4", str(SEED)], files=FLIPPING)
    print(done.stdout)


def scattered(path: str, mode: str, page_size: str, readers: str, reads: str) -> None:
    """Read records of 64 bytes here and there, popular ones most of the time."""
    import threading

    import numpy as np

    import refault

    given = page_size or None
    x = refault.open(path, mode, dtype="u8", resident="8MiB", page_size=given)
    region = refault.region(x)
    begin = region.page_size
    pages = len(x) // 512
    wrong = []

    def read(seed: int) -> None:
        dice = np.random.default_rng(seed)
        bounds = np.cumsum(np.arange(1, pages + 1) ** -0.99)
        ranks = np.searchsorted(bounds, dice.random(int(reads)) * bounds[-1])
        places = np.random.default_rng(0).permutation(pages)[np.minimum(ranks, pages - 1)]
        for at in (places * 512 + dice.integers(0, 504, int(reads))).tolist():
            if int(x[at + 7]) != at + 7:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(int(readers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:9]
    seen = region.statistics()
    assert seen.evictions > 100, seen
    assert seen.peak_resident <= 8 << 20, seen
    if given is not None:
        assert (begin, region.page_size, seen.unit_changes) == (seen.page_size, begin, 0), seen
        assert seen.page_size == {"4KiB": 4096, "64KiB": 65536, "1MiB": 1 << 20}[page_size]
    elif mode == "c":
        # Its changes are in swap, by the number of the unit.
        assert (seen.page_size, seen.unit_changes) == (65536, 0), seen
    else:
        assert (begin, seen.page_size, region.page_size) == (65536, 4096, 4096), seen
        assert seen.unit_changes == 1, seen
        # In order from now on, again and again: large ones.
        for _ in range(3):
            assert int(x[: 1 << 22].sum()) == (1 << 21) * ((1 << 22) - 1)
        seen = region.statistics()
        assert (seen.page_size, seen.unit_changes) == (65536, 2), seen


@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_scattered_reads(mode: str, readers: int, tmp_path: pathlib.Path) -> None:
    path = numbers(tmp_path, 64 * MIB)
    run_child(scattered, timeout=60, args=[path, mode, "", str(readers), "20000"])


@pytest.mark.parametrize("page_size", ["4KiB", "64KiB", "1MiB"])
def test_a_size_that_was_given_stays(page_size: str, tmp_path: pathlib.Path) -> None:
    path = numbers(tmp_path, 64 * MIB)
    run_child(scattered, timeout=60, args=[path, "r", page_size, "1", "8000"])


def opened_with_a_size(path: str, size: str) -> None:
    import os
    import threading

    import numpy as np
    import pytest

    import refault

    x = refault.open(path, "r+", dtype="u8", resident="8MiB")
    first = refault.region(x)
    assert first.page_size == 65536
    with first.pin(slice(0, 10)), pytest.raises(refault.UsageError, match="release pins"):
        refault.open(path, "r+", dtype="u8", page_size=size)
    wanted = np.arange(len(x), dtype="u8")
    x[::5000] += np.uint64(1)
    wanted[::5000] += np.uint64(1)
    over = threading.Event()
    problems = []

    def use(x: np.ndarray) -> None:
        dice = np.random.default_rng()
        while not over.is_set():
            at = int(dice.integers(0, len(x) - 9000))
            if not np.array_equal(x[at : at + 9000], wanted[at : at + 9000]):
                problems.append(at)

    threads = [threading.Thread(target=use, args=(x,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    # All regions of a file share its units: the one that was open gets them, too.
    y = refault.open(path, "r+", dtype="u8", resident="8MiB", page_size=size)
    assert refault.region(y).page_size == first.page_size == int(size)
    with pytest.raises(refault.UsageError, match=f"page_size={size}; all regions"):
        refault.open(path, dtype="u8", page_size=2 * int(size))
    z = refault.open(path, dtype="u8")
    assert refault.region(z).page_size == int(size)
    over.set()
    for thread in threads:
        thread.join()
    pid = os.fork()
    if not pid:
        right = np.array_equal(x, wanted) and refault.region(x).page_size == int(size)
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not problems
    assert np.array_equal(y, wanted)
    seen = first.statistics()
    assert seen.peak_resident <= 8 << 20, seen
    del x, y, z, threads
    first.close()
    assert np.array_equal(np.fromfile(path, "u8"), wanted)


@pytest.mark.parametrize("size", [4096, 16384, 1 << 20])
def test_a_file_that_is_open_is_opened_with_a_size(size: int, tmp_path: pathlib.Path) -> None:
    path = numbers(tmp_path, 32 * MIB)
    run_child(opened_with_a_size, timeout=60, args=[path, str(size)])


def forked(path: str) -> None:
    """A child has the region, too, while its units change."""
    import os

    import numpy as np
    from flipping_pager import use_flipping_pager

    import refault

    use_flipping_pager()
    x = refault.open(path, "r+", dtype="u8", resident="4MiB")
    region = refault.region(x)
    wanted = np.arange(len(x), dtype="u8")
    low = np.uint64((1 << 63) - 1)
    pids = []
    for number in range(2):
        pid = os.fork()
        if not pid:
            dice = np.random.default_rng(number)
            for _ in range(200):
                at = int(dice.integers(0, len(x) - 9000))
                if not np.array_equal(x[at : at + 9000] & low, wanted[at : at + 9000]):
                    os._exit(1)
                # One bit of each second number is mine.
                x[2 * (at // 2) + number] |= ~low
            os._exit(0)
        pids.append(pid)
    for at in range(0, len(x) - 9000, 9000):
        assert np.array_equal(x[at : at + 9000] & low, wanted[at : at + 9000])
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    for number in range(2):
        dice = np.random.default_rng(number)
        for at in dice.integers(0, len(x) - 9000, 200).tolist():
            assert int(x[2 * (at // 2) + number]) >> 63
    assert region.statistics().unit_changes >= 4, region.statistics()
    del x
    region.close()
    assert np.array_equal(np.fromfile(path, "u8") & low, wanted)


def test_forked_children_while_units_change(tmp_path: pathlib.Path) -> None:
    run_child(forked, timeout=60, args=[numbers(tmp_path, 32 * MIB)], files=FLIPPING)

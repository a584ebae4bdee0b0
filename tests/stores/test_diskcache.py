"""A disk cache gives what the store holds, whatever is done to its folder, and stays in bounds."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.child_tools import ENVIRONMENT
from helpers.teststores import OnFile, Versioned
from helpers.userfaultfd import needs_userfaultfd
from refault.errors import StoreError, UsageError
from refault.stores import DiskCache, blockfolder
from refault.stores.blockfolder import BlockFolder, block_bytes
from refault.stores.objects import ObjectStore, dump_object, load_object
from refault.testing import FlakyStore, SlowStore, TornStore
from refault.testing.storecase import StoreCase, random_content

KILLS = int(os.environ.get("REFAULT_TEST_KILLS", "12"))
BLOCK = 16384
SIZE = 10 * BLOCK + 321
CONTENT = random_content(SIZE)


@pytest.fixture
def base(tmp_path: Path) -> Versioned:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return Versioned(path, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached(base: Any, folder: Path, size: int | str = "1MiB") -> DiskCache:
    return DiskCache(base, folder, size, block=BLOCK)


def files(folder: Path) -> list[Path]:
    """All blocks."""
    return sorted(path for path in (folder / "refault-blocks").glob("??/*"))


def used(folder: Path) -> int:
    """What they take up at one moment: nobody adds or evicts any meanwhile."""
    with open(folder / "refault-blocks" / "bytes", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(-(-path.stat().st_size // 4096) * 4096 for path in files(folder))


def check(store: Any, content: bytes = CONTENT) -> None:
    StoreCase(store, content).check(0, len(content))


def test_what_was_read_is_read_from_the_disk(base: Versioned, folder: Path) -> None:
    store = cached(base, folder)
    check(store)
    assert (store.hits, store.misses, base.asked) == (0, 11, 1)
    check(store)
    assert (store.hits, store.misses, base.asked) == (11, 11, 1)
    again = cached(Versioned(base.path, 1), folder)
    check(again)
    assert (again.hits, again.misses, again.store.asked) == (11, 0, 0)
    assert len(files(folder)) == 11


def test_only_whole_blocks_that_are_needed_are_fetched(base: Versioned, folder: Path) -> None:
    store = cached(base, folder)
    case = StoreCase(store, CONTENT)
    case.check(3 * BLOCK + 5, 10)
    case.check(3 * BLOCK, BLOCK)
    assert (store.misses, base.asked) == (1, 1)
    # The ones beside it, in two runs around the one that is there.
    case.check(2 * BLOCK - 1, 3 * BLOCK)
    assert (store.misses, base.asked) == (4, 3)


def test_a_flipped_bit_is_found_and_fetched_again(base: Versioned, folder: Path) -> None:
    check(cached(base, folder))
    chance = random.Random(3)
    for number, path in enumerate([*files(folder) * 4]):
        whole = bytearray(path.read_bytes())
        # In what names the block, in its checksums, and in its bytes.
        place = chance.randrange((48, 4096, len(whole))[number % 3])
        whole[place] ^= 1 << chance.randrange(8)
        path.write_bytes(whole)
        store = cached(base, folder)
        check(store)
        assert (store.damaged, store.misses) == (1, 1), place
        check(store)
        assert (store.damaged, store.misses) == (1, 1), place


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one, other: os.truncate(one, 0),
        lambda one, other: os.truncate(one, 4096),
        lambda one, other: os.truncate(one, one.stat().st_size - 1),
        lambda one, other: one.write_bytes(bytes(one.stat().st_size)),
        lambda one, other: one.write_bytes(other.read_bytes()),
    ],
    ids=["empty", "header", "short", "zeros", "another"],
)
def test_what_a_power_cut_leaves_is_found(base: Versioned, folder: Path, spoil: Any) -> None:
    check(cached(base, folder))
    one, other = files(folder)[:2]
    spoil(one, other)
    store = cached(base, folder)
    check(store)
    assert (store.damaged, store.misses) == (1, 1)


def test_a_part_is_read_without_the_rest_of_its_block(base: Versioned, folder: Path) -> None:
    """A damaged page is found by who reads it, and only by them."""
    case = StoreCase(cached(base, folder), CONTENT)
    case.check(0, BLOCK)
    path = files(folder)[0]
    whole = bytearray(path.read_bytes())
    whole[4096 + 2 * 4096 + 7] ^= 1
    path.write_bytes(whole)
    for offset, length in ((0, 8192), (5, 8000), (3 * 4096, 4096), (3 * 4096 + 1, 1)):
        case.check(offset, length)
    assert case.raw.damaged == 0
    case.check(2 * 4096 + 1, 1)
    assert case.raw.damaged == 1


def test_bound_holds_and_the_least_used_goes_first(base: Versioned, folder: Path) -> None:
    limit = 4 * block_bytes(BLOCK)
    store = cached(base, folder, limit)
    case = StoreCase(store, CONTENT)
    for number in range(4):
        case.check(number * BLOCK, 1)
        # The clock of file times is a coarse one.
        for age, path in enumerate(sorted(files(folder), key=lambda path: path.stat().st_mtime)):
            os.utime(path, (1000 + age, 1000 + age))
    assert used(folder) == limit
    case.check(0, 1)  # The first is the one used last now.
    case.check(5 * BLOCK, 1)
    assert used(folder) <= limit
    misses = store.misses
    case.check(0, 1)
    assert store.misses == misses
    case.check(1 * BLOCK, 1)
    assert store.misses == misses + 1


@pytest.mark.parametrize("seed", range(3))
def test_bound_holds_whatever_is_read(base: Versioned, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    limit = chance.randrange(block_bytes(BLOCK), 12 * block_bytes(BLOCK))
    case = StoreCase(cached(base, folder, limit), CONTENT)
    for _ in range(60):
        offset = chance.randrange(SIZE)
        case.check(offset, min(chance.choice((1, 5000, 50_000)), SIZE - offset))
        assert used(folder) <= limit


def test_bound_holds_when_all_save_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4 * block_bytes(BLOCK)
    blocks = BlockFolder(str(folder), limit)
    write = blockfolder._write

    def write_slowly(path: str, parts: Any) -> None:
        time.sleep(0.005)
        write(path, parts)

    monkeypatch.setattr(blockfolder, "_write", write_slowly)
    with ThreadPoolExecutor(8) as pool:
        keys = [bytes([number]) * 32 for number in range(16)]
        list(pool.map(lambda key: blocks.save(key, memoryview(bytes(BLOCK))), keys))
    assert used(folder) <= limit


def test_bound_holds_when_savers_are_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may be there, and its writer did not come to say so."""
    limit = 4 * block_bytes(BLOCK)
    blocks = BlockFolder(str(folder), limit)
    write = blockfolder._write

    def write_and_end(path: str, parts: Any) -> None:
        write(path, parts)
        raise SystemExit

    blocks.save(bytes(32), memoryview(bytes(BLOCK)))
    monkeypatch.setattr(blockfolder, "_write", write_and_end)
    for number in range(1, 16):
        with pytest.raises(SystemExit):
            blocks.save(bytes([number]) * 32, memoryview(bytes(BLOCK)))
        assert used(folder) <= limit


def test_what_others_left_counts(base: Versioned, folder: Path) -> None:
    """The number of bytes is lost or of another boot; a killed writer left a file behind."""
    limit = 5 * block_bytes(BLOCK)
    count = folder / "refault-blocks" / "bytes"
    for spoil in (
        count.unlink,
        functools.partial(count.write_bytes, b""),
        functools.partial(count.write_bytes, b"x" * 36 + bytes(8)),
    ):
        case = StoreCase(cached(base, folder, limit), CONTENT)
        case.check(0, 5 * BLOCK)
        unfinished = files(folder)[0].with_name("new-abc")
        unfinished.write_bytes(b"half")
        spoil()
        case.check(6 * BLOCK, 3 * BLOCK)
        assert not unfinished.exists()
        assert used(folder) <= limit


def test_nothing_but_blocks_is_removed(base: Versioned, folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_bytes(b"x" * 100_000)
    check(cached(base, folder, block_bytes(BLOCK)))
    assert (folder / "thesis.tex").stat().st_size == 100_000
    tag = folder / "refault-blocks" / "CACHEDIR.TAG"
    assert tag.read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


def test_versions_are_never_mixed(base: Versioned, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(random_content(SIZE, 9))
    check(cached(base, folder))
    newer = cached(Versioned(other, 2), folder)
    check(newer, random_content(SIZE, 9))
    assert newer.hits == 0
    check(cached(base, folder))
    for store in (
        cached(Versioned(base.path, "1"), folder),
        DiskCache(base, folder, block=2 * BLOCK),
        DiskCache(base, folder, block=BLOCK, key="mine"),
    ):
        check(store)
        assert (store.hits, store.damaged) == (0, 0)


def test_change_while_it_is_open_is_an_error(base: Versioned, folder: Path) -> None:
    store = cached(base, folder)
    case = StoreCase(store, CONTENT)
    case.check(0, 1)
    base.version = 2
    case.check(0, 1)  # That is of the old version, as all of it was.
    with pytest.raises(StoreError, match=r"it was version 1 .* and is 2") as caught:
        case.check(2 * BLOCK, 1)
    assert caught.value.permanent


def test_change_while_it_is_read_is_an_error(base: Versioned, folder: Path) -> None:
    case = StoreCase(cached(TornStore(base, 1, how="version"), folder), CONTENT)
    with pytest.raises(StoreError, match="has changed") as caught:
        case.check(0, 1)
    assert caught.value.permanent
    assert not files(folder)


@pytest.mark.parametrize("how", ["fails", "short"])
def test_what_the_store_does_not_deliver_is_not_kept(
    base: Versioned, folder: Path, how: Any
) -> None:
    case = StoreCase(cached(TornStore(base, 0.5, 1, how=how), folder), CONTENT)
    failed = 0
    for number in range(11):
        while True:
            try:
                case.check(number * BLOCK, 100)
            except StoreError as error:
                assert not error.permanent
                failed += 1
                assert len(files(folder)) == number
            else:
                break
    assert failed > 3
    check(case.raw)
    assert base.asked == failed + 11


def test_a_store_must_say_what_it_holds(base: Versioned, folder: Path) -> None:
    nameless = OnFile(base.path)
    with pytest.raises(UsageError, match="has no version or no name"):
        cached(nameless, folder)
    check(DiskCache(nameless, folder, key="content"))
    base.version = None
    with pytest.raises(UsageError, match="or the DiskCache a key"):
        cached(base, folder)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": "1"}, "size='1'"),
        ({"size": "16KiB", "block": "16KiB"}, "no room for one block"),
        ({"block": 0}, "no multiple of 4096"),
        ({"block": "10kB"}, "no multiple of 4096"),
        ({"block": "1GiB"}, "no multiple of 4096 up to"),
    ],
)
def test_sizes_that_make_no_sense(
    base: Versioned, folder: Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        DiskCache(base, folder, **parameters)


def test_largest_block(base: Versioned, folder: Path) -> None:
    store = DiskCache(base, folder, block=BlockFolder.largest)
    check(store)
    check(store)
    assert (store.hits, store.misses) == (1, 1)


def test_a_folder_that_cannot_be_made(base: Versioned, folder: Path) -> None:
    folder.write_bytes(b"a file")
    with pytest.raises(UsageError, match=r"cannot be used: .*give one that you may write to"):
        cached(base, folder)


def test_it_is_only_read(base: Versioned, folder: Path) -> None:
    with pytest.raises(StoreError, match="no write_from"):
        ObjectStore(cached(base, folder)).write_from(0, memoryview(b"x"))
    assert Path(base.path).read_bytes() == CONTENT


def test_threads_fetch_a_block_once(base: Versioned, folder: Path) -> None:
    store = cached(SlowStore(base, 0.05), folder)
    start = threading.Barrier(8)

    def read(number: int) -> None:
        start.wait()
        StoreCase(store, CONTENT).check(number, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert base.asked == 1


def test_a_fetch_that_fails_lets_others_try(base: Versioned, folder: Path) -> None:
    store = cached(FlakyStore(SlowStore(base, 0.01), 0.9, 4), folder)

    def read(number: int) -> int:
        failed = 0
        while True:
            try:
                StoreCase(store, CONTENT).check(0, 100)
            except StoreError:
                failed += 1
            else:
                return failed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(read, range(8))) > 0
    assert base.asked == 1


def test_a_folder_that_vanishes_is_made_again(base: Versioned, folder: Path) -> None:
    store = cached(base, folder)
    check(store)
    subprocess.run(["rm", "-r", str(folder)], check=True)
    check(store)
    check(store)
    assert (store.hits, store.misses) == (11, 22)


def test_without_files_that_have_no_name(
    base: Versioned, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some filesystems have no O_TMPFILE."""
    right = os.open

    def without(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return right(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", without)
    store = cached(base, folder)
    check(store)
    check(store)
    assert (store.hits, store.misses) == (11, 11)
    assert all(len(path.name) == 64 for path in files(folder))


FULL_DISK = """
import resource, sys
from helpers.teststores import Versioned
from refault.stores import DiskCache, blockfolder
from refault.testing.storecase import StoreCase

path, folder = sys.argv[1:]
store = DiskCache(Versioned(path, 1), folder, block=16384)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
content = open(path, "rb").read()
StoreCase(store, content).check(0, len(content))
StoreCase(store, content).check(0, len(content))
print(store.hits, store.misses)
"""


def test_what_the_disk_does_not_take_is_read_from_the_store(base: Versioned, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, base.path, str(folder)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # The last block is short enough for the limit.
    assert done.stdout == "1 21\n"
    assert done.stderr.count("keeps no blocks of versioned: File too large") == 1


READER = """
import random, sys
from helpers.teststores import Versioned
from refault.stores import DiskCache, blockfolder
from refault.testing.storecase import StoreCase

folder, limit, seed, *paths = sys.argv[1:]
cases = []
for version, path in enumerate(paths):
    store = DiskCache(Versioned(path, version), folder, int(limit), block=16384)
    cases.append(StoreCase(store, open(path, "rb").read()))
chance = random.Random(seed)
print("ready", flush=True)
while True:
    case = chance.choice(cases)
    offset = chance.randrange(len(case.model))
    case.check(offset, min(chance.choice((1, 5000, 50_000)), len(case.model) - offset))
    assert not case.raw.damaged, "half a block was to be seen"
"""


def test_processes_share_a_folder_and_are_killed(
    base: Versioned, folder: Path, tmp_path: Path
) -> None:
    """At random moments, while they read two versions and evict each other's blocks."""
    other = tmp_path / "other"
    other.write_bytes(random_content(SIZE, 9))
    limit = 9 * block_bytes(BLOCK)
    chance = random.Random(5)

    def start(seed: int) -> subprocess.Popen[str]:
        arguments = [str(folder), str(limit), str(seed), base.path, str(other)]
        child = subprocess.Popen(
            [sys.executable, "-c", READER, *arguments],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def kill(child: subprocess.Popen[str]) -> None:
        assert child.poll() is None, "it found something wrong, see its stderr"
        child.kill()
        child.communicate()

    children = [start(seed) for seed in range(2)]
    try:
        for seed in range(2, 2 + KILLS):
            # A random moment is what is wanted here, not that something happens meanwhile.
            threading.Event().wait(chance.uniform(0, 0.03))
            assert used(folder) <= limit
            kill(children.pop(chance.randrange(2)))
            children.append(start(seed))
    finally:
        for child in children:
            kill(child)
    assert used(folder) <= limit
    for version, path in enumerate((base.path, other)):
        store = cached(Versioned(path, version), folder, limit)
        check(store, Path(path).read_bytes())
        assert store.damaged == 0
    assert all(len(path.name) == 64 for path in files(folder))


PAGED = """
import sys
import numpy as np
import refault
from helpers.teststores import Versioned
from refault.stores import DiskCache

path, content, folder = sys.argv[1:]
right = np.fromfile(content, "u1")
store = DiskCache(Versioned(path, 1), folder, block=16384)
for seed in range(3):
    x = refault.open(store, resident="64KiB", page_size="4KiB")
    for at in np.random.default_rng(seed).permutation(len(right) // 1000):
        part = slice(at * 1000, at * 1000 + 1000)
        assert np.array_equal(x[part], right[part]), part
        print("read", flush=True)
"""


@needs_userfaultfd
@pytest.mark.userfaultfd
def test_pagers_share_it_and_one_program_is_killed(base: Versioned, folder: Path) -> None:
    def start(path: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PAGED, path, base.path, str(folder)],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            text=True,
        )

    children = [start(base.path) for _ in range(2)]
    try:
        killed, other = children
        assert killed.stdout is not None
        for _ in range(100):
            assert killed.stdout.readline() == "read\n"
        killed.kill()
        other.communicate(timeout=60)
        assert other.returncode == 0
        # Whoever comes now needs the store for nothing.
        zeros = Path(base.path).with_name("zeros")
        zeros.write_bytes(bytes(SIZE))
        children.append(start(str(zeros)))
        children[-1].communicate(timeout=60)
        assert children[-1].returncode == 0
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_it_travels(base: Versioned, folder: Path) -> None:
    check(cached(base, folder))
    copy = load_object(dump_object(cached(base, folder)), [])
    check(copy)
    assert isinstance(copy, DiskCache)
    assert (copy.hits, copy.misses) == (11, 0)

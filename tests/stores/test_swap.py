from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from helpers.leftovers import open_files
from refault.errors import StoreError, UsageError
from refault.stores import spill
from refault.stores.extents import Extents
from refault.stores.swap import Swap
from refault.stores.swapspace import Key

PAGE = 64 << 10


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    """Half as long when compressed."""
    return bytes(b & 15 for b in noise(size, seed))


def load(swap: Swap, key: Key, size: int) -> bytes:
    buffer = bytearray(b"\xee" * size)
    swap.load(key, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def full(*args: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_pages_come_back() -> None:
    swap = Swap(1 << 20)
    pages = {("m", 0): bytes(PAGE), ("m", 1): text(PAGE), ("m", 2): noise(PAGE), ("n", 0): b"x"}
    for key, page in pages.items():
        swap.store(key, memoryview(page))
    for key, page in pages.items():
        assert key in swap
        assert load(swap, key, len(page)) == page
        buffer = bytearray(b"\xee" * len(page))
        assert swap.load_nowait(key, memoryview(buffer))
        assert buffer == page
    numbers = swap.statistics()
    assert numbers["pages"] == 4
    assert numbers["bytes_raw"] == 3 * PAGE + 1
    assert PAGE < numbers["bytes_compressed"] < 2 * PAGE
    assert numbers["bytes_spilled"] == numbers["file_bytes"] == 0
    swap.close()


def test_zeros_take_no_room() -> None:
    swap = Swap(0)
    for index in range(100):
        swap.store((0, index), memoryview(bytes(PAGE)))
    assert swap.statistics()["bytes_compressed"] == swap.statistics()["bytes_spilled"] == 0
    assert load(swap, (0, 99), PAGE) == bytes(PAGE)
    almost = bytes(PAGE - 1) + b"\1"
    swap.store((0, 0), memoryview(almost))
    assert load(swap, (0, 0), PAGE) == almost
    swap.close()


def test_zstd_is_imported_on_first_use() -> None:
    code = (
        "import sys; from refault.stores.swap import Swap; s = Swap(1)\n"
        "bad = [m for m in sys.modules if 'zstd' in m or m == 'numpy']\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_oldest_are_spilled_first(tmp_path: Path) -> None:
    swap = Swap(3 * PAGE, tmp_path)
    for index in range(5):
        swap.store((0, index), memoryview(noise(PAGE, index)))
    buffer = memoryview(bytearray(PAGE))
    assert [swap.load_nowait((0, i), buffer) for i in range(5)] == [False] * 2 + [True] * 3
    assert [load(swap, (0, i), PAGE) for i in range(5)] == [noise(PAGE, i) for i in range(5)]
    numbers = swap.statistics()
    assert numbers["bytes_compressed"] == 3 * PAGE
    assert numbers["bytes_spilled"] == 2 * PAGE
    assert numbers["file_bytes"] >= 2 * PAGE
    assert list(tmp_path.iterdir()) == []
    swap.close()


def test_the_oldest_stay_the_oldest_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = Swap(3 * PAGE, tmp_path)
    for index in range(3):
        swap.store((0, index), memoryview(noise(PAGE, index)))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError):
        swap.store((0, 3), memoryview(noise(PAGE, 3)))
    monkeypatch.undo()
    swap.store((0, 3), memoryview(noise(PAGE, 3)))
    buffer = memoryview(bytearray(PAGE))
    assert [swap.load_nowait((0, i), buffer) for i in range(4)] == [False] + [True] * 3
    swap.close()


def test_without_tmpfile_it_is_unlinked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    swap = Swap(0, tmp_path)
    swap.store((0, 0), memoryview(noise(PAGE)))
    assert list(tmp_path.iterdir()) == []
    assert load(swap, (0, 0), PAGE) == noise(PAGE)
    swap.close()


def test_overwriting_replaces(tmp_path: Path) -> None:
    for limit in (0, PAGE, 1 << 20):
        swap = Swap(limit, tmp_path)
        for page in (noise(PAGE, 1), text(PAGE, 2), bytes(PAGE), noise(PAGE, 3), b"short"):
            swap.store((0, 0), memoryview(page))
            assert load(swap, (0, 0), len(page)) == page
        assert swap.statistics()["pages"] == 1
        swap.close()


@pytest.mark.parametrize("limit", [0, PAGE])
def test_after_a_failed_overwrite_the_old_page_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    swap = Swap(limit, tmp_path)
    swap.store((0, 0), memoryview(noise(100)))
    swap.store((0, 1), memoryview(noise(PAGE - 100, 1)))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="No space") as caught:
        swap.store((0, 0), memoryview(noise(PAGE, 2)))
    assert not caught.value.permanent
    assert (0, 0) not in swap
    with pytest.raises(StoreError, match="no page"):
        load(swap, (0, 0), PAGE)
    assert load(swap, (0, 1), PAGE - 100) == noise(PAGE - 100, 1)
    monkeypatch.undo()
    swap.store((0, 0), memoryview(noise(PAGE, 2)))
    assert load(swap, (0, 0), PAGE) == noise(PAGE, 2)
    swap.close()


def test_a_failure_in_compression_drops_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = Swap(1 << 20, tmp_path)
    swap.store((0, 0), memoryview(noise(100)))

    def pack(buffer: memoryview) -> Any:
        raise MemoryError

    monkeypatch.setattr(swap._codec, "pack", pack)
    with pytest.raises(MemoryError):
        swap.store((0, 0), memoryview(noise(200)))
    assert (0, 0) not in swap
    assert swap.statistics()["bytes_compressed"] == 0
    swap.close()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "refault-test", tmp_path], check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        swap = Swap(4 * PAGE, tmp_path)
        kept = []
        with pytest.raises(StoreError, match="free some space") as caught:
            for index in range(100):
                swap.store((0, index), memoryview(noise(PAGE, index)))
                kept.append(index)
        assert not caught.value.permanent
        assert len(kept) == 8 + 4
        for index in kept:
            assert load(swap, (0, index), PAGE) == noise(PAGE, index)
        swap.discard((0, 0))
        swap.store((0, 50), memoryview(noise(PAGE, 50)))
        for index in [*kept[1:], 50]:
            assert load(swap, (0, index), PAGE) == noise(PAGE, index)
        assert swap.statistics()["bytes_compressed"] == 4 * PAGE
        swap.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("page", [noise(PAGE), text(PAGE)], ids=["raw", "zstd"])
def test_a_flipped_bit_on_disk_is_found(tmp_path: Path, page: bytes) -> None:
    swap = Swap(0, tmp_path)
    swap.store((0, 0), memoryview(page))
    fd = swap._file._fd
    stored = swap.statistics()["bytes_spilled"]
    for at in (0, stored // 2, stored - 1):
        (byte,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte ^ 4]), at)
        with pytest.raises(StoreError, match="not what was written") as caught:
            load(swap, (0, 0), PAGE)
        assert caught.value.permanent
        os.pwrite(fd, bytes([byte]), at)
        assert load(swap, (0, 0), PAGE) == page
    os.ftruncate(fd, 100)
    with pytest.raises(StoreError, match="not what was written"):
        load(swap, (0, 0), PAGE)
    swap.close()


def test_a_read_error_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = Swap(0, tmp_path)
    swap.store((0, 0), memoryview(noise(PAGE)))

    def preadv(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(StoreError, match=str(tmp_path)) as caught:
        load(swap, (0, 0), PAGE)
    assert not caught.value.permanent
    monkeypatch.undo()
    assert load(swap, (0, 0), PAGE) == noise(PAGE)
    swap.close()


def test_the_size_must_be_the_one_that_was_stored() -> None:
    swap = Swap(1 << 20)
    for page in (bytes(100), noise(100), text(4096)):
        swap.store((0, 0), memoryview(page))
        for size in (len(page) - 1, len(page) + 1):
            with pytest.raises(StoreError, match="holds"):
                load(swap, (0, 0), size)
            assert not swap.load_nowait((0, 0), memoryview(bytearray(size)))
    swap.close()


def test_discard_all(tmp_path: Path) -> None:
    swap = Swap(10 * PAGE, tmp_path)
    for index in range(600):
        swap.store(("a", index), memoryview(noise(512, index)))
        swap.store(("b", index), memoryview(noise(512, -index)))
    swap.store(("a", "big"), memoryview(noise(9 * PAGE)))
    swap.discard_all("a")
    swap.discard_all("a")
    swap.discard(("a", 1))
    assert ("a", 5) not in swap
    numbers = swap.statistics()
    assert numbers["pages"] == 600
    assert numbers["bytes_compressed"] + numbers["bytes_spilled"] == 600 * 512
    for index in range(600):
        assert load(swap, ("b", index), 512) == noise(512, -index)
    swap.discard_all("b")
    swap.trim()
    assert set(swap.statistics().values()) == {0}
    swap.close()


def test_freed_space_is_used_again(tmp_path: Path) -> None:
    swap = Swap(0, tmp_path)
    for turn in range(20):
        for index in range(8):
            swap.store((0, index), memoryview(noise(PAGE, turn * 8 + index)))
    assert os.fstat(swap._file._fd).st_size <= 9 * PAGE
    swap.close()


def test_the_file_shrinks_and_holes_are_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_TRIM_AT", 4 * PAGE)
    swap = Swap(0, tmp_path)
    for index in range(64):
        swap.store((0, index), memoryview(noise(PAGE, index)))
    for index in range(8, 40):
        swap.discard((0, index))
    before = swap.wasteful
    swap.store((1, 0), memoryview(bytes(PAGE)))
    assert (before, swap.wasteful) == (True, False)
    if swap._file._punches:
        assert swap.statistics()["file_bytes"] <= 33 * PAGE
    for index in range(40, 64):
        swap.discard((0, index))
    swap.trim()
    assert os.fstat(swap._file._fd).st_size == 8 * PAGE
    for index in range(8):
        assert load(swap, (0, index), PAGE) == noise(PAGE, index)
    swap.close()


def test_a_filesystem_that_cannot_punch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_punch", lambda *args: False)
    swap = Swap(0, tmp_path)
    for index in range(8):
        swap.store((0, index), memoryview(noise(PAGE, index)))
    for index in (1, 2, 3, 6, 7):
        swap.discard((0, index))
    swap.trim()
    swap.trim()
    assert os.fstat(swap._file._fd).st_size == 6 * PAGE
    swap.store((0, 9), memoryview(noise(3 * PAGE, 9)))
    assert os.fstat(swap._file._fd).st_size == 6 * PAGE
    for index in (0, 4, 5):
        assert load(swap, (0, index), PAGE) == noise(PAGE, index)
    swap.close()


def test_after_close(tmp_path: Path) -> None:
    swap = Swap(0, tmp_path)
    swap.store((0, 0), memoryview(noise(PAGE)))
    swap.close()
    swap.close()
    for page in (noise(PAGE), b"x"):
        with pytest.raises(StoreError, match="closed"):
            swap.store((0, 0), memoryview(page))
    with pytest.raises(StoreError, match="closed"):
        load(swap, (0, 0), PAGE)
    assert (0, 0) not in swap
    swap.discard((0, 0))
    swap.discard_all(0)
    swap.trim()
    assert set(swap.statistics().values()) == {0}


def test_the_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="swap directory"):
        Swap(0, tmp_path / "nowhere")


@pytest.mark.parametrize("limit", [0, PAGE, 8 * PAGE])
def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Each thread owns its pages; one more looks on and never sees a mixed one."""
    monkeypatch.setattr(spill, "_TRIM_AT", 2 * PAGE)
    monkeypatch.setattr(spill, "_PUNCH_AT", 4096)
    swap = Swap(limit, tmp_path)
    stop = threading.Event()

    def page(owner: int, index: int, turn: int) -> bytes:
        mark = bytes([owner, index, turn % 256])
        seed = hash((owner, index, turn))
        return mark * 8 + noise(100 + seed % 20_000, seed) + mark

    def work(owner: int) -> None:
        rng = random.Random(owner)
        model: dict[int, bytes] = {}
        for turn in range(400):
            index = rng.randrange(12)
            action = rng.random()
            if action < 0.5:
                model[index] = page(owner, index, turn)
                swap.store((owner, index), memoryview(model[index]))
            elif action < 0.6:
                model.pop(index, None)
                swap.discard((owner, index))
            elif action < 0.62:
                model.clear()
                swap.discard_all(owner)
            elif index in model:
                assert load(swap, (owner, index), len(model[index])) == model[index]
            else:
                assert (owner, index) not in swap
            assert swap.statistics()["bytes_compressed"] <= limit
        for index, expected in model.items():
            assert load(swap, (owner, index), len(expected)) == expected

    def trim() -> None:
        while not stop.is_set():
            swap.trim()

    with ThreadPoolExecutor(6) as pool:
        trimming = pool.submit(trim)
        futures = [pool.submit(work, owner) for owner in range(4)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()
        trimming.result()
    for owner in range(4):
        swap.discard_all(owner)
    swap.trim()
    assert set(swap.statistics().values()) == {0}
    assert swap._file._extents.end == swap._file._extents.free == 0
    swap.close()


def test_a_reader_sees_the_old_or_the_new_page(tmp_path: Path) -> None:
    for limit in (0, 3 * PAGE):
        swap = Swap(limit, tmp_path)
        swap.store((0, 0), memoryview(bytes([1]) + noise(PAGE, 1)))
        done = threading.Event()

        def write(swap: Swap = swap, done: threading.Event = done) -> None:
            pages = {turn: bytes([turn]) + noise(PAGE, turn) for turn in range(8)}
            for turn in range(300):
                swap.store((0, 0), memoryview(pages[turn % 8]))
                swap.store((0, 1), memoryview(pages[(turn + 1) % 8]))
                swap.discard((0, 1))
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        pages = {turn: bytes([turn]) + noise(PAGE, turn) for turn in range(8)}
        try:
            while not done.is_set():
                page = load(swap, (0, 0), PAGE + 1)
                assert page == pages[page[0]]
        finally:
            thread.join()
            swap.close()


class SwapMachine(RuleBasedStateMachine):
    """Swap against a dict; disks that fill up at any moment included."""

    keys = st.tuples(st.sampled_from("ab"), st.integers(0, 5))

    @initialize(limit=st.sampled_from([0, 1, 700, 5000, 1 << 20]))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.swap = Swap(limit, tempfile.gettempdir())
        self.model: dict[tuple[str, int], bytes] = {}

    @rule(
        key=keys,
        size=st.one_of(st.integers(0, 40), st.integers(0, 9000)),
        kind=st.sampled_from([noise, text, lambda size, seed: bytes(size)]),
        seed=st.integers(0, 1 << 30),
        disk_is_full=st.integers(0, 5).map(lambda n: not n),
    )
    def store(self, key: Any, size: int, kind: Any, seed: int, disk_is_full: bool) -> None:
        page = kind(size, seed)
        real = os.pwrite
        if disk_is_full:
            os.pwrite = full
        try:
            self.swap.store(key, memoryview(page))
        except StoreError as error:
            assert disk_is_full
            assert not error.permanent
            self.model.pop(key, None)
        else:
            self.model[key] = page
        finally:
            os.pwrite = real

    @rule(key=keys)
    def load(self, key: Any) -> None:
        page = self.model.get(key)
        buffer = bytearray(b"\xee" * (len(page) if page is not None else 10))
        if self.swap.load_nowait(key, memoryview(buffer)):
            assert bytes(buffer) == page
        if page is None:
            with pytest.raises(StoreError):
                self.swap.load(key, memoryview(buffer))
        else:
            self.swap.load(key, memoryview(buffer))
            assert buffer == page

    @rule(key=keys)
    def discard(self, key: Any) -> None:
        self.model.pop(key, None)
        self.swap.discard(key)

    @rule(owner=st.sampled_from("ab"))
    def discard_all(self, owner: str) -> None:
        self.model = {key: page for key, page in self.model.items() if key[0] != owner}
        self.swap.discard_all(owner)

    @rule()
    def trim(self) -> None:
        self.swap.trim()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "swap"):
            return
        numbers = self.swap.statistics()
        assert numbers["pages"] == len(self.model)
        assert numbers["bytes_raw"] == sum(map(len, self.model.values()))
        assert numbers["bytes_compressed"] <= self.limit
        assert numbers["bytes_compressed"] == sum(r.length for r in self.swap._memory)
        extents = self.swap._file._extents
        assert extents.free == sum(size for _, size in extents)
        used = extents.end - extents.free
        assert 0 <= used * 512 - numbers["bytes_spilled"] <= 511 * len(self.model)
        for key in (("a", 0), ("b", 3)):
            assert (key in self.swap) == (key in self.model)

    def teardown(self) -> None:
        if hasattr(self, "swap"):
            for key, page in self.model.items():
                assert load(self.swap, key, len(page)) == page
            self.swap.close()


TestSwapMachine = SwapMachine.TestCase
TestSwapMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_extents_never_overlap_and_always_coalesce() -> None:
    rng = random.Random(1)
    extents = Extents()
    used: dict[int, int] = {}
    for _ in range(5000):
        if used and rng.random() < 0.5:
            start = rng.choice(list(used))
            extents.release(start, used.pop(start))
        else:
            size = rng.randint(1, 40)
            start = extents.allocate(size)
            assert start not in used
            used[start] = size
        parts = sorted([*used.items(), *extents])
        at = 0
        was_free = False
        for start, size in parts:
            assert start == at
            is_free = start not in used
            assert not (is_free and was_free)
            at, was_free = start + size, is_free
        assert at == extents.end
        assert not was_free
        assert extents.free == extents.end - sum(used.values())

"""What an overlay holds, whatever becomes of the process, the machine, or its files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.leftovers import open_files
from helpers.teststores import OnFile
from refault.errors import StoreError, UsageError
from refault.stores import File, Overlay, overlaymap
from refault.stores.overlaymap import BLOCK, BOOT, BOOT_LENGTH
from refault.testing.storecase import StoreCase, random_content

SIZE = 20 * BLOCK + 123
CONTENT = random_content(SIZE)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "overlay"


def another_boot(path: Path) -> None:
    """As if the machine had gone down since the map was written to."""
    with open(f"{path}.map", "r+b") as file:
        file.seek(BOOT)
        file.write(b"x" * BOOT_LENGTH)


def holds(store: Overlay, content: bytes | bytearray) -> None:
    case = StoreCase(store, content)
    case.check(0, SIZE)
    case.close()


@pytest.fixture(autouse=True)
def every_file_is_closed() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def reopened(store: Overlay, base: Path, path: Path) -> Overlay:
    store.close()
    return Overlay(base, path)


def test_base_is_never_written(base: Path, path: Path) -> None:
    case = StoreCase(Overlay(base, path), CONTENT)
    case.write(0, b"x" * SIZE)
    case.store.flush()
    case.check(0, SIZE)
    case.close()
    assert base.read_bytes() == CONTENT


def test_only_changed_blocks_are_in_the_overlay(base: Path, path: Path) -> None:
    store = Overlay(base, path)
    assert store.changed() == []
    store.write_from(3 * BLOCK, memoryview(b"x" * BLOCK))
    store.write_from(7 * BLOCK + 5, memoryview(b"y" * 2 * BLOCK))
    store.write_from(SIZE - 1, memoryview(b"z"))
    assert store.changed() == [
        (3 * BLOCK, 4 * BLOCK),
        (7 * BLOCK, 10 * BLOCK),
        (20 * BLOCK, SIZE),
    ]
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 < SIZE
    store.close()


@pytest.mark.parametrize("window", [1, 3, 8, 8192])
def test_runs_are_those_of_the_blocks(
    base: Path, path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(overlaymap, "WINDOW", window)
    store = Overlay(base, path)
    chance = random.Random(window)
    inside = bytearray(SIZE)
    for _ in range(30):
        first = chance.randrange(21)
        stop = chance.randint(first + 1, min(first + 3, 21))
        part = slice(first * BLOCK, min(stop * BLOCK, SIZE))
        store.write_from(part.start, memoryview(b"x" * (part.stop - part.start)))
        inside[part] = b"x" * (part.stop - part.start)
        offset = chance.randrange(SIZE)
        end = chance.randint(offset + 1, SIZE)
        runs = list(store._map().runs(offset, end - offset))
        assert [runs[0][0], *(stop for _, stop, _ in runs)] == [
            offset,
            *(place for place in range(offset + 1, end) if inside[place] != inside[place - 1]),
            end,
        ]
        assert all(bool(inside[start]) is where for start, _, where in runs)
        store.close()
        if chance.random() < 0.2:
            os.unlink(path)
            os.unlink(f"{path}.map")
            store, inside = Overlay(base, path), bytearray(SIZE)
    store.close()


def test_what_was_flushed_stays(base: Path, path: Path) -> None:
    case = StoreCase(Overlay(base, path), CONTENT)
    case.write(100, b"x" * 10_000)
    case.store.flush()
    again = StoreCase(reopened(case.raw, base, path), case.model)
    another_boot(path)
    again.check(0, SIZE)
    again.close()


def test_what_was_not_flushed_is_all_there_or_all_in_the_base(base: Path, path: Path) -> None:
    """After a power cut the overlay may have the bits and not the bytes: zeros, were it read."""
    case = StoreCase(Overlay(base, path), CONTENT)
    case.write(0, b"x" * BLOCK)
    case.store.flush()
    case.write(5 * BLOCK, b"y" * BLOCK)
    store = reopened(case.raw, base, path)
    StoreCase(store, case.model).check(0, SIZE)
    another_boot(path)
    StoreCase(store, b"x" * BLOCK + CONTENT[BLOCK:]).check(0, SIZE)
    # The first write of the new boot forgets the old bits for good.
    case = StoreCase(reopened(store, base, path), b"x" * BLOCK + CONTENT[BLOCK:])
    case.write(9 * BLOCK + 1, b"z")
    case.check(0, SIZE)
    assert case.raw.changed() == [(0, BLOCK), (9 * BLOCK, 10 * BLOCK)]
    case.close()


def test_a_reader_sees_what_a_writer_writes(base: Path, path: Path) -> None:
    writer, reader = Overlay(base, path), Overlay(base, path)
    case = StoreCase(writer, CONTENT)
    case.write(5000, b"x" * 10_000)
    StoreCase(reader, case.model).check(0, SIZE)
    writer.close()
    reader.close()


def test_there_is_one_writer(base: Path, path: Path) -> None:
    first, second = Overlay(base, path), Overlay(base, path)
    first.write_from(0, memoryview(b"x"))
    with pytest.raises(StoreError, match="another array writes to this overlay") as caught:
        second.write_from(0, memoryview(b"y"))
    assert not caught.value.permanent
    first.close()
    second.write_from(0, memoryview(b"y"))
    second.close()


class KeptUntilFlushed(OnFile):
    """Writes nothing before it is flushed, and loses the rest when its process ends."""

    fails = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.changes: list[tuple[int, bytes]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        for start, data in self.changes:
            if start == offset:
                buffer[: len(data)] = data

    def put(self, offset: int, data: Any) -> None:
        self.changes.append((offset, bytes(data)))

    def flush(self) -> None:
        if self.fails:
            raise OSError("the store is gone")
        for offset, data in self.changes:
            super().put(offset, data)
        self.changes.clear()


def test_a_store_counts_when_it_is_flushed(base: Path, path: Path) -> None:
    """What a store of the user's has taken may be gone with the process."""
    path.write_bytes(bytes(SIZE))
    inner = KeptUntilFlushed(path)
    store = Overlay(base, inner, map=f"{path}.map")
    case = StoreCase(store, CONTENT)
    case.write(BLOCK, b"x" * BLOCK)
    case.check(BLOCK, BLOCK)
    holds(Overlay(base, OnFile(path), map=f"{path}.map"), CONTENT)
    inner.fails = True
    with pytest.raises(StoreError, match="the store is gone"):
        case.store.flush()
    holds(Overlay(base, OnFile(path), map=f"{path}.map"), CONTENT)
    inner.fails = False
    case.store.flush()
    holds(Overlay(base, OnFile(path), map=f"{path}.map"), case.model)
    case.close()


def test_a_store_is_flushed_when_it_is_closed(base: Path, path: Path) -> None:
    path.write_bytes(bytes(SIZE))
    case = StoreCase(Overlay(base, KeptUntilFlushed(path), map=f"{path}.map"), CONTENT)
    assert case.raw.buffered
    case.write(BLOCK, b"x" * BLOCK)
    case.close()
    holds(Overlay(base, OnFile(path), map=f"{path}.map"), case.model)


def test_what_the_base_says_is_passed_on_but_for_its_version(base: Path, path: Path) -> None:
    inner = OnFile(base)
    inner.parallel = 16  # type: ignore[attr-defined]
    inner.version = "seven"  # type: ignore[attr-defined]
    store = Overlay(inner, path)
    assert (store.name, store.parallel, store.version) == (str(base), 16, None)
    assert not store.buffered
    store.close()


def test_what_is_written_during_a_flush_is_not_flushed(
    base: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Overlay(base, path)
    store.write_from(0, memoryview(b"x" * BLOCK))
    flush = store._overlay.flush

    def write_meanwhile() -> None:
        flush()
        store.write_from(5 * BLOCK, memoryview(b"y" * BLOCK))

    monkeypatch.setattr(store._overlay, "flush", write_meanwhile)
    store.flush()
    another_boot(path)
    holds(Overlay(base, path), b"x" * BLOCK + CONTENT[BLOCK:])
    store.close()


def test_a_write_that_fails_changes_nothing_elsewhere(base: Path, path: Path) -> None:
    path.write_bytes(bytes(SIZE))

    class Refusing(OnFile):
        def put(self, offset: int, data: Any) -> None:
            raise OSError("no room")

    store = Overlay(base, Refusing(path), map=f"{path}.map")
    case = StoreCase(store, CONTENT)
    for offset, length in ((0, BLOCK), (10, 10), (100, 3 * BLOCK)):
        with pytest.raises(StoreError, match="no room"):
            case.store.write_from(offset, memoryview(b"x" * length))
    assert store.changed() == []
    case.check(0, SIZE)
    case.close()


def test_base_that_fails_fails_the_read_and_the_copy(base: Path, path: Path) -> None:
    os.truncate(base, SIZE)
    store = Overlay(base, path)
    os.truncate(base, 5 * BLOCK)
    with pytest.raises(StoreError, match="shorter than"):
        store.read_into(6 * BLOCK, memoryview(bytearray(10)))
    with pytest.raises(StoreError, match="shorter than"):
        store.write_from(6 * BLOCK + 1, memoryview(b"x"))
    assert store.changed() == []
    store.close()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda base, path: path.unlink(), UsageError, "is gone, and its map"),
        (lambda base, path: Path(f"{path}.map").unlink(), UsageError, "is no overlay"),
        (lambda base, path: os.truncate(f"{path}.map", 5000), StoreError, "another base"),
        (lambda base, path: os.truncate(f"{path}.map", 50), StoreError, "damaged"),
        (lambda base, path: base.write_bytes(CONTENT[:-1]), StoreError, "another base"),
        (lambda base, path: os.utime(base, (1, 1)), StoreError, "another base"),
    ],
)
def test_files_that_do_not_belong_together(
    base: Path, path: Path, spoil: Any, error: type[Exception], message: str
) -> None:
    store = Overlay(base, path)
    store.write_from(0, memoryview(b"x" * BLOCK))
    store.flush()
    store.close()
    spoil(base, path)
    with pytest.raises(error, match=message):
        Overlay(base, path)


def test_damaged_header(base: Path, path: Path) -> None:
    Overlay(base, path).close()
    whole = Path(f"{path}.map").read_bytes()
    end = whole.index(b"\n")
    for place in range(0, end, 3):
        spoilt = bytearray(whole)
        spoilt[place] ^= 4
        Path(f"{path}.map").write_bytes(spoilt)
        with pytest.raises(StoreError, match="damaged"):
            Overlay(base, path)


def test_overlays_that_are_none(base: Path, path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a store; give map"):
        Overlay(base, OnFile(base))
    with pytest.raises(UsageError, match="cannot be written"):
        Overlay(base, File(base), map=tmp_path / "map")
    path.write_bytes(b"short")
    with pytest.raises(UsageError, match="is shorter than"):
        Overlay(base, OnFile(path), map=tmp_path / "map")
    with pytest.raises(UsageError, match="is no overlay"):
        Overlay(base, path)
    with pytest.raises(FileNotFoundError):
        Overlay(base, tmp_path / "nowhere" / "overlay")


def test_interrupted_creation_is_taken_up(base: Path, path: Path) -> None:
    with open(path, "xb") as file:
        file.truncate(SIZE)
    holds(Overlay(base, path), CONTENT)


WRITER = """
import random, sys
from refault.stores import Overlay
from refault.testing.storecase import random_content

base, path, seed = sys.argv[1:]
store = Overlay(base, path)
chance = random.Random(seed)
while True:
    offset = chance.randrange(store.size)
    length = min(chance.choice((1, 100, 4096, 9000)), store.size - offset)
    data = random_content(length, chance.randrange(1 << 30))
    print("begin", offset, length, data.hex(), flush=True)
    store.write_from(offset, memoryview(data))
    print("end", flush=True)
    if chance.random() < 0.2:
        store.flush()
"""


def test_kill_at_any_moment(base: Path, path: Path) -> None:
    """Every write that returned is there; the one that was under way, byte by byte or not."""
    chance = random.Random(11)
    model = bytearray(CONTENT)
    Overlay(base, path).close()
    finished = 0
    for seed in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(base), str(path), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        # Killed between two bytes of what it says, or in the middle of what it does.
        said = [child.stdout.readline() for _ in range(chance.randrange(1, 60))]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
        begun = [line.split()[1:] for line in said if line.startswith("begin") and line[-1] == "\n"]
        ended = sum(line == "end\n" for line in said)
        assert len(begun) - 1 <= ended <= len(begun)
        finished += ended
        writes = [(int(offset), bytes.fromhex(data)) for offset, _, data in begun]
        for offset, data in writes[:ended]:
            model[offset : offset + len(data)] = data
        store = Overlay(base, path)
        found = bytearray(SIZE)
        store.read_into(0, memoryview(found))
        for offset, data in writes[ended:]:
            for place, new in enumerate(data, offset):
                assert found[place] in (new, model[place])
                model[place] = found[place]
        assert found == model
        store.close()
    assert finished > 100

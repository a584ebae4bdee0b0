from __future__ import annotations

import errno
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.leftovers import open_files
from refault.errors import StoreError, UsageError
from refault.stores.base import NowaitStore, WritableStore
from refault.stores.file import FileStore, in_memory

SIZE = 300_000
DATA = bytes((i * 13 + i // 251) % 256 for i in range(SIZE))


@pytest.fixture(params=["disk", "tmpfs"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm is not there")
    path = Path("/dev/shm") / f"refault-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


@pytest.fixture
def path(directory: Path) -> Path:
    file = directory / "data.bin"
    file.write_bytes(DATA)
    return file


def opened(path: Path, writable: bool = False, size: int = SIZE) -> FileStore:
    return FileStore(
        os.open(path, os.O_RDWR if writable else os.O_RDONLY), str(path), size, writable
    )


def test_reads_what_is_there(path: Path) -> None:
    store = opened(path)
    assert isinstance(store, NowaitStore)
    assert isinstance(store, WritableStore)
    assert (store.name, store.size) == (str(path), SIZE)
    for offset, length in ((0, SIZE), (4096, 65536), (SIZE - 1, 1), (SIZE, 0)):
        buffer = bytearray(length)
        store.read_into(offset, memoryview(buffer))
        assert buffer == DATA[offset : offset + length]
    store.close()


def test_reads_on_after_a_short_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(path)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, bs, at: preadv(fd, [bs[0][:1000]], at))
    buffer = bytearray(10_500)
    store.read_into(7, memoryview(buffer))
    assert buffer == DATA[7:10_507]
    store.close()


def test_read_nowait_is_all_or_nothing(path: Path) -> None:
    store = opened(path)
    buffer = bytearray(8192)
    store.read_into(0, memoryview(buffer))
    buffer = bytearray(8192)
    if store.read_nowait(0, memoryview(buffer)) or in_memory(store.key[0]):
        assert buffer == DATA[:8192]
    else:
        assert not store._nowait, "in the page cache, and not given"
    assert not store.read_nowait(SIZE - 100, memoryview(buffer))
    os.truncate(path, 4096 + 100)
    assert not store.read_nowait(0, memoryview(buffer))
    assert not store.read_nowait(65536, memoryview(buffer))
    store.close()
    assert not store.read_nowait(0, memoryview(buffer))


@pytest.mark.parametrize(
    ("code", "again"), [(errno.EAGAIN, True), (errno.EOPNOTSUPP, False), (errno.EIO, True)]
)
def test_read_nowait_remembers_that_it_is_not_supported(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, again: bool
) -> None:
    store = opened(path)
    calls = []
    monkeypatch.setattr("refault.stores.file.in_memory", lambda device: False)

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        calls.append(flags)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", preadv)
    for _ in range(3):
        assert store.read_nowait(0, memoryview(bytearray(10))) is False
    assert calls == [os.RWF_NOWAIT] * (3 if again else 1)
    store.close()


def test_a_file_in_memory_is_read_at_once(path: Path) -> None:
    """Where nothing is ever waited for, RWF_NOWAIT is not needed."""
    store = opened(path)
    if not in_memory(store.key[0]):
        store.close()
        pytest.skip("a disk")
    for offset in (0, 4096, SIZE - 4096):
        buffer = bytearray(4096)
        assert store.read_nowait(offset, memoryview(buffer))
        assert buffer == DATA[offset : offset + 4096]
    store.close()


PIECE = 2 << 20


@pytest.fixture
def asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FileStore, list[tuple]]]:
    """A store of 100 MiB of which nothing is in the page cache, and what the kernel is asked."""
    os.truncate(path, 100 << 20)
    store = opened(path)
    store.size = 100 << 20
    calls: list[tuple] = []
    monkeypatch.setattr(store, "read_nowait", lambda offset, buffer: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: calls.append(rest))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: calls.append((at,)))
    yield store, calls
    store.close()
    assert store.fileno() == -1, "somebody uses it still"


def test_read_ahead_asks_for_all_and_bounds_what_is_on_its_way(
    asked: tuple[FileStore, list[tuple]],
) -> None:
    store, calls = asked
    start = (20 << 20) + 4096
    store.read_ahead(start, 200 << 20, lambda: True)
    at, waited, on_their_way = start, start, 0
    for call in calls:
        if len(call) == 1:
            waited += PIECE
            assert call == (waited - 1,), "the end of the oldest piece"
            on_their_way -= 1
        else:
            first, length, advice = call
            assert (first, advice) == (at, os.POSIX_FADV_WILLNEED)
            at += length
            on_their_way += 1
        assert on_their_way <= 16
    assert at == store.size
    assert waited > start


def test_read_ahead_ends_when_it_is_not_wanted(asked: tuple[FileStore, list[tuple]]) -> None:
    store, calls = asked
    store.read_ahead(0, store.size, lambda: len(calls) < 5)
    assert len(calls) == 5


def test_read_ahead_passes_over_what_is_there(
    asked: tuple[FileStore, list[tuple]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = asked
    monkeypatch.setattr(store, "read_nowait", lambda offset, buffer: offset < 10 << 20)
    store.read_ahead(0, 14 << 20, lambda: True)
    assert [call[0] for call in calls] == [10 << 20, 12 << 20]


@pytest.mark.parametrize("name", ["posix_fadvise", "preadv"])
def test_read_ahead_tells_no_error(
    asked: tuple[FileStore, list[tuple]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, name, fails)
    store, calls = asked
    store.read_ahead(0, store.size, lambda: True)
    assert len(calls) < 17
    store.close()
    store.read_ahead(0, store.size, lambda: True)
    assert len(calls) < 17


def test_a_truncated_file_is_not_zeros(path: Path) -> None:
    store = opened(path)
    os.truncate(path, 10_000)
    store.read_into(0, memoryview(bytearray(10_000)))
    for offset, at in ((9_000, 10_000), (10_000, 10_000), (200_000, 200_000)):
        with pytest.raises(StoreError) as caught:
            store.read_into(offset, memoryview(bytearray(4096)))
        message = str(caught.value)
        assert caught.value.permanent
        assert str(path) in message
        assert f"offset {at}" in message
        assert f"shorter than the {SIZE} bytes it had when opened" in message
        assert "restore it" in message
    store.close()


def test_read_errors_name_path_offset_and_cause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(path)
    for code, permanent in ((errno.EIO, False), (errno.ESTALE, True)):

        def preadv(*args: object, code: int = code) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(StoreError) as caught:
            store.read_into(4096, memoryview(bytearray(10)))
        assert caught.value.permanent is permanent
        assert isinstance(caught.value.__cause__, OSError)
        for part in (str(path), "offset 4096", os.strerror(code)):
            assert part in str(caught.value)
    monkeypatch.undo()
    store.close()


def test_writes_and_flushes(path: Path) -> None:
    store = opened(path, writable=True)
    store.write_from(100_001, memoryview(b"hello"))
    store.write_from(SIZE - 3, memoryview(b"end"))
    store.flush()
    store.close()
    expected = bytearray(DATA)
    expected[100_001:100_006] = b"hello"
    expected[-3:] = b"end"
    assert path.read_bytes() == expected


def test_writes_on_after_a_short_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(path, writable=True)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:999], at))
    store.write_from(5, memoryview(DATA[:5000]))
    store.close()
    assert path.read_bytes() == DATA[:5] + DATA[:5000] + DATA[5005:]


def test_a_write_never_extends(path: Path) -> None:
    store = opened(path, writable=True)
    with pytest.raises(StoreError, match=f"ends at {SIZE}") as caught:
        store.write_from(SIZE - 4, memoryview(b"hello"))
    assert caught.value.permanent
    os.truncate(path, 10_000)
    for offset in (9_998, 10_000, 20_000):
        with pytest.raises(StoreError, match="shorter than") as caught:
            store.write_from(offset, memoryview(b"hello"))
        assert caught.value.permanent
    store.write_from(9_995, memoryview(b"hello"))
    assert path.read_bytes() == DATA[:9_995] + b"hello"
    store.close()


@pytest.mark.parametrize(
    ("code", "permanent"),
    [
        (errno.ENOSPC, False),
        (errno.EIO, False),
        (errno.EDQUOT, False),
        (errno.EBADF, True),
        (errno.EROFS, True),
        (errno.EPERM, True),
    ],
)
def test_write_errors(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, permanent: bool
) -> None:
    store = opened(path, writable=True)

    def pwrite(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StoreError) as caught:
        store.write_from(4096, memoryview(b"x"))
    assert caught.value.permanent is permanent
    for part in (str(path), "offset 4096", os.strerror(code), "; "):
        assert part in str(caught.value)
    store.close()


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "refault-test", tmp_path], check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = tmp_path / "sparse.bin"
        other = tmp_path / "other.bin"
        other.write_bytes(bytes(128 << 10))
        path.touch()
        os.truncate(path, 1 << 20)
        store = opened(path, writable=True, size=1 << 20)
        with pytest.raises(StoreError, match="free some space") as caught:
            store.write_from(0, memoryview(b"x" * (192 << 10)))
        assert not caught.value.permanent
        other.unlink()
        store.write_from(0, memoryview(b"x" * (192 << 10)))
        store.close()
        assert path.read_bytes()[: 192 << 10] == b"x" * (192 << 10)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_the_file_size_limit_is_told(path: Path) -> None:
    store = opened(path, writable=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match="ulimit") as caught:
            store.write_from(200_000, memoryview(b"x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not caught.value.permanent
    store.close()


def test_a_failed_flush_is_never_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(path, writable=True)

    def fdatasync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(StoreError, match="durable"):
        store.flush()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="durable") as caught:
        store.flush()
    assert caught.value.permanent
    store.close()


def test_read_only_stores_are_not_written(path: Path) -> None:
    store = opened(path)
    with pytest.raises(StoreError, match="reading only") as caught:
        store.write_from(0, memoryview(b"x"))
    assert caught.value.permanent
    store.flush()
    store.close()


def test_adopt_makes_it_writable(path: Path) -> None:
    before = open_files()
    store = opened(path)
    store.adopt(os.open(path, os.O_RDWR), writable=True)
    assert store.writable
    store.write_from(0, memoryview(b"hello"))
    store.adopt(os.open(path, os.O_RDONLY), writable=False)
    store.adopt(os.open(path, os.O_RDWR), writable=True)
    store.write_from(5, memoryview(b"!"))
    assert not os.get_inheritable(store._fd)
    store.close()
    assert path.read_bytes()[:6] == b"hello!"
    assert open_files() == before


def test_adopt_refuses_what_does_not_fit(path: Path, directory: Path) -> None:
    store = opened(path)
    other = directory / "other.bin"
    other.write_bytes(DATA)
    for file, flags, match in (
        (other, os.O_RDWR, "another file"),
        (path, os.O_RDONLY, "O_RDWR"),
        (path, os.O_WRONLY, "O_RDWR"),
        (path, os.O_RDWR | os.O_APPEND, "O_APPEND"),
    ):
        fd = os.open(file, flags)
        with pytest.raises(UsageError, match=match):
            store.adopt(fd, writable=True)
        os.close(fd)  # it is still ours
    assert not store.writable
    store.close()


def test_only_regular_files() -> None:
    with open("/dev/zero", "rb") as file:
        with pytest.raises(UsageError, match="not a regular file"):
            FileStore(file.fileno(), "/dev/zero", 10, False)


def test_the_key_is_the_file(path: Path, directory: Path) -> None:
    link = directory / "link.bin"
    os.link(path, link)
    one, two = opened(path), opened(link)
    status = path.stat()
    assert one.key == two.key == (status.st_dev, status.st_ino)
    one.close()
    two.close()


def test_close_waits_for_nobody_and_pulls_nothing_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    store = opened(path)
    inside, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
        inside.set()
        assert go_on.wait(10)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    buffer = bytearray(4096)
    thread = threading.Thread(target=store.read_into, args=(0, memoryview(buffer)))
    thread.start()
    assert inside.wait(10)
    store.close()
    store.close()
    # The number must not be given to another file yet.
    fd = os.open("/dev/zero", os.O_RDONLY)
    go_on.set()
    thread.join()
    os.close(fd)
    assert buffer == DATA[:4096]
    with pytest.raises(StoreError, match="closed"):
        store.read_into(0, memoryview(buffer))
    assert open_files() == before


def test_threads(path: Path) -> None:
    store = opened(path)
    stop = threading.Event()

    def read(seed: int) -> None:
        for i in range(300):
            offset = (seed * 7919 + i * 4099) % (SIZE - 9000)
            buffer = bytearray(9000)
            store.read_into(offset, memoryview(buffer))
            assert buffer == DATA[offset : offset + 9000]

    def adopt() -> None:
        while not stop.is_set():
            store.writable = False
            store.adopt(os.open(path, os.O_RDWR), writable=True)

    with ThreadPoolExecutor() as pool:
        adopting = pool.submit(adopt)
        reading = [pool.submit(read, seed) for seed in range(3)]
        try:
            for future in reading:
                future.result()
        finally:
            stop.set()
        adopting.result()
    store.close()

"""Files through fsspec: never its caches, never zeros, never two versions."""

from __future__ import annotations

import os
import pathlib
import sys
import threading
import zipfile
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from helpers.child_tools import content
from helpers.object_server import object_server
from refault.errors import StoreError, UsageError
from refault.stores import Fsspec, Policy
from refault.stores.objects import dump_object, load_object

SIZE = 300_000


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "data.bin"
    path.write_bytes(content(0, SIZE))
    return path


class Tricky(LocalFileSystem):  # type: ignore[misc]
    """Does what it is told, before it reads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trick: Any = None

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> Any:
        answer = super().cat_file(path, start=start, end=end, **more)
        return answer if self.trick is None else self.trick(answer)


def read(store: Any, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_any_range_is_read_after_a_journey(path: pathlib.Path) -> None:
    store = load_object(dump_object(Fsspec(LocalFileSystem(), str(path))), [])
    assert store.size == SIZE
    for start, length in ((0, SIZE), (0, 0), (17, 1000), (SIZE - 1, 1)):
        assert read(store, start, length) == content(start, length)
    with pytest.raises(StoreError, match="ends at 300000") as caught:
        read(store, SIZE - 1, 2)
    assert caught.value.permanent


def test_a_member_of_an_archive(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/data.bin", content(0, SIZE))
    url = f"zip://folder/data.bin::{tmp_path}/all.zip"
    store = load_object(dump_object(Fsspec.from_url(url)), [])
    assert store.size == SIZE
    assert read(store, 100_000, 1000) == content(100_000, 1000)


def test_short_answers_are_refused(path: pathlib.Path) -> None:
    fs = Tricky(skip_instance_cache=True)
    store = Fsspec(fs, str(path))
    fs.trick = lambda answer: answer[:-1]
    with pytest.raises(StoreError, match="an answer of 9 bytes was refused") as caught:
        read(store, 5, 10)
    assert not caught.value.permanent


def test_what_hangs_is_left_behind(path: pathlib.Path) -> None:
    fs, go = Tricky(skip_instance_cache=True), threading.Event()
    store = Fsspec(fs, str(path), policy=Policy(timeout=0.05, parallel=1))

    def hang(answer: bytes) -> bytes:
        go.wait(60)
        return answer

    fs.trick = hang
    for says in ("no answer within 0.05 s", "no answer within", "2 earlier requests have not"):
        with pytest.raises(StoreError, match=says) as caught:
            read(store, 5, 10)
        assert not caught.value.permanent
    go.set()


def test_two_versions_are_never_mixed(path: pathlib.Path) -> None:
    store = Fsspec(LocalFileSystem(), str(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match="has changed since it was opened") as caught:
        read(store, 5, 10)
    assert caught.value.permanent
    store = Fsspec(LocalFileSystem(), str(path), check_version=False)
    os.utime(path, ns=(2, 2))
    assert read(store, 5, 10) == content(5, 10)


def test_what_changes_while_it_is_read_is_not_used(path: pathlib.Path) -> None:
    fs = Tricky(skip_instance_cache=True)
    store = Fsspec(fs, str(path))

    def change(answer: bytes) -> bytes:
        path.write_bytes(bytes(SIZE))
        os.utime(path, ns=(1, 1))
        return answer

    fs.trick = change
    with pytest.raises(StoreError, match="has changed"):
        read(store, 5, 10)


def test_what_is_gone_is_permanent(path: pathlib.Path) -> None:
    store = Fsspec(LocalFileSystem(), str(path))
    path.unlink()
    with pytest.raises(StoreError, match=r"file://.*data.bin.*FileNotFoundError") as caught:
        read(store, 5, 10)
    assert caught.value.permanent
    with pytest.raises(StoreError, match="cannot open it: FileNotFoundError"):
        Fsspec(LocalFileSystem(), str(path))
    with pytest.raises(StoreError, match="it is a folder"):
        Fsspec(LocalFileSystem(), str(path.parent))


def test_errors_of_http_are_told_apart() -> None:
    with object_server(content(0, SIZE)) as server:
        store = Fsspec(fsspec.filesystem("http", skip_instance_cache=True), server.url)
        assert read(store, 100_000, 1000) == content(100_000, 1000)
        for status, permanent in ((403, True), (503, False)):
            server.status = status
            with pytest.raises(StoreError) as caught:
                read(store, 100_000, 1000)
            assert caught.value.permanent is permanent, caught.value
        server.status, server.etag = 200, '"two"'
        with pytest.raises(StoreError, match="has changed since it was opened"):
            read(store, 100_000, 1000)


def test_caches_and_memory_are_refused(path: pathlib.Path) -> None:
    for url in (f"blockcache::file://{path}", f"simplecache::file://{path}"):
        with pytest.raises(UsageError, match="is a cache of fsspec"):
            Fsspec.from_url(url)
    with pytest.raises(UsageError, match="memory of this process alone"):
        Fsspec.from_url("memory://x")
    with pytest.raises(UsageError, match="no fsspec filesystem"):
        Fsspec(object(), "x")


def test_what_fsspec_does_not_know_is_told() -> None:
    with pytest.raises(UsageError, match=r"nonsense://.*not known"):
        Fsspec.from_url("nonsense://x")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"sftp://: .*paramiko"):
        Fsspec.from_url("sftp://localhost/x", host="localhost")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"pip install 'refault\[fsspec\]'"):
        Fsspec.from_url("zip://x::y.zip")


def test_a_presigned_url_is_not_told() -> None:
    with object_server(content(0, SIZE)) as server:
        store = Fsspec(
            fsspec.filesystem("http", skip_instance_cache=True), server.url + "?s=Geheim"
        )
        assert store.name == server.url
        server.status = 404
        with pytest.raises(StoreError) as caught:
            read(store, 5, 10)
        assert "Geheim" not in str(caught.value) + repr(store)

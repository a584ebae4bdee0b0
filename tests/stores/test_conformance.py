"""Every store of ours against the suite that users have, and the suite against broken stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.teststores import BROKEN, OnFile
from refault.errors import UsageError
from refault.stores import DiskCache, File, Overlay
from refault.stores.file import FileStore
from refault.stores.fill import FillStore
from refault.testing import (
    FlakyStore,
    SlowStore,
    StoreStateMachine,
    StoreTests,
    TornStore,
    WritableStoreTests,
    run_store_machine,
)
from refault.testing.storecase import random_content


def content_file(content: bytes, folder: Path) -> Path:
    path = folder / "content"
    path.write_bytes(content)
    return path


class TestOnFile(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        return OnFile(content_file(content, folder))


class TestFile(WritableStoreTests):
    """Made from a descriptor, so that it is a path that travels."""

    def make_store(self, content: bytes, folder: Path) -> Any:
        return self.opened(content_file(content, folder))

    def opened(self, path: Path) -> FileStore:
        return FileStore(os.open(path, os.O_RDWR), str(path), path.stat().st_size, True)

    def open_as(self, store: FileStore) -> str:
        return store.name

    def copy_store(self, store: FileStore) -> FileStore:
        return self.opened(Path(store.name))


class TestFill(StoreTests):
    size = 80_001  # The pattern travels, and a pickle has a limit.

    def make_store(self, content: bytes, folder: Path) -> Any:
        return FillStore(len(content), content)


class TestFileByPath(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        return File(content_file(content, folder), writable=True)


class TestFileThatIsOnlyRead(StoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        return File(content_file(content, folder))


class TestOverlayOnAFile(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        return Overlay(content_file(content, folder), folder / "overlay")


class TestOverlayOnAStore(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        overlay = folder / "overlay"
        overlay.write_bytes(bytes(len(content)))
        base = content_file(content, folder)
        return Overlay(OnFile(base), OnFile(overlay), map=folder / "map")


class TestDiskCache(StoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        base = File(content_file(content, folder))
        return DiskCache(base, folder / "cache", block="16KiB", size="200KiB")


class TestOverlayOnADiskCache(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        cache = DiskCache(File(content_file(content, folder)), folder / "cache")
        return Overlay(cache, folder / "overlay")


class TestFlakyStoreThatNeverFails(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        return FlakyStore(OnFile(content_file(content, folder)), 0)


class TestSlowStore(WritableStoreTests):
    examples = 20

    def make_store(self, content: bytes, folder: Path) -> Any:
        return SlowStore(OnFile(content_file(content, folder)), 0.0001)


class TestTornStoreThatIsNeverTorn(WritableStoreTests):
    def make_store(self, content: bytes, folder: Path) -> Any:
        return TornStore(OnFile(content_file(content, folder)), 0)


class Suite(WritableStoreTests):
    """Not collected: it is run by the tests below."""

    shrink = False

    def __init__(self, kind: type[OnFile]) -> None:
        self.kind = kind

    def make_store(self, content: bytes, folder: Path) -> Any:
        return self.kind(content_file(content, folder))


def test_the_machine_can_be_run_alone(tmp_path: Path) -> None:
    content = random_content(50_000)
    path = content_file(content, tmp_path)
    run_store_machine(lambda: StoreStateMachine(File(path), content), examples=3)
    with pytest.raises(AssertionError, match="are wrong"):
        run_store_machine(
            lambda: StoreStateMachine(File(path), content[::-1]), examples=3, shrink=False
        )


@pytest.mark.parametrize(("kind", "test"), BROKEN)
def test_broken_store_is_found(kind: type[OnFile], test: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, OSError, UsageError)):
        getattr(Suite(kind), test)(tmp_path)


def test_each_test_of_the_suite_finds_something() -> None:
    tests = {name for name in dir(WritableStoreTests) if name.startswith("test_")}
    assert {test for _, test in BROKEN} == tests

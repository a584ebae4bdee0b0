"""Stores behind a network against the suite that all stores pass."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.object_server import object_server
from helpers.s3_server import S3
from refault.stores import Fsspec, Obstore
from refault.testing import StoreTests, WritableStoreTests


class TestObject(WritableStoreTests):
    """A copy of the store is opened anew: it belongs to one version of the object."""

    examples = 20

    @pytest.fixture(autouse=True)
    def server(self, s3: S3) -> None:
        self.s3 = s3

    def make_store(self, content: bytes, folder: Path) -> Any:
        return Obstore.from_url(self.s3.put(str(folder).strip("/"), content), **self.s3.options)

    def copy_store(self, store: Any) -> Any:
        return Obstore.from_url(store.name, **self.s3.options)


class TestObjectBehindHttp(StoreTests):
    examples = 20

    @pytest.fixture(autouse=True)
    def servers(self) -> Iterator[None]:
        with contextlib.ExitStack() as self.stack:
            yield

    def make_store(self, content: bytes, folder: Path) -> Any:
        server = self.stack.enter_context(object_server(content))
        return Obstore.from_url(server.url.replace(".npy", ".bin"))


class TestMemberOfAnArchive(StoreTests):
    examples = 20

    def make_store(self, content: bytes, folder: Path) -> Any:
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            archive.writestr("content", content)
        return Fsspec.from_url(f"zip://content::{folder}/all.zip")

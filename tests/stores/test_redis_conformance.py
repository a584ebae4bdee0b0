"""The suite that all stores pass, on Redis: one server, and a cluster."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from helpers import servers
from refault.stores import Redis
from refault.testing import WritableStoreTests

NUMBERS = itertools.count()


def made(url: str, content: bytes) -> Redis:
    store = Redis(url, f"array-{next(NUMBERS)}", size=len(content), block=16384)
    store.write_from(0, memoryview(content))
    return store


class TestOneServer(WritableStoreTests):
    examples = 50

    @pytest.fixture(autouse=True)
    def take(self, server: servers.RedisServer) -> None:
        self.url = server.url

    def make_store(self, content: bytes, folder: Path) -> Redis:
        return made(self.url, content)


class TestCluster(WritableStoreTests):
    examples = 10
    shrink = False

    @pytest.fixture(autouse=True)
    def take(self, cluster: list[servers.RedisServer]) -> None:
        self.url = cluster[0].url

    def make_store(self, content: bytes, folder: Path) -> Redis:
        return made(self.url, content)

"""Servers for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import servers


@pytest.fixture(scope="module")
def server() -> Iterator[servers.RedisServer]:
    with servers.redis() as one:
        yield one


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[servers.RedisServer]]:
    with servers.redis_cluster() as nodes:
        yield nodes

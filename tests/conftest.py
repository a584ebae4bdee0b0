"""Fixtures of all tests; the helpers themselves are in `helpers`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.leftovers import leftovers
from helpers.processes import become_subreaper
from helpers.s3_server import S3, s3_server


def pytest_configure() -> None:
    become_subreaper()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no process, memfd, mapping, temporary file or descriptor behind."""
    with leftovers():
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """S3 with a bucket; started once."""
    with s3_server() as server:
        yield server

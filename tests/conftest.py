"""Fixtures of all tests; the helpers themselves are in `helpers`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.leftovers import leftovers
from helpers.processes import become_subreaper


def pytest_configure() -> None:
    become_subreaper()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """The test leaves no process, memfd, mapping, temporary file or descriptor behind."""
    with leftovers():
        yield

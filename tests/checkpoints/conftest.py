"""Checkpoints in a folder, of memory that needs no userfaultfd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import icechunk
import pytest

import refault
from helpers.fake_snapshots import FakeMemory


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMemory]:
    found = FakeMemory(monkeypatch)
    yield found
    assert not found.snapshots, "a snapshot was not given back"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def ck(place: Path, memory: FakeMemory) -> Iterator[refault.Checkpoints]:
    with refault.Checkpoints(place) as found:
        yield found
    assert not memory.marks, "a mark was not given back"


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    """Tests import icechunk before refault does, which then leaves its log alone."""
    icechunk.set_logs_filter("error")

"""Where working sets are kept; what they do is in `tests/kernel/test_working_sets.py`."""

from __future__ import annotations

import os
import pathlib

import pytest

from helpers.child_tools import Plain
from refault.client.workingsets import place
from refault.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = str(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    return folder


def test_nowhere_unless_asked_for(tmp_path: pathlib.Path) -> None:
    assert place(None, tmp_path / "data.npy") is None


def test_where_it_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("it", "data.npy") == str(tmp_path / "it")
    assert place(pathlib.Path("it"), Plain(5)) == str(tmp_path / "it")
    with pytest.raises(UsageError, match="is a folder"):
        place(tmp_path, "data.npy")
    with pytest.raises(UsageError, match="is no path"):
        place(3, "data.npy")  # type: ignore[arg-type]


def test_beside_the_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data.npy")
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path / "data.npy.workingset")
    for name in ("data.npy", tmp_path / "data.npy", "link", f"file://{tmp_path}/data.npy"):
        assert place("auto", name) == wanted


def test_one_for_each_array_of_a_file(tmp_path: pathlib.Path) -> None:
    assert place("auto", tmp_path / "it.h5", "a/b") == str(tmp_path / "it.h5.a-b.workingset")


def test_an_object_that_is_no_store_needs_a_path() -> None:
    with pytest.raises(UsageError, match="needs a path, a URL or a store"):
        place("auto", object())


def test_in_the_cache(tmp_path: pathlib.Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = [
        place("auto", source)
        for source in (
            tmp_path / "data.npy",
            tmp_path / "other" / "data.npy",
            "s3://bucket/data.npy",
            "s3://other/data.npy",
            "zip://a.npy::https://host/b.zip",
            "s3://bucket/group.zarr",
            Plain(5),
            Plain(6),
        )
    ]
    assert len(set(found)) == len(found)
    for path in found:
        assert path is not None
        assert path.startswith(f"{cache}/refault/") and path.endswith(".workingset")
        assert os.path.basename(path).count(os.sep) == 0
    assert place("auto", "s3://bucket/group.zarr", "a") not in found
    assert place("auto", Plain(5)) == found[6]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = place("auto", Plain(5))
    assert path is not None and path.startswith(f"{tmp_path}/.cache/refault/plain-")

"""Where working sets are kept; what they do is in `tests/kernel/test_working_sets.py`."""

from __future__ import annotations

import os
import pathlib

import blosc2
import h5py
import numpy as np
import pytest
import zarr

from helpers.child_tools import Plain
from refault.client.workingsets import place
from refault.errors import UsageError
from refault.stores.recorded import Recorded, encode


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
    for key in ("a/b", "/a/b"):
        assert place("auto", tmp_path / "it.h5", key) == str(tmp_path / "it.h5.a-b.workingset")


def test_objects_of_libraries_have_the_place_of_their_path(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "it.h5", "w") as file:
        dataset = file.create_dataset("a/b", data=np.arange(3))
        for thing, key in ((dataset, None), (file, "a/b"), (file["a"], "b")):
            assert place("auto", thing, key) == str(tmp_path / "it.h5.a-b.workingset")
    with pytest.raises(UsageError, match="needs what has a path"):
        place("auto", dataset)
    array = blosc2.asarray(np.arange(3), urlpath=str(tmp_path / "it.b2nd"), mode="w")
    assert place("auto", array) == str(tmp_path / "it.b2nd.workingset")
    group = zarr.create_group(tmp_path / "it.zarr")
    made = group.create_array("g/a", shape=(3,), dtype="f4")
    # Never within: whatever is not of Zarr there is a warning of Zarr's.
    for thing, key in ((made, None), (group, "g/a"), (group["g"], "a")):
        assert place("auto", thing, key) == str(tmp_path / "it.zarr.g-a.workingset")
    for path in ("it.zarr/g/a", "it.zarr/g/a/"):
        assert place("auto", f"{tmp_path}/{path}") == str(tmp_path / "it.zarr.g-a.workingset")
    for thing in (zarr.array(np.arange(3)), blosc2.asarray(np.arange(3))):
        with pytest.raises(UsageError, match="needs what has a path"):
            place("auto", thing)


def test_what_is_no_working_set_is_not_replaced(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"\x93NUMPY and so on")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "data.npy.workingset").write_text("notes of mine")
    for working_set in (path, tmp_path / "fifo", "auto"):
        with pytest.raises(UsageError, match=r"is something else.*give the path of another"):
            place(working_set, tmp_path / "data.npy")
    for fine in (b"", encode(Recorded("", 5, 4096, []))):
        path.write_bytes(fine)
        assert place(path, tmp_path / "data.npy") == str(path)


def test_an_object_that_is_no_store_needs_a_path() -> None:
    with pytest.raises(UsageError, match="needs what has a path or a URL, or a store"):
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

"""What cannot be paged is refused when it is opened, with a word on what to do."""

from __future__ import annotations

import pathlib
import re
import sys
import warnings
from typing import Any

import blosc2
import h5py
import numpy as np
import obstore
import pytest
import zarr

import refault
from helpers.chunked import numbers, save


def test_arrays_in_the_memory_of_this_process() -> None:
    array = zarr.create_array({}, shape=(3,), dtype="f4")
    with pytest.raises(refault.UsageError, match=r"use array\[:\], or save it"):
        refault.open(array)
    for store in (
        zarr.storage.LoggingStore(zarr.storage.MemoryStore()),
        zarr.storage.ObjectStore(obstore.store.MemoryStore()),
        zarr.storage.FsspecStore.from_url(
            "memory://refault", storage_options={"asynchronous": True}
        ),
    ):
        array = zarr.create_array(store, shape=(3,), dtype="f4")
        with pytest.raises(refault.UsageError, match=r"use array\[:\], or save it"):
            refault.open(array)
    with pytest.raises(refault.UsageError, match=r"save it with array.save\(path\)"):
        refault.open(blosc2.asarray(np.arange(5)))
    with h5py.File("nowhere.h5", "w", driver="core", backing_store=False) as file:
        file["x"] = np.arange(5)
        with pytest.raises(refault.UsageError, match="save the file to a disk"):
            refault.open(file["x"])


def test_elements_of_no_fixed_size(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["text"] = ["a", "bc"]
        file.create_dataset("lists", 2, h5py.vlen_dtype("i4"))
        file["nothing"] = h5py.Empty("f4")
        file.create_dataset("pairs", 3, np.dtype(("i4", (2,))))
    for key, match in (
        ("text", "fixed length"),
        ("lists", "fixed length"),
        ("nothing", "without even a shape"),
        ("pairs", "with one axis more"),
    ):
        with pytest.raises(refault.UsageError, match=match):
            refault.open(tmp_path / "x.h5", key=key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(tmp_path / "x.zarr", shape=(3,), dtype=str)
    with pytest.raises(refault.UsageError, match="fixed length"):
        refault.open(array)


def test_hdf5_files_that_are_in_use(tmp_path: pathlib.Path) -> None:
    path, key = save("hdf5", tmp_path, numbers((9, 9), "<i4"), (3, 3))
    with h5py.File(path, "r+") as file:
        for thing in (file[key], path):
            with pytest.raises(refault.UsageError, match="is open for writing in this process"):
                refault.open(thing, key=None if thing is not path else key)
    with h5py.File(path, "r") as file:
        dataset = file["some/numbers"]
    with pytest.raises(refault.UsageError, match="its file has been closed; give its path"):
        refault.open(dataset)
    with h5py.File(path, "r") as file:
        with pytest.raises(refault.UsageError, match=r"refault.open\(.*, mode='r\+', key="):
            refault.open(file[key], "r+")


def test_keys(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = file["g/b"] = np.arange(3)
        with pytest.raises(refault.UsageError, match="no array 'c'; it has 'a', 'g/b'"):
            refault.open(file, key="c")
    for key in (None, "c", "g"):
        with pytest.raises(refault.UsageError, match="it has 'a', 'g/b'"):
            refault.open(tmp_path / "x.h5", key=key)
    group = zarr.create_group(tmp_path / "x.zarr")
    for name in ("a", "g/b"):
        group.create_array(name, shape=(3,), dtype="f4")
    for thing in (group, tmp_path / "x.zarr"):
        for key in (None, "c", "g"):
            with pytest.raises(refault.UsageError, match=r"it has ('a', 'g/b'|'g/b', 'a')"):
                refault.open(thing, key=key)
    for thing in (group["a"], tmp_path / "x.zarr" / "a"):
        with pytest.raises(refault.UsageError, match="leave key out"):
            refault.open(thing, key="a")
    with pytest.raises(refault.UsageError, match="key=3 is no name"):
        refault.open(tmp_path / "x.zarr", key=3)  # type: ignore[arg-type]
    (tmp_path / "raw").write_bytes(b"123")
    with pytest.raises(refault.UsageError, match="cannot be opened as HDF5"):
        refault.open(tmp_path / "raw", key="a")
    with pytest.raises(refault.UsageError, match="leave key and chunk_cache out"):
        refault.open(tmp_path / "raw", chunk_cache="1MiB")


def test_what_contradicts_the_array(tmp_path: pathlib.Path) -> None:
    for kind in ("zarr3", "hdf5", "hdf5-plain", "blosc2"):
        folder = tmp_path / kind
        folder.mkdir()
        path, key = save(kind, folder, numbers((9, 9), "<i4"), (3, 3))
        with pytest.raises(refault.UsageError, match=r"dtype=.* leave dtype out"):
            refault.open(path, key=key, dtype="f4")
        with pytest.raises(refault.UsageError, match=r"shape=.* leave shape out"):
            refault.open(path, key=key, shape=(81,))
        with pytest.raises(refault.UsageError, match=r"make it with its own library.*'r\+'"):
            refault.open(path, "w+", key=key, shape=(9, 9))


def test_paths_that_lead_nowhere(tmp_path: pathlib.Path) -> None:
    for name in ("x.h5", "x.b2nd"):
        with pytest.raises(FileNotFoundError, match=re.escape(name)):
            refault.open(tmp_path / name)
    with pytest.raises(refault.UsageError, match="cannot be opened as Zarr"):
        refault.open(tmp_path / "x.zarr")
    for name in ("y.h5", "y.b2nd"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
        with pytest.raises(refault.UsageError, match="cannot be opened as"):
            refault.open(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "extra"), [("x.zarr", "zarr"), ("x.h5", "hdf5"), ("x.b2nd", "blosc2")]
)
def test_libraries_that_are_not_installed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    for library in ("zarr", "h5py", "blosc2"):
        monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(refault.UsageError, match=re.escape(f"pip install 'refault[{extra}]'")):
        refault.open(tmp_path / name)


def test_chunks_that_lie_across_need_a_cache(tmp_path: pathlib.Path) -> None:
    array: Any = zarr.create_array(
        tmp_path / "x.zarr", shape=(1000, 1000), dtype="f8", chunks=(100, 100)
    )
    with pytest.warns(UserWarning, match="needs chunk_cache='781.2 KiB'"):
        with pytest.raises(refault.UsageError, match="but the store says"):
            refault.open(array, chunk_cache="100KiB", dtype="f4")

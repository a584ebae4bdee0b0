"""The same array in every kind of store, and the comparison of each with numpy's."""

from __future__ import annotations

import pathlib
import shutil
import time
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from helpers.chunked import save

__all__ = ["CHUNKED", "COLUMNS", "PLACES", "WRITABLE", "compare", "opened", "prepare"]

COLUMNS = 1024
"""Of float32: rows of 4 KiB."""

CHUNKED = ("zarr2", "zarr3", "shards", "hdf5", "blosc2")
PLACES = (
    "file",
    "class",
    "http",
    "s3",
    "fsspec",
    *CHUNKED,
    "redis",
    "safetensors",
    "overlay",
    "diskcache",
    "zip",
)
WRITABLE = {"file", "class", "s3", *CHUNKED, "redis", "safetensors", "overlay"}


def prepare(folder: pathlib.Path, rows: int) -> npt.NDArray[np.float32]:
    """Make ``x.npy`` in a folder, with no two rows alike."""
    array = np.random.default_rng(rows).standard_normal((rows, COLUMNS), "f4")
    np.save(folder / "x.npy", array)
    return array


def make(kind: str, folder: pathlib.Path, servers: dict[str, Any], array: Any) -> None:
    """Have the array where such a store finds it."""
    place = folder / kind
    place.mkdir()
    if kind in CHUNKED:
        save(kind, place, array, (200, COLUMNS))
    elif kind == "zip":
        with zipfile.ZipFile(place / "all.zip", "w") as archive:
            archive.write(folder / "x.npy", "x.npy")
    elif kind == "redis":
        from refault.stores import Redis

        store = Redis(servers["redis"], "x", size=array.nbytes)
        bytes_ = memoryview(array).cast("B")
        for at in range(0, array.nbytes, 1 << 20):
            store.write_from(at, bytes_[at : at + (1 << 20)])
        store.close()
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"before": np.zeros(3, "f4"), "x": array}, place / "x.safetensors")
    elif kind in ("http", "diskcache"):
        shutil.copy(folder / "x.npy", f"{servers['http_root']}/{kind}.npy")
    elif kind == "s3":
        shutil.copy(folder / "x.npy", f"{servers['s3_root']}/x.npy")
    else:
        shutil.copy(folder / "x.npy", place / "x.npy")


def opened(
    kind: str, folder: pathlib.Path, servers: dict[str, Any], mode: str, resident: int
) -> npt.NDArray[Any]:
    """Open it."""
    import refault
    from helpers.teststores import OnFile
    from refault import stores

    place = folder / kind
    how: dict[str, Any] = {"mode": mode, "resident": resident}
    source: Any = str(place / "x.npy")
    if kind == "class":
        source = OnFile(source)
    elif kind == "http":
        source = f"{servers['http']}/http.npy"
    elif kind == "s3":
        source = "s3://bucket/x.npy"
        how["storage_options"] = servers["s3"]
    elif kind == "fsspec":
        import fsspec  # type: ignore[import-untyped]

        source = stores.Fsspec(fsspec.filesystem("file"), source)
    elif kind == "zip":
        # Each read begins at the beginning of the member.
        policy = stores.Policy(timeout=600, parallel=2)
        source = stores.Fsspec.from_url(f"zip://x.npy::{place}/all.zip", policy=policy)
    elif kind in ("zarr2", "zarr3", "shards"):
        source = str(place / "data.zarr")
    elif kind == "hdf5":
        source, how["key"] = str(place / "data.h5"), "/some/numbers"
    elif kind == "blosc2":
        source = str(place / "data.b2nd")
    elif kind == "redis":
        source = stores.Redis(servers["redis"], "x")
        how |= {"dtype": "f4", "shape": (source.size // 4 // COLUMNS, COLUMNS)}
    elif kind == "safetensors":
        found: npt.NDArray[Any] = refault.load_safetensors(
            place / "x.safetensors", mode=mode, resident=resident
        )["x"]
        return found
    elif kind == "overlay":
        source = stores.Overlay(source, place / "overlay")
    elif kind == "diskcache":
        store = stores.Obstore.from_url(f"{servers['http']}/diskcache.npy")
        source = stores.DiskCache(store, place)
    return refault.open(source, **how)


def compare(kind: str, folder: pathlib.Path, servers: dict[str, Any], resident: int) -> float:
    """See that the array equals numpy's, in order, at random, and after changes; the seconds."""
    import refault

    right: npt.NDArray[Any] = np.load(folder / "x.npy")
    make(kind, folder, servers, right)
    begin = time.monotonic()
    x = opened(kind, folder, servers, "r+" if kind in WRITABLE else "r", resident)
    assert (x.shape, x.dtype) == (right.shape, right.dtype), kind
    draw = np.random.default_rng(1)
    _in_order(kind, x, right)
    _at_random(kind, x, right, draw)
    region = refault.region(x)
    if kind in WRITABLE:
        for number in range(40):
            row = int(draw.integers(len(right)))
            part = np.s_[row : row + 5, draw.integers(COLUMNS) :]
            x[part] = right[part] = number
        _at_random(kind, x, right, draw)
        region.flush()
    seen = region.statistics()
    assert seen.peak_resident <= resident < right.nbytes, (kind, seen)
    assert seen.given_up == 0, (kind, seen)
    if kind in WRITABLE:
        del x
        region.close()
        del region
        _in_order(kind, opened(kind, folder, servers, "r", resident), right)
    return time.monotonic() - begin


def _in_order(kind: str, x: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
    for row in range(0, len(right), 256):
        assert np.array_equal(x[row : row + 256], right[row : row + 256]), (kind, row)


def _at_random(
    kind: str, x: npt.NDArray[Any], right: npt.NDArray[Any], draw: np.random.Generator
) -> None:
    import refault

    for row in draw.integers(0, len(right), 50):
        assert np.array_equal(x[row], right[row]), (kind, row)
    rows = draw.integers(0, len(right), 200)
    assert np.array_equal(refault.take(x, rows, axis=0), right[rows]), kind

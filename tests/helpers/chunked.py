"""Arrays of numpy, saved by each of the libraries that keep arrays in chunks."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "load", "numbers", "save", "saved"]

KINDS = ("zarr2", "zarr3", "shards", "hdf5", "hdf5-plain", "blosc2")


def numbers(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array in which neighbours differ, and nothing is zero."""
    found = np.dtype(dtype)
    if found.kind in "SU":
        count = int(np.prod(shape))
        return np.array([f"s{i % 97}" for i in range(count)], found).reshape(shape)
    if found.names:
        array = np.zeros(shape, found)
        for name in found.names:
            array[name] = numbers(shape, found[name])
        return array
    values = np.arange(1, int(np.prod(shape)) + 1) % 251 + 1
    if found.kind == "b":
        return (values % 3 > 0).reshape(shape)
    return values.astype(found).reshape(shape)


def save(
    kind: str,
    folder: pathlib.Path,
    array: npt.NDArray[Any],
    chunks: tuple[int, ...],
    **others: Any,
) -> tuple[str, str | None]:
    """Save an array; its path, and its key in the file if there is one."""
    if kind.startswith("hdf5"):
        h5py: Any = importlib.import_module("h5py")
        path = str(folder / "data.h5")
        if kind == "hdf5" and array.size and array.ndim:
            limited = tuple(map(min, chunks, array.shape))
            others = {"chunks": limited, "compression": "gzip", "shuffle": True} | others
        with h5py.File(path, "w") as file:
            file.create_dataset("some/numbers", data=array, **others)
        return path, "/some/numbers"
    if kind == "blosc2":
        blosc2: Any = importlib.import_module("blosc2")
        path = str(folder / "data.b2nd")
        if array.size and array.ndim:
            limited = tuple(map(min, chunks, array.shape))
            # A block is what Blosc2 decodes; a chunk has several, and not a whole number of them.
            blocks = tuple(-(-2 * length // 3) for length in limited)
            others = {"chunks": limited, "blocks": blocks} | others
        blosc2.asarray(np.array(array, order="C"), urlpath=path, mode="w", **others)
        return path, None
    import zarr

    path = str(folder / "data.zarr")
    limits: dict[str, Any] = {"chunks": tuple(max(1, length) for length in chunks)}
    if kind == "shards" and array.ndim:
        limits["shards"] = tuple(2 * length for length in limits["chunks"])
    with warnings.catch_warnings():
        # "Does not have a Zarr V3 specification": of structures and strings.
        warnings.simplefilter("ignore")
        made = zarr.create_array(
            path,
            shape=array.shape,
            dtype=array.dtype,
            zarr_format=2 if kind == "zarr2" else 3,
            **limits,
            **others,
        )
        made[...] = array
    return path, None


def load(path: str, key: str | None) -> npt.NDArray[Any]:
    """Read a saved array with its library alone."""
    found: Any
    if key is not None:
        h5py: Any = importlib.import_module("h5py")
        with h5py.File(path) as file:
            return np.asarray(file[key][()], file[key].dtype)
    if path.endswith(".b2nd"):
        blosc2: Any = importlib.import_module("blosc2")
        found = blosc2.open(path, mode="r")
        return np.asarray(found[()], found.dtype)
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = zarr.open_array(path, mode="r")
        return np.asarray(found[...], found.dtype)


@contextlib.contextmanager
def saved(
    kind: str, array: npt.NDArray[Any], chunks: tuple[int, ...], **others: Any
) -> Iterator[tuple[str, str | None]]:
    """Save an array in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="chunked-") as folder:
        yield save(kind, pathlib.Path(folder), array, chunks, **others)

"""Zarr, HDF5 and Blosc2: an array in chunks, paged, against slicing the library's own object.

256 MiB of float64, a random walk in hundredths, compressed with the library's default (HDF5: gzip
and shuffle), on disk and in the page cache.  In chunks of whole rows (64 x 8192), and in square
ones (512 x 512), which lie across the order of the elements: each page needs a part of 16 of them.

*Sequential*: ``sum()`` of all, paged with 32 MiB resident; the library reads everything into a new
array, and sums that.  *Random*: single elements, 20,000 of them, in a part of 32 MiB that stays
resident; the library 300 of the same ones.  *Cold*: the first touches of the pages, and with them
all decoding, are in the time; *warm*: a second pass over the same elements.

Fair: nobody is pinned; opening is not in the time; the library uses its own threads as it likes.
Not the same: the paged array holds 32 MiB (and up to 64 MiB of decoded chunks in the pager), the
library's full read 256 MiB.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.child import contender
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Goal, Measure, Settings

__all__ = ["comparisons", "pick_with_library", "pick_with_refault", "sum_library", "sum_refault"]

MIB = 1 << 20
COLUMNS = 8192
CHUNKS = {"rows": (64, 8192), "squares": (512, 512)}
LIBRARIES = ("zarr", "blosc2", "hdf5")
PICKS = 20_000
LIBRARY_PICKS = 300


def comparisons(settings: Settings) -> Iterator[Comparison]:
    rows = settings.size(256 * MIB, 8 * MIB) // (8 * COLUMNS)
    for library in LIBRARIES:
        for form, chunks in CHUNKS.items():
            path = str(settings.data / f"{library}-{form}")
            before = functools.partial(make, library, path, rows, chunks)
            common: dict[str, Any] = {"library": library, "path": path}
            resident = rows * COLUMNS  # an eighth
            yield Comparison(
                f"{library}, {form}: sequential read of {rows * COLUMNS * 8 >> 20} MiB in"
                f" {resident >> 20} MiB",
                [
                    contender("refault", sum_refault, before=before, resident=resident, **common),
                    contender(library, sum_library, before=before, **common),
                ],
                [Measure("throughput", "GB/s"), Measure("seconds", "s")],
                [Goal("refault", "throughput", library, at_least=0.8)],
                baseline=library,
            )
            yield Comparison(
                f"{library}, {form}: random elements of a working set of {resident >> 20} MiB",
                [
                    contender("refault", pick_with_refault, before=before, **common),
                    contender(library, pick_with_library, before=before, **common),
                ],
                [Measure("cold", "us each"), Measure("warm", "us each")],
                # HDF5 keeps a few decoded chunks itself.
                [
                    Goal("refault", name, library, at_most=1 / 20, why="20 times as fast")
                    for name in ("warm", "cold")
                    if library != "hdf5"
                ],
                baseline=library,
            )


def make(library: str, path: str, rows: int, chunks: tuple[int, int]) -> None:
    """Save the array, unless it is there already."""
    if pathlib.Path(path).exists():
        return
    steps = np.random.default_rng(1).integers(-9, 10, (rows, COLUMNS))
    array = np.cumsum(steps, axis=1) / 100
    chunks = (min(chunks[0], rows), chunks[1])
    if library == "zarr":
        import zarr

        made = zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=chunks)
        made[...] = array
    elif library == "blosc2":
        blosc2: Any = importlib.import_module("blosc2")
        blosc2.asarray(array, urlpath=path, mode="w", chunks=chunks)
    else:
        h5py: Any = importlib.import_module("h5py")
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=array, chunks=chunks, compression="gzip", shuffle=True)


def open_library(library: str, path: str) -> Any:
    """The library's own object."""
    if library == "zarr":
        import zarr

        return zarr.open_array(path, mode="r")
    if library == "blosc2":
        blosc2: Any = importlib.import_module("blosc2")
        return blosc2.open(path, mode="r")
    h5py: Any = importlib.import_module("h5py")
    return h5py.File(path, "r")["x"]


def sum_refault(library: str, path: str, resident: int) -> dict[str, float]:
    """Sum a paged array."""
    import refault

    warm_memory(256 * MIB)
    array = refault.open(open_library(library, path), resident=resident)
    begin = time.perf_counter_ns()
    total = array.sum()
    found = _rate(begin, array.nbytes)
    seen = refault.region(array).statistics()
    if seen.peak_resident > resident or not total:
        raise RuntimeError(f"not what was to be measured: {seen}")
    return found | {"faults": seen.faults, "readahead": seen.readahead}


def sum_library(library: str, path: str) -> dict[str, float]:
    """Read everything, and sum it."""
    array = open_library(library, path)
    warm_memory(array.size * 8)
    begin = time.perf_counter_ns()
    array[...].sum()
    return _rate(begin, array.size * 8)


def pick_with_refault(library: str, path: str) -> dict[str, float]:
    """Read single elements of a paged array."""
    import refault

    warm_memory(64 * MIB)
    array = refault.open(open_library(library, path))
    places = picks(array.shape[0] // 8)
    return {name: _pick(array, places) for name in ("cold", "warm")}


def pick_with_library(library: str, path: str) -> dict[str, float]:
    """Read single elements with the library."""
    array = open_library(library, path)
    places = picks(array.shape[0] // 8)[:LIBRARY_PICKS]
    return {name: _pick(array, places) for name in ("cold", "warm")}


def picks(rows: int) -> list[tuple[int, int]]:
    """Which elements: of the first `rows` rows."""
    chance = np.random.default_rng(2)
    return list(
        zip(
            chance.integers(0, rows, PICKS).tolist(),
            chance.integers(0, COLUMNS, PICKS).tolist(),
            strict=True,
        )
    )


def _pick(array: Any, places: list[tuple[int, int]]) -> float:
    begin = time.perf_counter_ns()
    for place in places:
        array[place]
    return (time.perf_counter_ns() - begin) / len(places) / 1e3


def _rate(begin: int, size: int) -> dict[str, float]:
    ns = time.perf_counter_ns() - begin
    return {"throughput": size / ns, "seconds": ns / 1e9}

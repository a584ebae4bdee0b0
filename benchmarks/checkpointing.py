"""What is measured of checkpoints, and of `np.save` of everything; see `cases.checkpoints`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import refault
from benchmarks.machine import warm_memory
from benchmarks.model import Missing

__all__ = ["load", "make_checkpoint", "save_again"]

PIECE = 64 << 10
SPARE = 64 << 20
LOOKED_AT = 1000


def save_again(way: str, size: int, share: float, folder: str) -> dict[str, float]:
    """Save an array once more, after a share of its pieces was written to."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="saved-", dir=folder))
    warm_memory(size)
    array = _array(size, resident=way == "checkpoints")
    pieces = np.random.default_rng(8).permutation(len(array))
    changed = pieces[: max(1, round(share * len(pieces)))]
    try:
        if way == "np.save":
            array[changed, 0] += 1
            begin = time.perf_counter_ns()
            np.save(path.with_suffix(".npy"), array)
            seconds = (time.perf_counter_ns() - begin) / 1e9
            on_disk = seconds + _sync([path.with_suffix(".npy")])
            found = {"seconds": seconds, "on_disk": on_disk, "written": size / 2**20}
            return found | _shares(size, changed)
        with _checkpoints(path) as checkpoints:
            begin = time.perf_counter_ns()
            checkpoints.save({"array": array}).result()
            first = (time.perf_counter_ns() - begin) / 1e9
            earlier = _files(path)
            _sync(earlier)
            array[changed, 0] += 1
            begin = time.perf_counter_ns()
            save = checkpoints.save({"array": array})
            taken = time.perf_counter_ns()
            written = save.result().written
            end = time.perf_counter_ns()
            synced = _sync(_files(path) - earlier)
            _check(checkpoints, array, pieces)
        return {
            "seconds": (end - begin) / 1e9,
            "on_disk": (end - begin) / 1e9 + synced,
            "call": (taken - begin) / 1e6,
            "written": written / 2**20,
            "first": first,
        } | _shares(written, changed)
    finally:
        for used in [*_files(path), path.with_suffix(".npy")]:
            if used.exists():
                os.truncate(used, 0)


def make_checkpoint(size: int, path: str) -> dict[str, float]:
    """Make what `load` opens."""
    with _checkpoints(pathlib.Path(path)) as checkpoints:
        checkpoints.save({"array": _array(size, resident=True)}).result()
    return {}


def load(path: str) -> dict[str, float]:
    """Open a checkpoint and look at an element in the middle."""
    begin = time.perf_counter_ns()
    with _checkpoints(pathlib.Path(path)) as checkpoints:
        opened = time.perf_counter_ns()
        array = checkpoints.load()["array"]
        middle = len(array) // 2
        value = int(array[middle, 0])
        end = time.perf_counter_ns()
    if value != middle:
        raise RuntimeError(f"read {value}")
    return {"ms": (end - opened) / 1e6, "open": (opened - begin) / 1e6}


def _array(size: int, *, resident: bool) -> npt.NDArray[np.uint64]:
    """Pieces that no compression makes smaller; each begins with its number."""
    shape = size // PIECE, PIECE // 8
    array: npt.NDArray[np.uint64]
    if resident:
        array = refault.zeros(shape, "u8", resident=size + SPARE, page_size=PIECE)
    else:
        array = np.zeros(shape, "u8")
    array[:] = np.random.default_rng(9).integers(1 << 63, size=shape[1], dtype=np.uint64)
    array[:, 0] = np.arange(len(array))
    return array


@contextlib.contextmanager
def _checkpoints(path: pathlib.Path) -> Iterator[Any]:
    try:
        checkpoints = refault.Checkpoints(path)
    except refault.UsageError as error:
        raise Missing(f"not measured: {error}") from error
    with checkpoints:
        yield checkpoints


def _files(folder: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def _sync(paths: Iterable[pathlib.Path]) -> float:
    """Wait until files are on the disk; how long that took, in seconds."""
    begin = time.perf_counter_ns()
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return (time.perf_counter_ns() - begin) / 1e9


def _shares(written: int, changed: npt.NDArray[np.int64]) -> dict[str, float]:
    return {"changed": len(changed) * PIECE / 2**20, "ratio": written / (len(changed) * PIECE)}


def _check(checkpoints: Any, array: npt.NDArray[np.uint64], pieces: npt.NDArray[np.int64]) -> None:
    """Look at pieces of the newest checkpoint; the first of them were changed."""
    looked = np.concatenate((pieces[:LOOKED_AT], pieces[-LOOKED_AT:]))
    loaded = checkpoints.load()["array"]
    wrong = sum(int(loaded[piece, 0]) != int(array[piece, 0]) for piece in looked)
    if wrong:
        raise RuntimeError(f"{wrong} of {len(looked)} pieces were not saved as they were")

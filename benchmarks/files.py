"""Files that hold what is read: made once per run, in the page cache or not as the case wants."""

from __future__ import annotations

import os
import pathlib

import numpy as np

__all__ = ["drop", "npy_file", "numbers_file", "restore_numbers", "warm", "write_descending"]

BLOCK = 8 << 20


def numbers_file(folder: pathlib.Path, size: int) -> pathlib.Path:
    """A file of `size` bytes whose word i is i, as UMap's pfbenchmark expects it."""
    path = folder / f"numbers-{size}"
    if not path.exists():
        restore_numbers(path, size)
    return path


def restore_numbers(path: pathlib.Path, size: int) -> None:
    """Write what `numbers_file` has, over whatever an earlier run has left there."""
    with path.open("r+b" if path.exists() else "wb") as file:
        for at in range(0, size, BLOCK):
            block = np.arange(at // 8, min(at + BLOCK, size) // 8, dtype=np.uint64)
            os.pwrite(file.fileno(), block.tobytes(), at)
        os.ftruncate(file.fileno(), size)
        os.fsync(file.fileno())


def npy_file(folder: pathlib.Path, size: int) -> pathlib.Path:
    """A ``.npy`` file of float64 with `size` bytes of data."""
    path = folder / f"floats-{size}.npy"
    if not path.exists():
        header = np.lib.format.header_data_from_array_1_0(np.empty(0))
        header["shape"] = (size // 8,)
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            ones = np.ones(BLOCK // 8).tobytes()
            for at in range(0, size, BLOCK):
                os.write(file.fileno(), ones[: size - at])
            os.fsync(file.fileno())
    return path


def write_descending(path: pathlib.Path, size: int) -> None:
    """Write `size` bytes of descending uint64 down to 1, on disk and out of the page cache."""
    words = size // 8
    with path.open("r+b" if path.exists() else "wb") as file:
        for at in range(0, size, BLOCK):
            count = min(BLOCK, size - at) // 8
            first = words - at // 8
            block = np.arange(first, first - count, -1, dtype=np.int64).astype(np.uint64)
            os.pwrite(file.fileno(), block.tobytes(), at)
        os.ftruncate(file.fileno(), size)
    drop(path)


def warm(path: pathlib.Path) -> None:
    """Read all of a file, so that it is in the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(BLOCK)
        while file.readinto(buffer):
            pass


def drop(path: pathlib.Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

"""Part 2: a ``.npy`` file larger than its memory, changed in place."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

import refault
from refault.errors import UsageError

from .plan import Plan
from .report import Result
from .tally import Tally
from .witness import Witness

__all__ = ["change_file_in_place"]

Numbers: TypeAlias = npt.NDArray[np.int64]

PIECES: Final = 32
"""numpy's own result is computed piece by piece, and so takes little memory as well."""
SORTED: Final = PIECES // 2
"""The piece that is sorted."""
STEP: Final = 4099
"""One number in so many is overwritten."""


def change_file_in_place(plan: Plan, directory: str, progress: Callable[[str], None]) -> Result:
    """Make a file, change it through refault, and compare what it holds then."""
    count = plan.file_bytes // 8 // PIECES
    with _folder(directory) as folder:
        path = os.path.join(folder, "numbers.npy")
        progress(f"making {path}")
        total = make_file(path, count)
        array = refault.open(path, mode="r+", resident=plan.file_resident)
        region = refault.region(array)
        nbytes = array.nbytes
        tally = Tally()
        with Witness() as witness:
            progress("adding its numbers up")
            began = time.monotonic()
            tally.compare(np.array([array.sum()]), np.array([total]))
            read = time.monotonic()
            progress("changing all of them, then some of them, and sorting others")
            array *= 3
            multiplied = time.monotonic()
            array[::STEP] = -1
            array[SORTED * count : (SORTED + 1) * count].sort()
            region.flush()
            statistics = region.statistics()
        del array
        region.close()
        progress("reading the file without refault")
        check_file(path, count, tally)
    return Result(
        title=".npy in place",
        nbytes=nbytes,
        statistics=statistics,
        peak_seen=witness.peak,
        write_rate=nbytes / (multiplied - read),
        read_rate=nbytes / (read - began),
        checked=tally.checked,
        wrong=tally.wrong,
    )


def numbers(piece: int, count: int) -> Numbers:
    """What one piece of the file holds at first."""
    return np.random.default_rng(piece).integers(-(1 << 31), 1 << 31, count)


def make_file(path: str, count: int) -> np.int64:
    """Write the file; return the sum of its numbers."""
    total = np.int64(0)
    header = {"descr": "<i8", "fortran_order": False, "shape": (PIECES * count,)}
    try:
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in range(PIECES):
                found = numbers(piece, count)
                total += found.sum()
                file.write(found.data)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; name another place with --directory"
        ) from error
    return total


def check_file(path: str, count: int, tally: Tally) -> None:
    """Do with numpy alone what was done in place, and compare."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        for piece in range(PIECES):
            expected = numbers(piece, count)
            expected *= 3
            expected[-piece * count % STEP :: STEP] = -1
            if piece == SORTED:
                expected.sort()
            tally.compare(np.fromfile(file, expected.dtype, count), expected)


def _folder(directory: str) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="refault-demo-", dir=directory)
    except OSError as error:
        raise UsageError(
            f"--directory {directory}: {error.strerror}; name one that can be written to"
        ) from error

"""Reading a 4 GiB .npy file from its beginning to its end, once, with 1 GiB resident.

Compared with `np.load(mmap_mode="r")` with free memory, and with plain reading: `np.fromfile` in
pieces of 64 MiB.  The work is ``sum()`` of float64, one call of numpy for the mapped arrays.

*In the page cache*: the file has been read before each run.  *Not in the page cache*: it has been
dropped (POSIX_FADV_DONTNEED) before each run; then it is the disk that is measured, and how
well it is kept busy.

Fair: nobody is pinned; default settings.  The memory-mapped file has all memory it wants.  Opening
is not in the time, closing neither.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import drop, npy_file, warm
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Goal, Measure, Settings

__all__ = ["comparisons", "read_fromfile", "read_memmap", "read_refault"]

MIB = 1 << 20
PIECE = 64 * MIB


def comparisons(settings: Settings) -> Iterator[Comparison]:
    size = settings.size(4096 * MIB, 64 * MIB)
    path = npy_file(settings.data, size)
    for name, prepare, goal in (
        ("in the page cache", warm, 0.8),
        ("not in the page cache", drop, 1.0),
    ):
        before = functools.partial(prepare, path)
        yield Comparison(
            f"sequential read of {size >> 20} MiB in {size >> 22} MiB, {name}",
            [
                contender(
                    "refault", read_refault, before=before, path=str(path), resident=size // 4
                ),
                contender("memmap", read_memmap, before=before, path=str(path)),
                contender("fromfile", read_fromfile, before=before, path=str(path)),
                contender(
                    "refault, 1 MiB units",
                    read_refault,
                    before=before,
                    path=str(path),
                    resident=size // 4,
                    page=1 * MIB,
                ),
            ],
            [Measure("throughput", "GB/s"), Measure("seconds", "s")],
            [Goal("refault", "throughput", "memmap", at_least=goal)],
            baseline="memmap",
        )


def read_refault(path: str, resident: int, page: int | None = None) -> dict[str, float]:
    """Sum a region."""
    import refault

    warm_memory(resident)
    array = refault.open(path, resident=resident, page_size=page)
    begin = time.perf_counter_ns()
    total = array.sum()
    found = _found(begin, array.nbytes, total)
    seen = refault.region(array).statistics()
    return found | {"faults": seen.faults, "readahead": seen.readahead}


def read_memmap(path: str) -> dict[str, float]:
    """Sum a memory-mapped file."""
    array = np.load(path, mmap_mode="r")
    begin = time.perf_counter_ns()
    return _found(begin, array.nbytes, array.sum())


def read_fromfile(path: str) -> dict[str, float]:
    """Sum what is read piece by piece."""
    total, size = 0.0, 0
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        begin = time.perf_counter_ns()
        while (piece := np.fromfile(file, "f8", PIECE // 8)).size:
            total += piece.sum()
            size += piece.nbytes
    return _found(begin, size, total)


def _found(begin: int, size: int, total: float) -> dict[str, float]:
    ns = time.perf_counter_ns() - begin
    if total != size // 8:
        raise RuntimeError(f"wrong sum: {total}")
    return {"throughput": size / ns, "seconds": ns / 1e9}

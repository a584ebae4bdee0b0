"""ndarray.sort of 1 GiB of descending uint64 in 256 MiB, against a memory-mapped file so bounded.

The file is written anew before each run and is out of the page cache when the clock starts, for
everybody: the memory-mapped file would otherwise use pages that are charged to somebody else.

Compared: refault with default settings, with 4 KiB and with 1 MiB units; `np.memmap` in a memory
cgroup of 320 MiB (256 MiB and what the interpreter needs), and without a bound;
umapsort with one thread, if ``--umap`` says where it is.  It makes and fills its file itself,
through its own buffer, just before it sorts: a quarter is still there, to its advantage.

What is not the same: refault's bound is on what the array has in memory.  The file's own page cache
belongs to the kernel, is free for others at any time, and is *not* bounded, so its
write-back need not wait for the disk.  To the memory-mapped file the page cache is the memory, and
is bounded.  So there is also refault *with all of it in the same cgroup*: program, pager, region
and page cache together within 320 MiB, with ``resident="192MiB"``.  That is the strict one.

"sort" ends with the sort; "flushed" when the file has everything (`flush`: fdatasync), for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.child import contender
from benchmarks.files import write_descending
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Sample, Settings
from benchmarks.umap import umap_sort

__all__ = ["comparisons", "sort_memmap", "sort_refault"]

MIB = 1 << 20


def comparisons(settings: Settings) -> Iterator[Comparison]:
    size = settings.size(1024 * MIB, 64 * MIB)
    resident = size // 4
    bound = resident + 64 * MIB
    strict = settings.size(192 * MIB, 16 * MIB)
    path = settings.data / "descending"

    def before() -> None:
        write_descending(path, size)

    def ours(
        name: str, page: int | None, resident: int = resident, group: int | None = None
    ) -> Contender:
        return contender(
            name,
            sort_refault,
            before=before,
            group=group,
            path=str(path),
            resident=resident,
            page=page,
        )

    def theirs() -> Sample:
        return umap_sort(settings, size=size, buffer=resident, page=1 * MIB, path=path)

    mapped = f"memmap in {bound >> 20} MiB"
    yield Comparison(
        f"sort of {size >> 20} MiB in {resident >> 20} MiB",
        [
            ours("refault", None),
            contender(mapped, sort_memmap, before=before, group=bound, path=str(path)),
            ours("refault, 4 KiB units", 4096),
            ours("refault, 1 MiB units", 1 * MIB),
            ours(f"refault, all in {bound >> 20} MiB", None, strict, bound),
            contender("memmap, no bound", sort_memmap, before=before, path=str(path)),
            Contender("UMap, 1 MiB units", theirs),
        ],
        [Measure("sort", "s"), Measure("flushed", "s")],
        [
            Goal("refault", "sort", mapped, at_most=1.0),
            Goal("refault, 4 KiB units", "sort", mapped, at_most=3.0),
            Goal(f"refault, all in {bound >> 20} MiB", "sort", mapped, at_most=1.0),
        ],
        baseline=mapped,
    )


def sort_refault(path: str, resident: int, page: int | None) -> dict[str, float]:
    """Sort in a region."""
    import refault

    warm_memory(resident // 2)
    array = refault.open(path, "r+", dtype="u8", resident=resident, page_size=page)
    region = refault.region(array)
    found = _sort(array, region.flush)
    seen = region.statistics()
    if seen.peak_resident > resident:
        raise RuntimeError(f"more resident than allowed: {seen}")
    return found | {"faults": seen.faults, "read_mib": seen.bytes_read / MIB}


def sort_memmap(path: str) -> dict[str, float]:
    """Sort in a memory-mapped file."""
    import numpy as np

    array = np.memmap(path, "u8", "r+")
    return _sort(array, array.flush)


def _sort(array: Any, flush: Any) -> dict[str, float]:
    begin = time.perf_counter_ns()
    array.sort()
    sorted_ = time.perf_counter_ns()
    flush()
    flushed = time.perf_counter_ns()
    if int(array[0]) != 1 or int(array[-1]) != len(array):
        raise RuntimeError("not sorted")
    return {"sort": (sorted_ - begin) / 1e9, "flushed": (flushed - begin) / 1e9}

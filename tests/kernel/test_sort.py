"""numpy sorts a file in place that is four times as large as the memory it may have."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from helpers.child import run_child
from helpers.memfds import sampled
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.slow,
    pytest.mark.usefixtures("served_by"),
]

SIZE = 1 << 30
RESIDENT = 256 << 20
PAGE = 64 << 10


def sort(path: str, resident: str, page: str) -> None:
    import time

    import refault

    x = refault.open(path, "r+", dtype="u8", resident=int(resident), page_size=int(page))
    begin = time.monotonic()
    x.sort()
    seconds = time.monotonic() - begin
    region = refault.region(x)
    seen = region.statistics()
    assert seen.peak_resident <= int(resident), seen
    assert seen.bytes_written > x.nbytes // 2, seen
    del x
    region.close()
    print(f"sorted in {seconds:.1f} s; {seen.faults} faults, {seen.evictions} evictions")


@pytest.mark.usefixtures("nothing_left")
def test_sort_in_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "numbers"
    numbers = np.random.default_rng(20190211).integers(0, 1 << 64, SIZE // 8, dtype=np.uint64)
    numbers.tofile(path)
    with sampled() as memory:
        done = run_child(sort, timeout=100, args=[str(path), str(RESIDENT), str(PAGE)])
    print(done.stdout, f"memfd: at most {memory.peak / 2**20:.1f} MiB, {memory.samples} samples")
    assert memory.samples > 100
    # It must have been in use, or what was looked at was not the memory.
    assert RESIDENT // 2 < memory.peak <= RESIDENT + PAGE
    numbers.sort()
    found = np.fromfile(path, np.uint64)
    path.unlink()
    assert found.nbytes == numbers.nbytes
    assert np.array_equal(found, numbers)

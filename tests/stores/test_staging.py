"""Sets of ranges, and the file in which changes are kept."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refault.errors import StoreError
from refault.stores.ranges import Ranges
from refault.stores.staging import Staging

PAIRS = st.tuples(st.integers(0, 15), st.integers(0, 15))


@given(st.lists(PAIRS, max_size=12), PAIRS)
def test_ranges_are_a_set_of_numbers(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges, model = Ranges(), set[int]()
    for start, end in added:
        ranges.add(start, end)
        model |= set(range(start, end))
    found = list(ranges)
    assert {n for start, end in found for n in range(start, end)} == model
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(found))
    assert bool(ranges) == bool(model)
    gaps = ranges.gaps(*asked)
    assert [n for start, end in gaps for n in range(start, end)] == [
        n for n in range(*asked) if n not in model
    ]
    assert all(start < end for start, end in gaps)


def test_what_was_put_there_is_there() -> None:
    size, draw = 100_000, random.Random(3)
    staging, model = Staging(size, "x"), bytearray(size)
    for _ in range(50):
        start = draw.randrange(size)
        data = draw.randbytes(draw.randint(1, min(3000, size - start)))
        staging.write(start, data)
        model[start : start + len(data)] = data
    for start, end in staging.known:
        buffer = bytearray(end - start)
        staging.read_into(start, memoryview(buffer))
        assert buffer == model[start:end]
    with staging.whole() as whole:
        assert whole[:] == model
    staging.close()


def test_no_room_is_told_and_nothing_counts_as_there() -> None:
    staging = Staging(1 << 20, "s3://bucket/x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreError, match=r"s3://bucket/x: .* in .*large.*TMPDIR") as caught:
            staging.write(0, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not caught.value.permanent
    assert staging.gaps(0, 1 << 20) == [(0, 1 << 20)]
    staging.write(0, bytes(10_000))
    assert staging.gaps(0, 1 << 20) == [(10_000, 1 << 20)]
    staging.close()


def test_the_file_has_no_name() -> None:
    staging = Staging(1 << 20, "x")
    assert " (deleted)" in os.readlink(f"/proc/self/fd/{staging._fd}")
    staging.close()

"""Which units count as used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fake_machine import PAGE
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.page import PG_AHEAD, PG_LOCKED, PG_READING, PG_UPTODATE
from refault.memory.touched import MOST, Touched, split_or_merged


def make(units: int = 10, *, rest: int = 0) -> Mapping:
    size = units * PAGE + rest
    return Mapping(1, "it", size, PAGE, Budget(None), private=False, writable=True)


def come(mapping: Mapping, index: int, more: int = 0) -> None:
    assert mapping.budget.try_charge(mapping.page_size) is None
    mapping.flags[index] |= PG_UPTODATE | more
    mapping.entered((index,))


def used(mapping: Mapping) -> dict[int, int]:
    size = mapping.page_size
    return {
        at // size: times
        for start, end, times in Touched(mapping).ranges()
        for at in range(start, end, size)
    }


def test_what_is_in_memory_and_was_not_read_ahead() -> None:
    mapping = make()
    come(mapping, 2)
    come(mapping, 3)
    come(mapping, 5, PG_AHEAD)
    mapping.flags[6] |= PG_LOCKED | PG_READING
    assert list(Touched(mapping).ranges()) == [(2 * PAGE, 4 * PAGE, 1)]
    mapping.flags[5] &= ~PG_AHEAD  # a fault maps it
    assert used(mapping) == {2: 1, 3: 1, 5: 1}


@pytest.mark.parametrize("ghost", [True, False])
def test_what_went_counts_unless_nobody_had_touched_it(ghost: bool) -> None:
    mapping = make()
    come(mapping, 2)
    come(mapping, 5, PG_AHEAD)
    mapping.drop([2, 5], ghost=ghost)
    assert used(mapping) == {2: 1}
    come(mapping, 2)
    assert used(mapping) == {2: 2}


def test_what_comes_in_for_a_working_set_says_nothing_about_the_size_of_units() -> None:
    mapping = make()
    told: list[object] = []

    class Chooser:
        def entered(self, indexes: object, _: object) -> None:
            told.append(indexes)

    mapping.chooser = Chooser()  # type: ignore[assignment]
    mapping.prefetching = True
    come(mapping, 1)
    mapping.prefetching = False
    come(mapping, 2)
    assert told == [(2,)]


def test_it_does_not_overflow() -> None:
    mapping = make()
    for _ in range(MOST + 3):
        come(mapping, 1)
        mapping.drop([1], ghost=False)
    come(mapping, 1)
    assert used(mapping) == {1: MOST}


def test_the_last_unit_ends_where_the_object_does() -> None:
    mapping = make(3, rest=5)
    come(mapping, 3)
    assert list(Touched(mapping).ranges()) == [(3 * PAGE, 3 * PAGE + 5, 1)]


def test_a_mapping_that_grows_forgets_nothing() -> None:
    mapping = make(3)
    come(mapping, 1)
    mapping.drop([1], ghost=True)
    mapping.grow(20 * PAGE)
    come(mapping, 15)
    assert used(mapping) == {1: 1, 15: 1}


def test_far_apart_and_from_some_unit_on() -> None:
    mapping = make(200_000)
    for index in (0, 65_535, 65_536, 150_000):
        come(mapping, index)
    assert used(mapping) == {0: 1, 65_535: 1, 65_536: 1, 150_000: 1}
    ranges = list(Touched(mapping).ranges(65_536))
    assert [start // PAGE for start, _, _ in ranges] == [65_536, 150_000]


def test_units_of_another_size() -> None:
    mapping = make(10, rest=5)
    come(mapping, 3)
    mapping.drop([3], ghost=False)
    come(mapping, 10)
    mapping.drop([10], ghost=False)
    mapping.set_page_size(PAGE // 2)
    assert used(mapping) == {6: 1, 7: 1, 20: 1}
    come(mapping, 6)
    mapping.drop([6], ghost=False)
    mapping.set_page_size(4 * PAGE)
    assert used(mapping) == {0: 2, 2: 1}


@given(st.binary(max_size=70), st.integers(1, 4))
def test_split_and_merged(counts: bytes, shift: int) -> None:
    parts = 1 << shift
    split = bytearray(len(counts) * parts)
    split_or_merged(bytearray(counts), split, -shift)
    assert split == bytes(count for count in counts for _ in range(parts))
    back = bytearray(len(counts))
    split_or_merged(split, back, shift)
    assert back == counts


def test_a_long_one_is_converted_in_chunks() -> None:
    counts = bytearray(200_000)
    counts[70_000], counts[199_999] = 7, 9
    merged = bytearray(25_000)
    split_or_merged(counts, merged, 3)
    assert {at: count for at, count in enumerate(merged) if count} == {8_750: 7, 24_999: 9}

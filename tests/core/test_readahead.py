"""`Readahead`: which windows it opens for which sequences."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from refault.memory.readahead import INITIAL_BYTES, MAX_BYTES, Readahead

PAGE = 64 << 10
INITIAL = INITIAL_BYTES // PAGE
LARGEST = MAX_BYTES // PAGE


def walk(ahead: Readahead, indexes) -> list[tuple[int, int]]:
    return [window for index in indexes if (window := ahead.window(index)) is not None]


def reader(ahead: Readahead, first: int, last: int) -> tuple[int, list[tuple[int, int]]]:
    """Read ``[first, last)`` in order; only pages that are not there, and markers, are faults."""
    there: set[int] = set()
    markers: set[int] = set()
    faults = 0
    windows = []
    for index in range(first, last):
        if index in there and index not in markers:
            continue
        markers.discard(index)
        faults += 1
        window = ahead.window(index)
        if window is not None:
            windows.append(window)
            there |= set(range(*window))
            markers.add(window[0])
    return faults, windows


def test_sequence_opens_at_its_second_page_and_doubles() -> None:
    faults, windows = reader(Readahead(PAGE, None), 0, 1000)
    assert windows[0] == (2, 2 + INITIAL)
    sizes = [last - first for first, last in windows]
    assert sizes[:5] == [4, 8, 16, 32, 32]
    assert max(sizes) == LARGEST
    # Without gaps and without overlaps.
    assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
    # Two to see that it is a sequence, then one for each window.
    assert faults == 2 + len(windows) - 1


def test_it_may_begin_anywhere() -> None:
    _, windows = reader(Readahead(PAGE, None), 700, 720)
    assert windows[0] == (702, 706)


def test_random_reads_open_nothing() -> None:
    assert walk(Readahead(PAGE, None), [5, 900, 13, 77, 2, 500, 44, 8]) == []


def test_backwards_opens_nothing() -> None:
    assert walk(Readahead(PAGE, None), range(500, 0, -1)) == []


def test_strides_open_nothing() -> None:
    assert walk(Readahead(PAGE, None), range(0, 10_000, 3)) == []


def test_same_page_again_and_again_opens_nothing() -> None:
    ahead = Readahead(PAGE, None)
    assert walk(ahead, [7] * 20) == []
    assert ahead.window(8) == (9, 9 + INITIAL)
    # Many threads fault the same pages: no storm.
    assert walk(ahead, [8] * 20) == []
    assert len(walk(ahead, [9] * 20)) == 1


def test_jump_ends_a_sequence_and_a_new_one_begins_small() -> None:
    ahead = Readahead(PAGE, None)
    _, windows = reader(ahead, 0, 200)
    assert windows[-1][1] - windows[-1][0] == LARGEST
    assert ahead.window(5000) is None
    assert ahead.window(5001) == (5002, 5002 + INITIAL)


def test_sequence_that_was_left_does_not_go_on_where_it_was() -> None:
    ahead = Readahead(PAGE, None)
    ahead.window(0)
    marker, _ = ahead.window(1) or (0, 0)
    assert ahead.window(5000) is None
    assert ahead.window(marker) is None


def test_page_behind_the_marker_goes_on_too() -> None:
    """The marker itself was missed: the first page after the window continues."""
    ahead = Readahead(PAGE, None)
    ahead.window(0)
    first, last = ahead.window(1) or (0, 0)
    assert ahead.window(last) == (last + 1, last + 1 + 2 * (last - first))


def test_two_streams_that_take_turns_open_nothing_wrong() -> None:
    """We follow one sequence; two that alternate page by page look random."""
    ahead = Readahead(PAGE, None)
    indexes = [index for pair in zip(range(50), range(900, 950), strict=True) for index in pair]
    assert walk(ahead, indexes) == []


def test_two_streams_that_take_turns_in_runs_are_both_seen() -> None:
    ahead = Readahead(PAGE, None)
    assert walk(ahead, [0, 1, 900, 901, 2, 3, 902, 903]) != []


def test_small_budget_bounds_the_window() -> None:
    ahead = Readahead(PAGE, 8 * 3 * PAGE)
    _, windows = reader(ahead, 0, 200)
    assert {last - first for first, last in windows} == {3}


def test_tiny_budget_or_large_pages_switch_it_off() -> None:
    assert walk(Readahead(PAGE, 7 * PAGE), range(100)) == []
    assert walk(Readahead(2 << 20, None), range(9)) != []
    assert walk(Readahead(2 << 20, 8 << 20), range(9)) == []


@given(
    st.sampled_from([4 << 10, 64 << 10, 2 << 20]),
    st.one_of(st.none(), st.integers(0, 64 << 20)),
    st.lists(st.integers(0, 60), max_size=80),
)
def test_bounds(page_size: int, budget: int | None, indexes: list[int]) -> None:
    ahead = Readahead(page_size, budget)
    room = MAX_BYTES if budget is None else min(MAX_BYTES, budget // 8)
    begun = 0
    for index in indexes:
        window = ahead.window(index)
        if window is None:
            continue
        first, last = window
        begun += 1
        assert index < first < last
        assert (last - first) * page_size <= room
        # A window begins behind the page that asked for it, or behind the window before.
        assert first <= index + 1 + room // page_size
    assert begun <= len(indexes)


@given(st.integers(0, 1000), st.integers(3, 3000))
def test_sequence_costs_few_faults(first: int, count: int) -> None:
    faults, windows = reader(Readahead(PAGE, None), first, first + count)
    assert faults <= 6 + count // LARGEST
    assert sum(last - first for first, last in windows) <= count + 2 * LARGEST

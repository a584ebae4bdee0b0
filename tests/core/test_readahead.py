"""`Readahead`: which windows it opens for which sequences."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refault.memory.readahead import (
    BEGINNINGS,
    INITIAL_BYTES,
    MAX_BYTES,
    NEAR,
    STREAMS,
    Readahead,
    Window,
)

PAGE = 64 << 10
INITIAL = INITIAL_BYTES // PAGE
LARGEST = MAX_BYTES // PAGE


def walk(ahead: Readahead, indexes) -> list[Window]:
    return [window for index in indexes for window in ahead.windows(index)]


def reader(ahead: Readahead, first: int, last: int) -> tuple[int, list[Window]]:
    """Read ``[first, last)`` in order; only pages that are not there, and markers, are faults."""
    there: set[int] = set()
    markers: set[int] = set()
    faults = 0
    windows = []
    for index in range(first, last, 1 if last > first else -1):
        if index in there and index not in markers:
            continue
        markers.discard(index)
        faults += 1
        for window in ahead.windows(index):
            windows.append(window)
            there |= set(range(window.first, window.last))
            markers.add(window.first if window.way > 0 else window.last - 1)
    return faults, windows


def test_sequence_opens_at_its_third_page_and_doubles() -> None:
    faults, windows = reader(Readahead(PAGE, None), 0, 1000)
    assert windows[0] == (3, 3 + INITIAL, 1)
    sizes = [window.last - window.first for window in windows]
    assert sizes[:5] == [4, 8, 16, 32, 32]
    assert max(sizes) == LARGEST
    # Without gaps and without overlaps.
    assert all(a.last == b.first for a, b in itertools.pairwise(windows))
    # Three to see that it is a sequence, then one for each window.
    assert faults == 3 + len(windows) - 1


def test_backwards_likewise() -> None:
    faults, windows = reader(Readahead(PAGE, None), 999, -1)
    assert windows[0] == (997 - INITIAL, 997, -1)
    assert windows[-1].first == 0
    assert all(a.first == b.last for a, b in itertools.pairwise(windows))
    assert faults == 3 + len(windows), "the last window's marker asks in vain: there is no more"


def test_it_may_begin_anywhere() -> None:
    _, windows = reader(Readahead(PAGE, None), 700, 720)
    assert windows[0] == (703, 707, 1)


def test_random_reads_open_nothing() -> None:
    assert walk(Readahead(PAGE, None), [5, 900, 13, 77, 2, 500, 44, 8]) == []


def test_neighbours_by_chance_open_nothing() -> None:
    assert walk(Readahead(PAGE, None), [5, 900, 6, 77, 901, 500, 44, 8]) == []


def test_strides_open_nothing() -> None:
    assert walk(Readahead(PAGE, None), range(0, 10_000, 3)) == []


def test_same_page_again_and_again_opens_nothing() -> None:
    ahead = Readahead(PAGE, None)
    assert walk(ahead, [7] * 20) == []
    assert walk(ahead, [8] * 20) == []
    assert ahead.windows(9) == [(10, 10 + INITIAL, 1)]
    # Many threads fault the same pages: no storm.
    assert walk(ahead, [9] * 20) == []
    assert len(walk(ahead, [10] * 20)) == 1


def test_jump_begins_a_new_sequence_small() -> None:
    ahead = Readahead(PAGE, None)
    _, windows = reader(ahead, 0, 200)
    assert windows[-1].last - windows[-1].first == LARGEST
    assert walk(ahead, [5000, 5001, 5002]) == [(5003, 5003 + INITIAL, 1)]


def test_sequence_goes_on_after_a_look_elsewhere() -> None:
    ahead = Readahead(PAGE, None)
    (window,) = walk(ahead, [0, 1, 2])
    assert walk(ahead, [5000, 7000]) == []
    assert len(walk(ahead, [window.first])) == 1


def test_touches_in_no_order_end_no_sequence() -> None:
    ahead = Readahead(PAGE, None)
    (window,) = walk(ahead, [0, 1, 2])
    assert walk(ahead, range(5000, 90_000, 100)) == []
    assert len(walk(ahead, [window.first])) == 1


def test_sequence_is_forgotten_when_many_others_were_followed() -> None:
    ahead = Readahead(PAGE, None)
    (window,) = walk(ahead, [0, 1, 2])
    for start in range(5000, 5000 + 100 * (STREAMS - BEGINNINGS), 100):
        assert len(walk(ahead, range(start, start + 3))) == 1
    assert ahead.windows(window.first) == []


def test_beginning_in_the_place_of_an_old_one_is_new() -> None:
    """The way of the old one must not count for it."""
    ahead = Readahead(PAGE, None)
    for start in range(0, 100 * BEGINNINGS, 100):
        assert walk(ahead, [start + 1, start]) == []
    for start in range(5000, 5000 + 100 * BEGINNINGS, 100):
        assert walk(ahead, [start]) == []
    assert walk(ahead, [5001]) == []
    assert walk(ahead, [5002]) == [(5003, 5003 + INITIAL, 1)]


def test_page_behind_the_marker_goes_on_too() -> None:
    """The marker itself was missed: the first page after the window continues."""
    ahead = Readahead(PAGE, None)
    (window,) = walk(ahead, [0, 1, 2])
    last, size = window.last, window.last - window.first
    assert ahead.windows(last) == [(last + 1, last + 1 + 2 * size, 1)]


@pytest.mark.parametrize("seen", [0, 1, NEAR])
@pytest.mark.parametrize("way", [1, -1])
def test_touch_within_a_window_is_there_by_chance(way: int, seen: int) -> None:
    """The windows of large sequences are a large part of a mapping."""
    ahead = Readahead(PAGE, None)
    _, windows = reader(ahead, 500, 500 + 300 * way)
    ((first, last, _), size) = windows[-1], LARGEST
    inside = range(first + NEAR + 1, last) if way > 0 else range(first, last - 1 - NEAR)
    for index in inside:
        assert ahead.windows(index) == []
    # Not the beginning of another one, either.
    assert walk(ahead, [5000, 5001]) == []
    # One that belongs to the reader: the marker, or a little later if that was mapped already.
    mark = first if way > 0 else last - 1
    found = (last, last + size, 1) if way > 0 else (first - size, first, -1)
    assert ahead.windows(mark + seen * way) == [found]
    new = found[1] if way > 0 else found[0] - 1
    (window,) = ahead.windows(new)
    assert abs((window.first if way > 0 else window.last - 1) - new) == 1, "nobody saw the marker"


def test_streams_that_take_turns_are_all_seen() -> None:
    """A sort reads from both ends at once."""
    ahead = Readahead(PAGE, None)
    ups, downs = range(50), range(949, 899, -1)
    windows = walk(ahead, [index for pair in zip(ups, downs, strict=True) for index in pair])
    assert {window.way for window in windows} == {1, -1}
    assert windows[:2] == [(3, 3 + INITIAL, 1), (947 - INITIAL, 947, -1)]


def test_small_budget_bounds_the_window() -> None:
    ahead = Readahead(PAGE, 8 * 3 * PAGE)
    _, windows = reader(ahead, 0, 200)
    assert {window.last - window.first for window in windows} == {3}


def test_windows_that_were_evicted_unread_are_made_smaller() -> None:
    ahead = Readahead(PAGE, None)
    reader(ahead, 0, 200)
    assert ahead.bound == LARGEST
    for _ in range(10):
        ahead.wasted()
    assert ahead.bound == INITIAL
    _, windows = reader(ahead, 1000, 1200)
    assert windows[-1].last - windows[-1].first == LARGEST, "and larger again when they are read"


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
    for index in indexes:
        for first, last, way in ahead.windows(index):
            assert 0 <= first < last
            assert index < first if way > 0 else last <= index
            assert (last - first) * page_size <= room
            # A window begins behind the page that asked for it, or behind the window before.
            near = first - index if way > 0 else index - last
            assert near <= 1 + room // page_size


@given(st.integers(0, 1000), st.integers(3, 3000))
def test_sequence_costs_few_faults(first: int, count: int) -> None:
    faults, windows = reader(Readahead(PAGE, None), first, first + count)
    assert faults <= 7 + count // LARGEST
    assert sum(window.last - window.first for window in windows) <= count + 2 * LARGEST


def test_windows_of_a_store_that_is_far_away_begin_large_and_grow_fast() -> None:
    far = 64 << 20
    _, windows = reader(Readahead(PAGE, None, far=far), 0, 10_000)
    sizes = [(window.last - window.first) * PAGE for window in windows]
    assert sizes[:4] == [far // 16, far // 2, far // 2, far // 2]
    assert max(sizes) == far // 2
    assert all(a.last == b.first for a, b in itertools.pairwise(windows))


@pytest.mark.parametrize("index", [0, 1])
def test_beginning_of_a_store_that_is_far_away_is_that_of_a_sequence(index: int) -> None:
    ahead = Readahead(PAGE, None, far=64 << 20)
    first = index + 1
    assert ahead.windows(index) == [(first, first + (4 << 20) // PAGE, 1)]
    assert ahead.windows(index) == [], "once"
    assert ahead.windows(500) == ahead.windows(501) == [], "and no other place"
    assert Readahead(PAGE, None).windows(index) == [], "nor that of a store nearby"
    assert Readahead(PAGE, 4 * PAGE, far=64 << 20).windows(index) == [], "nor without room"


@pytest.mark.parametrize("way", [1, -1])
def test_store_that_is_far_away_is_always_asked_for_two_windows_ahead(way: int) -> None:
    far, last = 64 << 20, 10_000
    ahead = Readahead(PAGE, None, far=far)
    largest = far // 2 // PAGE
    there: set[int] = set()
    markers: set[int] = set()
    for index in range(last)[::way]:
        if index in there and index not in markers:
            continue
        found = ahead.windows(index)
        for window in found:
            there |= set(range(window.first, window.last))
            markers.add(window.first if window.way > 0 else window.last - 1)
        before = (max(there) - index if way > 0 else index - min(there)) if there else 0
        grown = index > 1000 if way > 0 else index < last - 1000
        if found and grown and min(there) > 0:
            assert 2 * largest < before + 1 <= 3 * largest, (index, before)


@pytest.mark.parametrize("far", [0, 64 << 20])
@pytest.mark.parametrize("first, last", [(1, 5003), (5003, -1)])
@pytest.mark.parametrize("budget", [None, 67 * PAGE, 8 * 19 * PAGE])
def test_windows_end_where_joined_reads_do(
    far: int, first: int, last: int, budget: int | None
) -> None:
    align = 8
    ahead = Readahead(PAGE, budget, far=far, run_bytes=align * PAGE)
    _, windows = reader(ahead, first, last)
    ends = [(w.first, w.last)[:: w.way] for w in windows]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ends))
    large = [end for window, (_, end) in zip(windows, ends, strict=True)
             if window.last - window.first >= align]  # fmt: skip
    assert bool(large) is (ahead.largest >= align)
    assert not any(end % align for end in large)
    sizes = [window.last - window.first for window in windows]
    assert ahead.largest - align < max(sizes) <= ahead.largest
    # A window that is cut off is no reason for smaller ones after it.
    wanted = ahead.initial
    for size in sizes[:-1]:
        assert size > wanted - align
        wanted = min(ahead.growth * wanted, ahead.largest)


def test_window_of_a_store_that_is_far_away_takes_no_more_of_a_budget() -> None:
    budget = 16 << 20
    assert Readahead(PAGE, budget, far=64 << 20).largest * PAGE == budget // 8
    assert Readahead(PAGE, budget).largest * PAGE == budget // 8

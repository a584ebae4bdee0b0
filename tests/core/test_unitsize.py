"""What units are chosen for how a mapping is used: traces, played without a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.page import PG_AHEAD, PG_UPTODATE
from refault.memory.units import broken
from refault.memory.unitsize import UnitChooser

SMALL, LARGE = 4096, 65536
MIB = 1 << 20
SIZE = 64 * MIB
ROOM = 16 * MIB


class Player:
    """Brings in what a trace touches, evicts, reads ahead, changes units: all of it at once."""

    def __init__(self, *, readahead: bool = True, delay: int = 0, largest: int = LARGE) -> None:
        self.budget = Budget(ROOM)
        self.mapping = Mapping(
            1, "it", SIZE, LARGE, self.budget, private=False, writable=False, readahead=readahead
        )
        self.mapping.chooser = self.chooser = UnitChooser(SMALL, LARGE, largest, self.decided)
        self.trial = 4096
        self.delay = delay
        self.due: int | None = None
        self.faults = 0
        self.changes: list[tuple[int, int]] = []

    def decided(self) -> None:
        self.due = self.faults + self.delay

    def play(self, offsets: Iterable[int]) -> Player:
        for offset in offsets:
            mapping = self.mapping
            index = offset >> mapping.page_shift
            if mapping.flags[index] & (PG_UPTODATE | PG_AHEAD) == PG_UPTODATE:
                continue
            self.faults += 1
            if not mapping.flags[index] & PG_UPTODATE:
                self.bring_in(index)
            mapping.flags[index] &= ~PG_AHEAD
            ahead = mapping.readahead
            for window in ahead.windows(index) if ahead is not None else ():
                for other in range(window.first, min(window.last, mapping.pages)):
                    if not mapping.flags[other] & PG_UPTODATE:
                        mapping.counters.readahead += 1
                        self.bring_in(other)
                        mapping.flags[other] |= PG_AHEAD
            if self.due is not None and self.faults >= self.due:
                self.change()
        return self

    def bring_in(self, index: int) -> None:
        mapping = self.mapping
        while self.budget.try_charge(mapping.page_size) is not None:
            mapping.drop(mapping.working_set.victims(1, lambda _: True), ghost=True)
        mapping.flags[index] |= PG_UPTODATE
        mapping.entered((index,))

    def change(self) -> None:
        self.due = None
        wanted = self.chooser.wanted
        if wanted != self.mapping.page_size:
            self.mapping.drop(broken(self.mapping, wanted), ghost=False)
            self.mapping.set_page_size(wanted)
            self.changes.append((self.faults, wanted))


RANDOM = np.random.default_rng(7)


def uniform(count: int) -> Iterator[int]:
    yield from RANDOM.integers(0, SIZE, count).tolist()


def zipf(count: int) -> Iterator[int]:
    pages = SIZE // SMALL
    bounds = np.cumsum(np.arange(1, pages + 1) ** -0.99)
    ranks = np.searchsorted(bounds, RANDOM.random(count) * bounds[-1])
    places = np.random.default_rng(0).permutation(pages)
    yield from (places[np.minimum(ranks, pages - 1)] * SMALL).tolist()


def passes(count: int) -> Iterator[int]:
    for _ in range(count):
        yield from range(0, SIZE, SMALL)


def chunks(count: int, length: int) -> Iterator[int]:
    for at in RANDOM.integers(0, SIZE // length, count).tolist():
        yield from range(at * length, (at + 1) * length, SMALL)


def quicksort(low: int, high: int) -> Iterator[int]:
    """From both ends to the middle, then each part."""
    if high - low <= SMALL:
        return
    for at in range(0, (high - low) // 2, 1024):
        yield low + at
        yield high - 1 - at
    middle = low + int((high - low) * RANDOM.uniform(0.3, 0.7))
    yield from quicksort(low, middle)
    yield from quicksort(middle, high)


def test_popular_records_here_and_there() -> None:
    played = Player().play(zipf(200_000))
    assert [size for _, size in played.changes] == [SMALL]
    assert played.changes[0][0] < 3 * ROOM // LARGE


def test_anything_anywhere() -> None:
    """Nothing comes back soon: small units are cheaper all the same."""
    played = Player().play(uniform(100_000))
    assert [size for _, size in played.changes] == [SMALL]


def test_in_order() -> None:
    assert Player().play(passes(5)).changes == []


def test_sort() -> None:
    """A short phase may look scattered; it is found out at once that it is not."""
    played = Player().play(quicksort(0, SIZE))
    assert len(played.changes) in (0, 2), played.changes
    assert played.mapping.page_size == LARGE


def test_memory_is_not_full() -> None:
    assert Player().play(at % (ROOM // 2) for at in zipf(100_000)).changes == []


@pytest.mark.parametrize("readahead", [True, False])
def test_chunks(readahead: bool) -> None:
    """It looks like random use, and is dense: that is found out, and it is seldom tried again."""
    played = Player(readahead=readahead).play(chunks(40_000, LARGE))
    sizes = [size for _, size in played.changes]
    assert sizes == [SMALL, LARGE] * (len(sizes) // 2) + [SMALL] * (len(sizes) % 2)
    assert 2 <= len(sizes) <= 2 * 10
    times = [at for at, size in played.changes if size == SMALL]
    waited = np.diff(times) - played.trial
    assert (waited[2:] > waited[1:-1] * 1.6).all(), waited


def test_in_order_without_readahead() -> None:
    played = Player(readahead=False).play(passes(20))
    assert played.mapping.page_size == LARGE or played.chooser.wanted == LARGE
    assert 2 <= len(played.changes) <= 2 * 10


def test_few_pages_of_each_large_unit() -> None:
    """Two pages of sixteen are wanted: small units.  Twelve of sixteen: large ones."""

    def some(pages: int) -> Iterator[int]:
        for at in RANDOM.integers(0, SIZE // LARGE, 30_000).tolist():
            for page in RANDOM.permutation(16)[:pages].tolist():
                yield at * LARGE + page * SMALL

    assert [size for _, size in Player(readahead=False).play(some(2)).changes] == [SMALL]
    played = Player(readahead=False).play(some(12))
    large = sum(
        (b if b else played.faults) - a
        for (a, size), (b, _) in zip(
            [(0, LARGE), *played.changes], [*played.changes, (0, 0)], strict=True
        )
        if size == LARGE
    )
    assert played.mapping.page_size == LARGE or large * 16 > played.faults - large


def test_in_order_the_largest() -> None:
    played = Player(largest=4 * LARGE).play(passes(5))
    assert [size for _, size in played.changes] == [4 * LARGE]
    # Back in two steps.
    played.play(zipf(200_000))
    assert [size for _, size in played.changes] == [4 * LARGE, LARGE, SMALL]


def test_sort_with_the_largest() -> None:
    played = Player(largest=4 * LARGE).play(quicksort(0, SIZE))
    assert played.changes[0][1] == 4 * LARGE
    assert len(played.changes) <= 5, played.changes


def test_use_that_changes() -> None:
    played = Player()
    played.play(zipf(150_000))
    assert played.mapping.page_size == SMALL
    played.play(passes(2))
    assert played.mapping.page_size == LARGE
    played.play(zipf(150_000))
    assert played.mapping.page_size == SMALL
    assert len(played.changes) == 3, played.changes


def test_a_change_that_comes_late() -> None:
    """Pins, a slow store: it is decided once, and carried out whenever it can be."""
    played = Player(delay=2000)
    played.play(zipf(200_000))
    assert [size for _, size in played.changes] == [SMALL]

"""`WorkingSet` on traces that tell policies of eviction apart."""

from __future__ import annotations

import itertools
import random
from collections import deque

import pytest

from refault.memory.workingset import WorkingSet


def everything(index: int) -> bool:
    return True


def misses(touches: list[int], resident: int, batch: int = 1, tail: int | None = None) -> float:
    """The share that misses of the last `tail` touches; None: of the second half."""
    units = WorkingSet(max(touches) + 1, resident)
    missed = []
    for index in touches:
        missed.append(index not in units)
        if missed[-1]:
            if len(units) >= resident:
                units.remove_many(sorted(units.victims(batch, everything)), ghost=True)
            units.add(index)
    counted = missed[-(tail or len(missed) // 2) :]
    return sum(counted) / len(counted)


def fifo_misses(touches: list[int], resident: int, tail: int | None = None) -> float:
    present: set[int] = set()
    order: deque[int] = deque()
    missed = []
    for index in touches:
        missed.append(index not in present)
        if missed[-1]:
            if len(present) >= resident:
                present.remove(order.popleft())
            present.add(index)
            order.append(index)
    counted = missed[-(tail or len(missed) // 2) :]
    return sum(counted) / len(counted)


def zipf(units: int, count: int, seed: int) -> list[int]:
    places = list(range(units))
    random.Random(seed).shuffle(places)
    weights = [(rank + 1) ** -0.99 for rank in range(units)]
    return random.Random(seed).choices(places, weights, k=count)


@pytest.mark.parametrize("batch", [1, 16])
def test_zipf(batch: int) -> None:
    touches = zipf(4096, 80_000, 1)
    assert fifo_misses(touches, 1024) >= 1.25 * misses(touches, 1024, batch)


def test_zipf_whose_popular_units_become_others() -> None:
    touches = zipf(4096, 40_000, 1) + zipf(4096, 40_000, 2)
    assert fifo_misses(touches, 1024) >= 1.1 * misses(touches, 1024)


def test_scan_does_not_drive_out_what_is_used() -> None:
    chance = random.Random(1)
    touches = []
    for at in range(40_000):
        touches += [chance.randrange(512), 512 + at % 3584]
    # The scan always misses: half of all.
    assert misses(touches, 1024) < 0.51
    assert fifo_misses(touches, 1024) > 0.65


def test_uniform_touches_miss_no_more() -> None:
    chance = random.Random(1)
    touches = [chance.randrange(4096) for _ in range(40_000)]
    assert misses(touches, 1024) < 1.02 * fifo_misses(touches, 1024)


def test_what_is_used_no_more_makes_room() -> None:
    """A hot set that has moved, with one touch in ten anywhere: the new one is in at the end."""
    chance = random.Random(1)

    def touches(start: int, count: int) -> list[int]:
        return [
            start + chance.randrange(682) if chance.random() < 0.9 else chance.randrange(4096)
            for _ in range(count)
        ]

    first, second = touches(0, 40_000), touches(2048, 20_000)
    late = [*first, *second]
    assert misses(late, 1024, tail=5000) < 0.8 * fifo_misses(late, 1024, tail=5000)


def test_hot_set_that_moves_again_and_again() -> None:
    """Every three turnovers of the memory: high levels full of what was hot would be a burden."""
    chance = random.Random(1)
    touches = [
        (start + chance.randrange(682) if chance.random() < 0.9 else chance.randrange(4096)) % 4096
        for start in (0, 1536, 3072, 512, 2048, 1024, 2560)
        for _ in range(15_000)
    ]
    tail = 6 * 15_000
    assert misses(touches, 1024, tail=tail) < 0.95 * fifo_misses(touches, 1024, tail=tail)


def test_quicksort() -> None:
    """Where frequency means nothing, not much is lost against FIFO, which is the best there."""
    chance = random.Random(1)
    touches: list[int] = []
    parts = [(0, 4096)]
    while parts:
        first, last = parts.pop()
        if last - first < 3:
            touches += range(first, last)
            continue
        middle = first + int((last - first) * chance.uniform(0.35, 0.65))
        middle = min(max(middle, first + 1), last - 1)
        up, down = range(first, middle), range(last - 1, middle - 1, -1)
        touches += [at for pair in itertools.zip_longest(up, down) for at in pair if at is not None]
        parts += [(middle, last), (first, middle)]
    ours = misses(touches, 1024, tail=len(touches))
    assert ours < 1.2 * fifo_misses(touches, 1024, tail=len(touches))

"""Which units of memory a program touches: numbers of units, in the order of the touches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "Units",
    "moving",
    "places",
    "quicksort",
    "rounds",
    "scan_and_hot",
    "shifting_zipf",
    "uniform",
    "zipf",
]

Units = npt.NDArray[np.uint64]


def places(units: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Where a unit lies, by its rank in popularity."""
    return np.random.default_rng(seed).permutation(units)


def zipf(units: int, count: int, exponent: float, seed: int, place: int = 0) -> Units:
    """Popularity follows Zipf's law; popular units are scattered, as the number `place` says."""
    bounds = np.cumsum(np.arange(1, units + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(bounds, np.random.default_rng(seed).random(count) * bounds[-1])
    return np.asarray(places(units, place)[np.minimum(ranks, units - 1)], np.uint64)


def shifting_zipf(units: int, count: int, exponent: float) -> Units:
    """Half way other units become the popular ones."""
    halves = [zipf(units, count // 2, exponent, seed, seed) for seed in (5, 6)]
    return np.concatenate(halves)


def uniform(units: int, count: int) -> Units:
    """Every unit as often as any other."""
    return np.random.default_rng(3).integers(0, units, count).astype(np.uint64)


def rounds(units: int, count: int) -> Units:
    """From the first to the last, and again."""
    return np.arange(count, dtype=np.uint64) % np.uint64(units)


def scan_and_hot(units: int, count: int) -> Units:
    """Every second touch goes on with a scan of seven eighths; the others are in the rest."""
    hot = units // 8
    touches = np.empty(count, np.uint64)
    touches[0::2] = np.random.default_rng(3).integers(0, hot, len(touches[0::2]))
    touches[1::2] = hot + np.arange(len(touches[1::2])) % (units - hot)
    return touches


def moving(units: int, count: int, starts: tuple[float, ...]) -> Units:
    """Nine in ten touches are in a hot sixth, which moves from one of `starts` to the next."""
    random = np.random.default_rng(3)
    parts = []
    for start in starts:
        size = count // len(starts)
        hot = int(start * units) + random.integers(0, units // 6, size)
        other = random.integers(0, units, size)
        parts.append(np.where(random.random(size) < 0.9, hot, other).astype(np.uint64))
    return np.concatenate(parts)


def quicksort(units: int) -> Units:
    """Two ends go towards each other, then the parts between are sorted in the same way."""
    random = np.random.default_rng(3)
    touches: list[npt.NDArray[np.int64]] = []
    parts = [(0, units)]
    while parts:
        first, last = parts.pop()
        if last - first <= 2:
            touches.append(np.arange(first, last))
            continue
        middle = first + int((last - first) * random.uniform(0.35, 0.65))
        middle = min(max(middle, first + 1), last - 1)
        size = max(middle - first, last - middle)
        ends = np.full((size, 2), -1)
        ends[: middle - first, 0] = np.arange(first, middle)
        ends[: last - middle, 1] = np.arange(last - 1, middle - 1, -1)
        touches.append(ends[ends >= 0])
        parts += [(middle, last), (first, middle)]
    return np.concatenate(touches).astype(np.uint64)

"""Part 1: 64 GiB of zeros, written to all over, and read back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

import refault

from .plan import Plan
from .report import Result
from .tally import Tally
from .witness import Witness

__all__ = ["scatter_over_zeros"]

T = TypeVar("T")
Words: TypeAlias = npt.NDArray[np.uint32]
Places: TypeAlias = npt.NDArray[np.int64]

THREADS: Final = 2
PLACE: Final = 1024
"""Words of a place that is written to: 4 KiB."""
BATCH: Final = 128
"""Places that are written or read by one call of numpy."""
PIECE: Final = 1 << 20
"""Words that are written or read by one call of numpy, where this goes in order."""


def scatter_over_zeros(plan: Plan, progress: Callable[[str], None]) -> Result:
    """Write to random places and to a long stretch, and compare all of it."""
    array = refault.zeros(plan.zeros_shape, "f4", resident=plan.zeros_resident)
    region = refault.region(array)
    words = array.view("u4")  # not every pattern of bits is a number, but all are compared
    stretch = plan.most_stretch // words.itemsize
    tally = Tally()
    with Witness() as witness:
        places = words[stretch:].reshape(-1, PLACE)
        progress(f"writing to random places, from {THREADS} threads")
        written = write_places(places, plan)
        progress(f"reading {len(written):,} places back, in another order")
        check_places(places, written, tally)
        progress("reading places where nothing was written")
        check_zeros(places, written, tally)
        progress("writing in order")
        stretch, seconds_to_write = write_in_order(words[:stretch], plan)
        progress("reading in order")
        seconds_to_read = check_in_order(words[:stretch], tally)
        statistics = region.statistics()
    return Result(
        title="64 GiB of zeros",
        nbytes=array.nbytes,
        statistics=statistics,
        peak_seen=witness.peak,
        write_rate=stretch * words.itemsize / seconds_to_write,
        read_rate=stretch * words.itemsize / seconds_to_read,
        checked=tally.checked,
        wrong=tally.wrong,
    )


def pattern(where: Places) -> Words:
    """What is written to places: every word depends on where it is, and none is zero."""
    index: npt.NDArray[np.uint64] = (where[:, None] * PLACE + np.arange(PLACE)).astype(np.uint64)
    index *= np.uint64(0x9E3779B97F4A7C15)
    index >>= np.uint64(32)
    return index.astype(np.uint32) | np.uint32(1)


def write_places(places: Words, plan: Plan) -> Places:
    """Write to random places until the time is over; return where."""
    end = time.monotonic() + plan.seconds
    least, most = plan.least_places // THREADS, plan.most_places // THREADS

    def work(number: int, stop: threading.Event) -> Places:
        random = np.random.default_rng(number)
        written: list[Places] = []
        count = 0
        while count < least or (count < most and time.monotonic() < end and not stop.is_set()):
            where = random.integers(0, len(places), BATCH)
            places[where] = pattern(where)
            written.append(where)
            count += BATCH
        return np.concatenate(written)

    return np.unique(np.concatenate(in_threads(work)))


def check_places(places: Words, written: Places, tally: Tally) -> None:
    """Compare all places that were written to."""
    shuffled = np.random.default_rng(THREADS).permutation(written)

    def work(number: int, stop: threading.Event) -> None:
        mine = shuffled[number::THREADS]
        for start in range(0, len(mine), BATCH):
            if stop.is_set():
                return
            where = mine[start : start + BATCH]
            tally.compare(places[where], pattern(where))

    in_threads(work)


def check_zeros(places: Words, written: Places, tally: Tally) -> None:
    """Compare places that were not written to: neighbours of those that were, and others."""
    neighbours = written[:: max(1, len(written) // 1024)] ^ 1
    others = np.random.default_rng(THREADS + 1).integers(0, len(places), 1024)
    untouched = np.setdiff1d(np.concatenate([neighbours, others]), written)
    untouched = untouched[untouched < len(places)]
    for start in range(0, len(untouched), BATCH):
        where = untouched[start : start + BATCH]
        tally.compare(places[where], np.zeros((len(where), PLACE), np.uint32))


def first_piece() -> Words:
    """What the first words hold; a piece that begins at word n holds n more.

    Four words in a row are alike, so that swap finds something to compress.
    """
    return np.arange(PIECE, dtype=np.uint32) // np.uint32(4)


def write_in_order(words: Words, plan: Plan) -> tuple[int, float]:
    """Write to all words, or until the time is over; return how many, and the seconds it took."""
    piece = first_piece()
    least = plan.least_stretch // words.itemsize
    done = 0
    began = time.monotonic()
    while done < least or (done < len(words) and time.monotonic() < began + plan.seconds):
        np.add(piece, np.uint32(done), out=words[done : done + PIECE])
        done += PIECE
    return done, time.monotonic() - began


def check_in_order(words: Words, tally: Tally) -> float:
    """Compare what `write_in_order` wrote; return the seconds it took."""
    piece = first_piece()
    began = time.monotonic()
    for start in range(0, len(words), PIECE):
        tally.compare(words[start : start + PIECE], piece + np.uint32(start))
    return time.monotonic() - began


def in_threads(work: Callable[[int, threading.Event], T]) -> list[T]:
    """Call `work` in all threads; if one fails, or on Ctrl-C, the others stop soon."""
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, number, stop) for number in range(THREADS)]
        try:
            return [future.result() for future in futures]
        finally:
            stop.set()

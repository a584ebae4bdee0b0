"""What is measured of a way to save an array while a thread writes to it; see `cases.snapshots`."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.instants import Way, make
from benchmarks.machine import warm_memory
from benchmarks.model import Missing
from benchmarks.stats import latencies
from benchmarks.touch import Offsets, Toucher, shuffled
from benchmarks.writer import PIECE, Writer

__all__ = ["first_element", "first_writes", "save", "slow_down", "stop"]

RATE = 200e6
"""Bytes per second."""
LEAD_SECONDS = 0.02
SLOW_BYTES, FAST_BYTES = 24 << 30, 256 << 30
"""What may be written until it is saved, at that rate or as fast as it goes."""
ALLOWED_BYTES, ALLOWED_SHARE = 64 << 20, 0.02
"""Extra memory: so much, and such a share of what is dirtied meanwhile."""
TWICE = ("torch",)
MOST_TWICE = 4 << 30


def stop(way: str, size: int, share: float, seconds: float, folder: str) -> dict[str, float]:
    """Take an instant while a thread dirties 200 MB/s, and hold it for some seconds."""
    with _prepared(way, size, folder, SLOW_BYTES) as (state, writer, random, path):
        begin = time.monotonic_ns()
        writer.start(random, RATE)
        time.sleep(seconds)
        quiet = writer.stop().longest(begin, time.monotonic_ns())
        _dirty(state, writer, share)
        writer.start(random, RATE)
        time.sleep(LEAD_SECONDS)
        begin = time.monotonic_ns()
        pause = state.take(writer, path)
        taken = time.monotonic_ns()
        time.sleep(seconds)
        found = writer.stop()
        end = time.monotonic_ns()
        state.save()
        state.close()
        writer.check_instant(state.saved())
    return {
        "stop": found.longest(begin, taken),
        "after": found.longest(taken, end),
        "quiet": quiet,
        "call": (taken - begin) / 1e6,
        "pause": pause,
    }


def save(way: str, size: int, share: float, folder: str) -> dict[str, float]:
    """Save an array of which a share is dirty, while a thread dirties 200 MB/s."""
    with _prepared(way, size, folder, SLOW_BYTES) as (state, writer, random, path):
        _dirty(state, writer, share)
        state.settle()
        writer.start(random, RATE)
        time.sleep(LEAD_SECONDS)
        begin = time.monotonic_ns()
        state.take(writer, path)
        saved = state.save()
        end = time.monotonic_ns()
        found = writer.stop()
        extra = state.extra()
        state.close()
        writer.check_instant(state.saved())
    dirtied = found.dirtied(begin, end)
    return {
        "longest": found.longest(begin, end),
        "seconds": (end - begin) / 1e9,
        "saved": saved / 2**20,
        "dirtied": dirtied / 2**20,
        "extra": extra / 2**20,
        "extra_share": extra / (ALLOWED_BYTES + ALLOWED_SHARE * dirtied),
    }


def slow_down(way: str, size: int, seconds: float, folder: str) -> dict[str, float]:
    """Save an array while a thread writes as fast as it can."""
    with _prepared(way, size, folder, FAST_BYTES) as (state, writer, random, path):
        begin = time.monotonic_ns()
        writer.start(random)
        time.sleep(seconds)
        alone = writer.stop().rate(begin, time.monotonic_ns())
        state.clean()
        writer.start(random)
        time.sleep(LEAD_SECONDS)
        begin = time.monotonic_ns()
        state.take(writer, path)
        state.save()
        end = time.monotonic_ns()
        found = writer.stop()
        state.close()
        writer.check_instant(state.saved())
    meanwhile = found.rate(begin, end)
    return {
        "slowdown": alone / meanwhile,
        "alone": alone / 1e6,
        "meanwhile": meanwhile / 1e6,
        "longest": found.longest(begin, end),
        "seconds": (end - begin) / 1e9,
    }


def first_writes(unit: int, units: int, snapshots: int) -> dict[str, float]:
    """Write to each unit of an array while a snapshot is held, again and again."""
    import refault

    warm_memory(2 * unit * units)
    array = refault.empty(unit * units, "u1", page_size=unit)
    array[:] = np.frombuffer(np.random.default_rng(9).bytes(array.nbytes), "u1")
    toucher, offsets = Toucher(array), shuffled(units, unit)
    region = refault.region(array)
    nanoseconds, found = 0, []
    for _ in range(snapshots):
        before = region.statistics()
        with refault.snapshot(array):
            done = toucher.touch(offsets, "write")
            if region.statistics().copies != array.nbytes:
                raise RuntimeError("not all was copied, or not all is in memory")
        nanoseconds += done.ns
        if done.latencies is not None:
            found.append(done.latencies)
        asked = region.statistics().retries_write_protect - before.retries_write_protect
        if asked != units:
            raise RuntimeError(f"{asked} writes waited for a copy, of {units}")
    each = latencies(np.concatenate(found)) if found else {}
    return {"us": nanoseconds / 1000 / units / snapshots} | each


@contextlib.contextmanager
def _prepared(
    name: str, size: int, folder: str, most: int
) -> Iterator[tuple[Way, Writer, Offsets, pathlib.Path]]:
    """An array all of which has been written to, random pieces of it, and where to save it."""
    if name in TWICE and size > MOST_TWICE:
        raise Missing("not measured: needs the memory twice")
    warm_memory(size)
    path = pathlib.Path(folder, "saved")
    random = np.random.default_rng(7)
    pieces = random.integers(0, size // PIECE, most // PIECE).astype(np.uint64) * np.uint64(PIECE)
    state = make(name, size)
    writer = Writer(state.array, max(len(pieces), size // PIECE))
    writer.write(np.arange(0, size, PIECE, dtype=np.uint64))
    try:
        yield state, writer, pieces, path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


def _dirty(state: Way, writer: Writer, share: float) -> None:
    """Let a share of the pieces be dirty, and all others not."""
    state.clean()
    pieces = np.random.default_rng(8).permutation(writer.pieces)
    writer.write(pieces[: max(1, round(share * len(pieces)))].astype(np.uint64) * np.uint64(PIECE))


def first_element(way: str, path: str) -> dict[str, float]:
    """Open a ``.npy`` file and look at an element in the middle."""
    import refault

    opener: Any = refault.open if way == "refault" else np.load
    begin = time.perf_counter_ns()
    array = opener(path)
    value = float(array[len(array) // 2])
    ns = time.perf_counter_ns() - begin
    if value != 1:
        raise RuntimeError(f"read {value}")
    return {"ms": ns / 1e6}

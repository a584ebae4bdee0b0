"""An object behind a server that answers after 30 ms: in order, at random, its first element.

In order: the sum of all of a ``.npy`` of float64.  Compared with obstore alone, which gets the same
bytes in ranges of as many bytes, as many at a time, and sums them too.  Once the server sends 500
MB/s, all together (4 Gbit/s, a good link of a cloud machine), once as much as it can: then it is
the CPUs that are measured, which server and readers share.

At random: 1,000 rows of 4 KiB, each once.  "take" is `refault.take`; "index" is ``table[rows]``,
one page fault after the other; "prefetch" tells the region row by row what comes, and then indexes.
fsspec's ``mmap`` cache (blocks of 5 MiB, its default) reads one row after the other: it cannot be
told.  It may keep all of the file, and after 205 requests it has.

The first element: of 4 GiB, from `refault.open` to the value of the last element, in requests and
in the time of a request.  The pager runs already (it takes 0.1 s to start, once for a program), and
the program has opened another object before (obstore takes some 20 ms to load, in both processes).
"first of all" has not.

Fair: all contenders have 256 MiB; fsspec's cache has no bound, and may grow on disk.  The pager, a
process of its own, uses the same CPUs.  Opening is in the time of the first element alone.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import pathlib
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.child import contender
from benchmarks.files import npy_file
from benchmarks.model import Comparison, Goal, Measure, Missing, Settings
from benchmarks.range_server import serving

__all__ = [
    "comparisons",
    "first_element",
    "read_obstore",
    "read_refault",
    "rows_fsspec",
    "rows_refault",
]

MIB = 1 << 20
LATENCY = 0.03
RATE = 500e6
ROW = 4096
RESIDENT = 256 * MIB


def comparisons(settings: Settings) -> Iterator[Comparison]:
    size = settings.size(1024 * MIB, 64 * MIB)
    path = str(npy_file(settings.tmpfs, size))
    for name, rate, goals in (
        ("500 MB/s", RATE, [Goal("refault", "throughput", "obstore", at_least=0.8)]),
        ("as fast as it can", 0.0, []),
    ):
        yield Comparison(
            f"in order, {size >> 20} MiB, 30 ms away, {name}",
            [
                contender("refault", read_refault, path=path, rate=rate),
                contender("obstore", read_obstore, path=path, rate=rate),
            ],
            [Measure("throughput", "MB/s", digits=0), Measure("seconds", "s")],
            goals,
            baseline="obstore",
        )
    rows = settings.size(1000, 20)
    yield Comparison(
        f"{rows} rows of 4 KiB at random, 30 ms away",
        [
            contender("refault.take", rows_refault, path=path, rows=rows, how="take"),
            contender("refault, prefetch", rows_refault, path=path, rows=rows, how="prefetch"),
            contender("refault, index", rows_refault, path=path, rows=rows, how="index"),
            contender("fsspec mmap", rows_fsspec, path=path, rows=rows),
        ],
        [Measure("seconds", "s"), Measure("requests", "", digits=0)],
        [Goal("refault.take", "seconds", "fsspec mmap", at_most=0.2, why="5 times as fast")],
        baseline="fsspec mmap",
    )
    large = sparse_file(settings.tmpfs, settings.size(4096 * MIB, 64 * MIB))
    yield Comparison(
        f"first element of {large.stat().st_size >> 20} MiB, 30 ms away",
        [
            contender("refault", first_element, path=str(large), warm=True),
            contender("refault, first of all", first_element, path=str(large), warm=False),
        ],
        [Measure("requests", "", digits=0), Measure("round_trips", "x 30 ms")],
        [
            Goal("refault", "requests", at_most=2),
            Goal("refault", "round_trips", at_most=3),
        ],
    )


def sparse_file(folder: pathlib.Path, size: int) -> pathlib.Path:
    """A ``.npy`` of zeros that takes no room, with 1 at its end."""
    path = folder / f"sparse-{size}.npy"
    if not path.exists():
        array = np.lib.format.open_memmap(path, mode="w+", dtype="f8", shape=(size // 8,))
        array[-1] = 1
    return path


def read_refault(path: str, rate: float) -> dict[str, float]:
    """Sum a region."""
    _need("obstore")
    import refault

    with serving(path, latency=LATENCY, rate=rate) as server:
        array = refault.open(server.url, resident=RESIDENT)
        begin = time.perf_counter()
        total = array.sum()
        seconds = time.perf_counter() - begin
        if total != array.size:
            raise RuntimeError(f"wrong sum: {total}")
        return {"throughput": array.nbytes / seconds / 1e6, "seconds": seconds}


def read_obstore(path: str, rate: float) -> dict[str, float]:
    """Get all ranges with obstore alone, as many at a time as refault does, and sum them."""
    _need("obstore")
    import obstore
    from obstore.store import HTTPStore

    from refault.stores import Policy

    policy = Policy()
    size = os.path.getsize(path)
    with serving(path, latency=LATENCY, rate=rate) as server:
        store = HTTPStore(server.root, client_options={"allow_http": True})

        def get(start: int) -> float:
            end = min(start + policy.read_bytes, size)
            found = obstore.get(store, server.name, options={"range": (start, end)}).bytes()
            first = 128 if start == 0 else 0
            return float(np.frombuffer(memoryview(found), "f8", offset=first).sum())

        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(policy.parallel) as threads:
            total = sum(threads.map(get, range(0, size, policy.read_bytes)))
        seconds = time.perf_counter() - begin
        if total != (size - 128) // 8:
            raise RuntimeError(f"wrong sum: {total}")
        return {"throughput": size / seconds / 1e6, "seconds": seconds}


def rows_refault(path: str, rows: int, how: str) -> dict[str, float]:
    """Read rows of a region."""
    _need("obstore")
    import refault

    with serving(path, latency=LATENCY) as server:
        array = refault.open(server.url, resident=RESIDENT)
        region = refault.region(array)
        table = array.reshape(-1, ROW // 8)
        chosen = _chosen(len(table), rows)
        before = server.requests()
        begin = time.perf_counter()
        if how == "prefetch":
            for row in chosen:
                region.prefetch(table[row])
        found = refault.take(table, chosen, axis=0) if how == "take" else table[chosen]
        total = found.sum()
        return _rows_found(begin, total, rows, server.requests() - before)


def rows_fsspec(path: str, rows: int) -> dict[str, float]:
    """Read rows of a file through fsspec's ``mmap`` cache."""
    _need("fsspec", "aiohttp")
    import fsspec  # type: ignore[import-untyped]

    with serving(path, latency=LATENCY) as server:
        with fsspec.open(server.url, "rb", cache_type="mmap").open() as file:
            chosen = _chosen((file.size - 128) // ROW, rows)
            before = server.requests()
            begin = time.perf_counter()
            total = 0.0
            for row in chosen:
                file.seek(128 + int(row) * ROW)
                total += np.frombuffer(file.read(ROW), "f8").sum()
            return _rows_found(begin, total, rows, server.requests() - before)


def first_element(path: str, warm: bool) -> dict[str, float]:
    """Open an object and read its last element."""
    _need("obstore")
    import refault

    refault.zeros(1)[0] = 1
    with serving(path, latency=LATENCY) as server:
        if warm:
            refault.open(server.url, resident=RESIDENT)
        before = server.requests()
        begin = time.perf_counter()
        last = refault.open(server.url, resident=RESIDENT)[-1]
        seconds = time.perf_counter() - begin
        if last != 1:
            raise RuntimeError(f"wrong element: {last}")
        return {"requests": server.requests() - before, "round_trips": seconds / LATENCY}


def _need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise Missing(f"needs {module}; pip install -e '.[objects,fsspec]' aiohttp")


def _chosen(there: int, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(1).choice(there, rows, replace=False)


def _rows_found(begin: float, total: float, rows: int, requests: int) -> dict[str, float]:
    seconds = time.perf_counter() - begin
    if total != rows * ROW // 8:
        raise RuntimeError(f"wrong sum: {total}")
    return {"seconds": seconds, "requests": requests}

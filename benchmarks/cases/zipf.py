"""Zipf(0.99) reads of 64 bytes over 4 GiB with 1 GiB resident, two threads.

The popularity of the file's 4 KiB pages follows Zipf's law with exponent 0.99; the pages are
scattered over the file at random, and which 64 bytes of a page are read is random too.  Not
counted: the most popular pages are touched in the file's order until the memory is full, and then
24 million reads bring eviction to its steady state: a policy that learns from what comes back needs
some turnovers of the memory for it, and what it has learned comes and goes in waves at first
(`refault.memory.workingset`).

Compared: refault with 4 KiB units (what fits the pattern), and with default settings; `np.memmap`
in a memory cgroup of the same bound, as it is and with MADV_RANDOM (no readahead: what fits the
pattern).

What is not the same: a page that refault has evicted may still be in the kernel's page cache, which
its bound does not count.  So there is also refault *with all of it in the same cgroup* (3/4 of the
bound resident, the rest for the interpreters and page cache).  In the cgroups the file is out of
the page cache at the beginning; for the others it is in it.  One whose page cache is not bounded
reads from memory, the others from the disk: compare within each kind.

Nor is the number of reads the same. What is not counted ends after 24 million reads or
`WARM_SECONDS`, what is counted after four million or `SECONDS`, whichever comes first: with the
kernel's readahead around every fault a memory-mapped file of which a quarter fits would take an
hour. A throughput is a rate, and "reads" tells how many it is from; but who is cut short had fewer
reads to bring eviction to its steady state too, and has more of the most popular pages still in
memory, which is to its advantage.

*Eviction*: refault with 4 KiB units against the same with plain first-in-first-out eviction in the
pager (its `WorkingSet` replaced by `benchmarks.pagers.Fifo`, nothing else).  They differ by a third
at most, and a shared machine by as much from one minute to the next; so both are brought to their
steady state, with 36 million reads, and then go on in turn, in slices of 300,000 or three seconds.
From memory, where a miss costs little, and *from the disk*, where it costs a read: there the file
is dropped from the page cache four times a second while it is counted.  Single reads are not timed.

Which accesses miss, by policy of eviction, without any clock: `benchmarks.cases.policies`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.child import contender, staying
from benchmarks.files import drop, numbers_file, warm
from benchmarks.machine import warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Settings
from benchmarks.pagers import use_fifo_pager
from benchmarks.stats import latencies
from benchmarks.touch import Offsets, Touched, Toucher, scattered, zipf

if TYPE_CHECKING:
    import refault

__all__ = ["comparisons", "read_in_slices", "read_memmap", "read_refault"]

MIB = 1 << 20
PAGE = 4096
RECORD = 64
EXPONENT = 0.99
THREADS = 2
WARM = 6
"""So many times as many reads as are counted are not."""
WARM_SECONDS = 90.0
"""How long the reads that are not counted may take.  With 12 s they are three million, and an
eviction that learns is not better than FIFO yet: 16.9 misses of 100 reads against 17.2, and 12.4
after 24 million (simulated)."""
SECONDS = 12.0
"""How long those that are counted may take."""
SLICES, SLICE, SLICE_SECONDS = 40, 300_000, 3.0
"""How many slices, how many reads are in one, and how long it may take."""
SLICES_WARM, SLICES_WARM_SECONDS = 120, 180.0
"""So many times as many reads as are in a slice go before the first, if there is the time."""
DROP_SECONDS = 0.25
FIRST, MOST = 1_000, 64_000
"""Reads between two looks at the clock: at first, and at most."""
CHUNK = 1_000_000


def comparisons(settings: Settings) -> Iterator[Comparison]:
    size = settings.size(4096 * MIB, 64 * MIB)
    resident = size // 4
    touches = settings.size(4_000_000, 20_000)
    path = numbers_file(settings.data, size)
    bound = resident + 64 * MIB
    base: dict[str, Any] = {"path": str(path), "size": size, "touches": touches}
    hot, cold = functools.partial(warm, path), functools.partial(drop, path)

    def ours(name: str, page: int | None, room: int, **more: Any) -> Contender:
        return contender(name, read_refault, resident=room, page=page, **base, **more)

    def mapped(name: str, *, random: bool) -> Contender:
        return contender(
            name,
            read_memmap,
            before=cold,
            group=bound,
            resident=resident,
            random=random,
            **base,
        )

    throughput = Measure("throughput", "1000 reads/s")
    counts = [Measure("reads", "", 0), Measure("missed", "%")]
    bounded = f"memmap in {bound >> 20} MiB"
    small, strict = "refault, 4 KiB units", f"refault, 4 KiB units, all in {bound >> 20} MiB"
    title = f"Zipf({EXPONENT}) over {size >> 20} MiB in {resident >> 20} MiB"
    yield Comparison(
        f"{title}, {THREADS} threads",
        [
            ours(small, PAGE, resident, before=hot),
            ours("refault", None, resident, before=hot),
            mapped(bounded, random=False),
            mapped(f"{bounded}, MADV_RANDOM", random=True),
            ours(strict, PAGE, resident * 3 // 4, before=cold, group=bound),
        ],
        [throughput, Measure("p50", "us"), Measure("p99", "us"), *counts],
        [
            Goal("refault", "throughput", bounded, at_least=1.0),
            Goal(small, "throughput", bounded, at_least=1.0),
            Goal(strict, "throughput", bounded, at_least=1.0),
        ],
        baseline=bounded,
    )
    for where, disk in (("from memory", False), ("from the disk", True)):
        sliced = base | {
            "touches": settings.size(SLICE, 5_000),
            "resident": resident,
            "disk": disk,
        }
        yield Comparison(
            f"{title}, {THREADS} threads: eviction, {where}",
            [
                staying(small, read_in_slices, before=hot, fifo=False, **sliced),
                staying("FIFO", read_in_slices, before=hot, fifo=True, **sliced),
            ],
            [throughput, *counts],
            [Goal(small, "throughput", "FIFO", at_least=1.3)],
            baseline="FIFO",
            slices=settings.size(SLICES, 2),
        )


def zipf_offsets(size: int, count: int, seed: int) -> Iterator[Offsets]:
    """Where to read: offsets of 64-byte records, `CHUNK` at a time.

    All at once they, and what they are made from, would be a gigabyte, and charged to the cgroup of
    those who read in one.
    """
    random = np.random.default_rng(seed)
    for at in range(0, count, CHUNK):
        part = min(CHUNK, count - at)
        found = zipf(size // PAGE, part, EXPONENT, random) * np.uint64(PAGE)
        records = random.integers(0, PAGE // RECORD, part, dtype=np.uint64)
        yield found + records * np.uint64(RECORD)


def read_refault(
    path: str, size: int, touches: int, resident: int, page: int | None
) -> dict[str, float]:
    """Read from a region."""
    import refault

    warm_memory(resident // 2)
    array = refault.open(path, dtype="u8", resident=resident, page_size=page)
    region = refault.region(array)
    before: list[int] = []
    found = _read(array, size, touches, resident, lambda: before.append(region.statistics().faults))
    return found | _missed(region, before[0], found["reads"], resident)


def read_in_slices(
    path: str, size: int, touches: int, resident: int, fifo: bool, disk: bool
) -> Iterator[dict[str, float]]:
    """Read from a region, and go on doing so, `touches` at a time."""
    import refault

    if fifo:
        use_fifo_pager()
    warm_memory(resident // 2)
    array = refault.open(path, dtype="u8", resident=resident, page_size=PAGE)
    region = refault.region(array)
    toucher = Toucher(array, words=RECORD // 8)
    _warm_up(toucher, size, resident, SLICES_WARM * touches, SLICES_WARM_SECONDS)
    for number in itertools.count():
        offsets = zipf_offsets(size, touches, 20 + number)
        before = region.statistics().faults
        with _dropping(path) if disk else contextlib.nullcontext():
            found = _counted(_touch_for_a_while(toucher, offsets, SLICE_SECONDS, record=False))
        yield found | _missed(region, before, found["reads"], resident, fifo=fifo)


def _missed(
    region: refault.Region, before: int, reads: float, resident: int, *, fifo: bool = False
) -> dict[str, float]:
    """How many of `reads` were faults, since there had been `before` of them."""
    seen = region.statistics()
    if seen.peak_resident > resident or (fifo and seen.refaults):
        raise RuntimeError(f"not what was to be measured: {seen}")
    missed = 100 * (seen.faults - before) / reads
    return {"missed": missed, "faults": seen.faults, "refaults": seen.refaults}


def read_memmap(
    path: str, size: int, touches: int, resident: int, random: bool
) -> dict[str, float]:
    """Read from a memory-mapped file."""
    array = np.memmap(path, "u8", "r")
    if random:
        base: Any = array
        while not isinstance(base, mmap.mmap):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        base.madvise(mmap.MADV_RANDOM)
    return _read(array, size, touches, resident)


@contextlib.contextmanager
def _dropping(path: str) -> Iterator[None]:
    """Drop a file from the page cache, again and again, as long as the block lasts."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(DROP_SECONDS):
            drop(pathlib.Path(path))

    drop(pathlib.Path(path))
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _read(
    array: Any, size: int, touches: int, resident: int, begin: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Touch the array; `begin` is called when what is counted begins."""
    toucher = Toucher(array, words=RECORD // 8)
    _warm_up(toucher, size, resident, WARM * touches, WARM_SECONDS)
    begin()
    offsets = zipf_offsets(size, touches, 20)
    return _counted(_touch_for_a_while(toucher, offsets, SECONDS, record=True))


def _warm_up(toucher: Toucher, size: int, resident: int, touches: int, seconds: float) -> None:
    """Fill the memory with what is popular, and let eviction come to its steady state."""
    popular = np.sort(scattered(size // PAGE)[: resident // PAGE]).astype(np.uint64)
    toucher.touch(popular * np.uint64(PAGE), record=False)
    _touch_for_a_while(toucher, zipf_offsets(size, touches, 10), seconds, record=False)


def _counted(done: Sequence[tuple[int, Touched]]) -> dict[str, float]:
    """What pieces have shown together."""
    reads = sum(count for count, _ in done)
    seen = [one.latencies for _, one in done if one.latencies is not None]
    found = {"reads": float(reads), "throughput": reads * 1e6 / sum(one.ns for _, one in done)}
    return found | (latencies(np.concatenate(seen)) if seen else {})


def _touch_for_a_while(
    toucher: Toucher, chunks: Iterable[Offsets], seconds: float, *, record: bool
) -> list[tuple[int, Touched]]:
    """Touch piece after piece until all is done or the time is up; of each, how many.

    Parameters
    ----------
    record
        Whether the time of each touch is taken, which takes time itself, and has each of them end
        before the next begins.
    """
    deadline = time.monotonic() + seconds
    done: list[tuple[int, Touched]] = []
    size = FIRST
    for offsets in chunks:
        at = 0
        while at < len(offsets):
            if time.monotonic() >= deadline:
                return done
            piece = offsets[at : at + size]
            touched = toucher.touch_in_threads(np.array_split(piece, THREADS), record=record)
            done.append((len(piece), touched))
            at += len(piece)
            if touched.ns < seconds * 1e9 / 20:
                size = min(2 * size, MOST)
    return done

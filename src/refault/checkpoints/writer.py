"""Writing the changed chunks of one instant into a session of Icechunk."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .codec import encode
from .grid import Grid
from .instant import Instant
from .layout import Layout, arrays_in, create, read
from .tip import KnownArray, Tip, digest
from .uploads import Uploads

if TYPE_CHECKING:
    from icechunk import IcechunkStore

__all__ = ["Writer"]

REQUESTS = 128
"""Chunks that are on their way at a time: with fewer, threads sleep and are woken for each."""
IN_FLIGHT = 32 << 20
"""Bytes of these chunks, at most."""
READ = 2 << 20
"""Bytes of chunks that are read from the instant with one request."""
THREADS = 2
"""One waits for the pager while the other one works on what is there."""
FAST = -1
"""Level of zstd for an array that was stored compressed, if no level is given now."""

Batch: TypeAlias = tuple[str, list[int]]
"""Numbers of chunks of one array."""


class Changed(NamedTuple):
    """A chunk that the session does not hold yet."""

    number: int
    digest: bytes
    stored: bytes


class Writer:
    """Writes one instant; the session is committed by somebody else.

    What is known of the branch's tip is not changed: `arrays` is what will be known if the
    commit succeeds.

    Parameters
    ----------
    instant
        What to write.
    layouts
        Of its arrays, by name.
    tip
        What is known of what the session holds; None: nothing.
    level
        Of zstd, for arrays that are compressed; None: the default.
    progress
        Is told bytes done, and bytes in all.

    Attributes
    ----------
    arrays
        What the session holds afterwards.
    written
        Bytes of chunks that were written.
    """

    def __init__(
        self,
        instant: Instant,
        layouts: dict[str, Layout],
        tip: Tip | None,
        level: int | None,
        progress: Callable[[int, int], None],
    ) -> None:
        self.arrays: dict[str, KnownArray] = {}
        self.written = 0
        self._instant = instant
        self._layouts = layouts
        self._tip = {} if tip is None else tip.arrays
        self._level = FAST if level is None else level
        self._progress = progress
        self._lock = threading.Lock()

    def write(self, store: IcechunkStore, attributes: dict[str, Any]) -> None:
        """Make what the session holds equal to the instant.

        Parameters
        ----------
        store
            Of the session.
        attributes
            Of its root group.
        """
        import zarr

        group = zarr.open_group(store, mode="a")
        group.update_attributes(attributes)
        stored = {name: read(array) for name, array in arrays_in(store)}
        for name in stored.keys() - self._layouts.keys():
            del group[name]
        work = [(name, self._prepare(store, name, stored.get(name))) for name in self._layouts]
        total = sum(_length(self.arrays[name].layout.grid, numbers) for name, numbers in work)
        self._done, self._total = 0, total
        self._progress(0, total)
        self._write_all(store, work)

    def close(self) -> None:
        """Give back what `arrays` has, after a commit that failed."""
        for known in self.arrays.values():
            known.close()

    def _prepare(self, store: IcechunkStore, name: str, stored: Layout | None) -> list[int]:
        """Say which chunks of an array may be different from what the session holds."""
        layout = self._layouts[name]
        before = self._tip.get(name)
        if stored is not None and layout.like(stored):
            layout = stored
        else:
            create(store, name, layout, self._level if layout.compressed else None)
            before = None
        known = KnownArray(layout)
        if before is not None:
            known.digests[:] = before.digests
        self.arrays[name] = known
        known.place = self._instant.places[name]
        known.mark = self._instant.mark(name)
        if before is not None and before.mark is not None and before.place == known.place:
            return list(layout.grid.overlapping(self._instant.changed(name, before.mark)))
        return list(range(layout.grid.chunks))

    def _write_all(self, store: IcechunkStore, work: list[tuple[str, list[int]]]) -> None:
        """A few threads do all that is to be done with a chunk, one batch after the other."""
        batches = deque(self._batches(work))
        largest = max((self.arrays[name].layout.grid.chunk_bytes for name, _ in work), default=1)
        width = min(THREADS, max(1, IN_FLIGHT // largest))
        most = max(1, min(REQUESTS, IN_FLIGHT // largest) // width)
        with ThreadPoolExecutor(width, "refault-checkpoints") as threads:
            running = [
                threads.submit(asyncio.run, self._write_batches(store, batches, most))
                for _ in range(width)
            ]
        for one in running:
            one.result()

    def _batches(self, work: list[tuple[str, list[int]]]) -> Iterator[Batch]:
        """Chunks in order, so many that each thread has some."""
        for name, numbers in work:
            room = READ // self.arrays[name].layout.grid.chunk_bytes
            most = max(1, min(room, -(-len(numbers) // THREADS)))
            for first in range(0, len(numbers), most):
                yield name, numbers[first : first + most]

    async def _write_batches(self, store: IcechunkStore, batches: deque[Batch], most: int) -> None:
        """Write what changed, with `most` chunks on their way; after a failure nobody goes on."""
        put = store._store.set  # the other half of Icechunk would copy each chunk once more
        try:
            async with Uploads(most) as uploads:
                while (batch := _take(batches)) is not None:
                    name, numbers = batch
                    known = self.arrays[name]
                    written = 0
                    for one in self._changed(name, numbers):
                        key = f"{name}/{known.layout.grid.key(one.number)}"
                        await uploads.add(functools.partial(put, key, one.stored))
                        known.remember(one.number, one.digest)
                        written += len(one.stored)
                    self._count(_length(known.layout.grid, numbers), written)
        except BaseException:
            batches.clear()
            raise

    def _count(self, done: int, written: int) -> None:
        with self._lock:
            self._done += done
            self.written += written
            self._progress(self._done, self._total)

    def _changed(self, name: str, numbers: list[int]) -> Iterator[Changed]:
        """Encode those of some chunks that have changed, each when it is asked for."""
        known = self.arrays[name]
        grid = known.layout.grid
        level = self._level if known.layout.compressed else None
        spans = [grid.span(number) for number in numbers]
        for number, data in zip(numbers, self._instant.read(name, spans), strict=True):
            found = digest(data)
            if found != known.digest(number):
                yield Changed(number, found, encode(data, grid.chunk_bytes, level))


def _take(batches: deque[Batch]) -> Batch | None:
    try:
        return batches.popleft()
    except IndexError:
        return None


def _length(grid: Grid, numbers: Iterable[int]) -> int:
    return sum(stop - start for start, stop in map(grid.span, numbers))

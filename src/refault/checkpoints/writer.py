"""Writing the changed chunks of one instant into a session of Icechunk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from .codec import encode
from .grid import Grid
from .instant import Instant
from .layout import Layout, arrays_in, create, read
from .tip import KnownArray, Tip, digest

if TYPE_CHECKING:
    from icechunk import IcechunkStore

__all__ = ["Writer"]

IN_FLIGHT = 32 << 20
"""Bytes of chunks that are worked on or on their way, at a time."""
THREADS = 2
"""That encode: one waits for the pager while the other one works on what is there."""
FAST = -1
"""Level of zstd for an array that was stored compressed, if no level is given now."""


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
    requests
        Chunks that are on their way at a time, at most.
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
        requests: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.arrays: dict[str, KnownArray] = {}
        self.written = 0
        self._instant = instant
        self._layouts = layouts
        self._tip = {} if tip is None else tip.arrays
        self._level = FAST if level is None else level
        self._requests = requests
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
        asyncio.run(self._write_all(store, work))

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

    async def _write_all(self, store: IcechunkStore, work: list[tuple[str, list[int]]]) -> None:
        largest = max((self.arrays[name].layout.grid.chunk_bytes for name, _ in work), default=1)
        writers = max(1, min(self._requests, IN_FLIGHT // largest))
        batches = self._batches(work, writers)
        with ThreadPoolExecutor(THREADS, "refault-checkpoints") as threads:
            tasks = [
                asyncio.ensure_future(self._write_some(store, batches, threads))
                for _ in range(writers)
            ]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    def _batches(
        self, work: list[tuple[str, list[int]]], writers: int
    ) -> Iterator[tuple[str, list[int]]]:
        """Chunks in order, so many that all writers have some."""
        for name, numbers in work:
            room = IN_FLIGHT // writers // self.arrays[name].layout.grid.chunk_bytes
            most = max(1, min(room, -(-len(numbers) // writers)))
            for first in range(0, len(numbers), most):
                yield name, numbers[first : first + most]

    async def _write_some(
        self,
        store: IcechunkStore,
        batches: Iterator[tuple[str, list[int]]],
        threads: ThreadPoolExecutor,
    ) -> None:
        """Write chunks one after the other, while others do the same."""
        from zarr.core.buffer.cpu import Buffer

        loop = asyncio.get_running_loop()
        for name, numbers in batches:
            known = self.arrays[name]
            for one in await loop.run_in_executor(threads, self._encode, name, numbers):
                key = f"{name}/{known.layout.grid.key(one.number)}"
                await store.set(key, Buffer.from_bytes(one.stored))
                self.written += len(one.stored)
                known.remember(one.number, one.digest)
            self._progress(self._done, self._total)

    def _encode(self, name: str, numbers: Sequence[int]) -> list[Changed]:
        """In a thread: encode those of some chunks that have changed."""
        known = self.arrays[name]
        grid = known.layout.grid
        level = self._level if known.layout.compressed else None
        spans = [grid.span(number) for number in numbers]
        changed = []
        for number, data in zip(numbers, self._instant.read(name, spans), strict=True):
            found = digest(data)
            if found != known.digest(number):
                changed.append(Changed(number, found, encode(data, grid.chunk_bytes, level)))
        with self._lock:
            self._done += sum(stop - start for start, stop in spans)
        return changed


def _length(grid: Grid, numbers: Iterable[int]) -> int:
    return sum(stop - start for start, stop in map(grid.span, numbers))

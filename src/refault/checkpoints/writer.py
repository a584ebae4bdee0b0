"""Writing the changed chunks of one instant into a session of Icechunk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .ahead import Ahead
from .codec import encode
from .grid import Grid
from .instant import Instant
from .layout import Layout, arrays_in, create, read
from .tip import KnownArray, Tip, digest

if TYPE_CHECKING:
    from icechunk import IcechunkStore

__all__ = ["Writer"]

IN_FLIGHT = 64 << 20
"""Bytes of chunks that are on their way at a time."""
REQUESTS = 128
"""Chunks that are on their way at a time, at most."""
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
        self._pending: set[asyncio.Future[None]] = set()
        with Ahead(self._encode) as ahead:
            try:
                for name, numbers in work:
                    await self._write_array(store, name, numbers, ahead)
                await self._wait_until(0)
            finally:
                for one in self._pending:
                    one.cancel()

    async def _write_array(
        self, store: IcechunkStore, name: str, numbers: list[int], ahead: Ahead[list[Changed]]
    ) -> None:
        from zarr.core.buffer.cpu import Buffer

        known = self.arrays[name]
        grid = known.layout.grid
        most = max(1, min(REQUESTS, IN_FLIGHT // grid.chunk_bytes))
        for changed in ahead.results(name, grid, numbers):
            for number, found, stored in changed:
                await self._wait_until(most - 1)
                call = store.set(f"{name}/{grid.key(number)}", Buffer.from_bytes(stored))
                self._pending.add(asyncio.ensure_future(call))
                self.written += len(stored)
                known.remember(number, found)
            self._progress(self._done, self._total)

    def _encode(self, name: str, grid: Grid, numbers: Sequence[int]) -> list[Changed]:
        """In a thread: encode those of some chunks that have changed."""
        known = self.arrays[name]
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

    async def _wait_until(self, most: int) -> None:
        """Wait until no more than `most` chunks are on their way."""
        while len(self._pending) > most:
            done, self._pending = await asyncio.wait(
                self._pending, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                one.result()


def _length(grid: Grid, numbers: Iterable[int]) -> int:
    return sum(stop - start for start, stop in map(grid.span, numbers))

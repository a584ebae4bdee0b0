"""Where the pages of a loaded array come from; this lives in the pager.

Of Icechunk only its compiled half is imported: with the Python half come zarr and numpy, 0.2 to
0.4 s, for which the first page would have to wait.  That half and asyncio are imported by a thread
of its own: the store itself is unpickled where the pager serves everybody.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from refault.errors import StoreError

from .codec import Damaged, decode
from .grid import Grid

if TYPE_CHECKING:
    import asyncio

    from icechunk import Session

__all__ = ["COMPILED", "CheckpointStore", "compiled_icechunk", "session_bytes"]

COMPILED = "icechunk._icechunk_python"
KEPT = 4 << 20
"""Bytes of decoded chunks that a store keeps: a chunk may be read in several pieces."""
AT_ONCE = 64 << 20
"""Bytes of chunks that are asked for at a time."""


class CheckpointStore:
    """An array of a checkpoint: the bytes of its memory.

    Parameters
    ----------
    session
        A read-only session of Icechunk, as bytes.
    path
        Of the array in it.
    grid
        Its chunks.
    compressed
        Whether the chunks are.
    name
        How messages call it.
    """

    def __init__(
        self, session: bytes, path: str, grid: Grid, *, compressed: bool, name: str
    ) -> None:
        self.session = session
        self.path = path
        self.grid = grid
        self.compressed = compressed
        self.name = name
        self._prepare()

    @property
    def size(self) -> int:
        return self.grid.nbytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer`, or raise."""
        end = offset + len(buffer)
        numbers = list(self.grid.overlapping([(offset, end)]))
        most = max(1, AT_ONCE // self.grid.chunk_bytes)
        for first in range(0, len(numbers), most):
            some = numbers[first : first + most]
            for number, data in zip(some, self._chunks(some), strict=True):
                start, stop = self.grid.span(number)
                low, high = max(start, offset), min(stop, end)
                buffer[low - offset : high - offset] = memoryview(data)[low - start : high - start]

    def _chunks(self, numbers: list[int]) -> list[bytes]:
        """Decoded chunks."""
        found: dict[int, bytes] = {}
        with self._lock:
            for number in numbers:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    found[number] = self._kept[number]
        missing = [number for number in numbers if number not in found]
        if missing:
            stored = _loop().run_until_complete(self._fetch(missing))
            for number, chunk in zip(missing, stored, strict=True):
                found[number] = self._decode(number, chunk)
            self._keep((number, found[number]) for number in missing)
        return [found[number] for number in numbers]

    async def _fetch(self, numbers: list[int]) -> list[bytes]:
        import asyncio

        source = _source(self.session)
        return await asyncio.gather(*(self._get(source, number) for number in numbers))

    async def _get(self, source: Any, number: int) -> bytes:
        try:
            return bytes(await source.get(self._key(number)))
        except KeyError as error:
            # For Zarr a chunk that is not there is zeros; we store those, too.
            raise self._damaged(number, "it is gone") from error

    def _decode(self, number: int, stored: bytes) -> bytes:
        try:
            return decode(stored, self.grid.chunk_bytes, compressed=self.compressed)
        except Damaged as error:
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, problem: str) -> StoreError:
        return StoreError(
            f"{self._key(number)} is damaged: {problem}; load an earlier checkpoint, and see what"
            " else is damaged with `refault checkpoints verify`",
            permanent=True,
        )

    def _keep(self, chunks: Iterable[tuple[int, bytes]]) -> None:
        with self._lock:
            self._kept.update(chunks)
            while len(self._kept) > 1 and len(self._kept) * self.grid.chunk_bytes > KEPT:
                self._kept.popitem(last=False)

    def _key(self, number: int) -> str:
        return f"{self.path}/{self.grid.key(number)}"

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()
        _open_ahead(self.session)


def session_bytes(session: Session) -> bytes:
    """A read-only session, for `CheckpointStore`: what Icechunk itself pickles."""
    return session._session.as_bytes()


@cache
def compiled_icechunk() -> ModuleType:
    """Icechunk's compiled half, as it is imported by the other half later, if at all."""
    loaded = sys.modules.get(COMPILED)
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("icechunk")
    where = package and package.submodule_search_locations
    spec = where and importlib.machinery.PathFinder.find_spec(COMPILED, list(where))
    if not spec or spec.loader is None:
        return importlib.import_module(COMPILED)
    module = importlib.util.module_from_spec(spec)
    sys.modules[COMPILED] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[COMPILED]
        raise
    return module


@lru_cache(maxsize=16)
def _source(session: bytes) -> Any:
    """One for all arrays of a checkpoint, which have the manifests in common."""
    return compiled_icechunk().PySession.from_bytes(session).store


@lru_cache(maxsize=16)
def _open_ahead(session: bytes) -> None:
    """Once for all arrays of a checkpoint; a page that is wanted waits for the imports."""

    def work() -> None:
        with contextlib.suppress(Exception):  # who reads a page is told
            import asyncio  # noqa: F401

            _source(session)

    threading.Thread(target=work, name="refault-checkpoint", daemon=True).start()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of this thread."""
    import asyncio

    loop: asyncio.AbstractEventLoop | None = getattr(_threads, "loop", None)
    if loop is None:
        loop = _threads.loop = asyncio.new_event_loop()
    return loop


_threads = threading.local()

"""Chunks that are on their way to where checkpoints are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

__all__ = ["Uploads"]


class Uploads:
    """So many at a time; none is left when the context ends, well or not.

    Parameters
    ----------
    most
        How many.
    """

    def __init__(self, most: int) -> None:
        self._slots = asyncio.Semaphore(most)
        self._pending: set[asyncio.Future[None]] = set()
        self._error: BaseException | None = None

    async def add(self, start: Callable[[], Awaitable[None]]) -> None:
        """Start one as soon as there is room; raise what has gone wrong with an earlier one."""
        await self._slots.acquire()
        if self._error is not None:
            raise self._error
        upload = asyncio.ensure_future(start())
        self._pending.add(upload)
        upload.add_done_callback(self._end)

    def _end(self, upload: asyncio.Future[None]) -> None:
        self._pending.discard(upload)
        self._slots.release()
        self._error = self._error or upload.exception()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pending:
            await asyncio.wait(self._pending)
        # Callbacks of the last ones run after those who wait for them.
        await asyncio.sleep(0)
        if error is None and self._error is not None:
            raise self._error

"""A lock for each chunk, without an object for each chunk."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterable, Iterator

__all__ = ["ChunkLocks"]

STRIPES = 64


class ChunkLocks:
    """Locks by key; keys may share one."""

    def __init__(self) -> None:
        self._stripes = [threading.Lock() for _ in range(STRIPES)]

    @contextlib.contextmanager
    def hold(self, keys: Iterable[Hashable]) -> Iterator[None]:
        """Hold the locks of all `keys`; always taken in one order, so nobody waits in a circle."""
        with contextlib.ExitStack() as stack:
            for number in sorted({hash(key) % STRIPES for key in keys}):
                stack.enter_context(self._stripes[number])
            yield

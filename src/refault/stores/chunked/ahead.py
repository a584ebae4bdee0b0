"""Whether reads follow on each other, and what will be wanted next."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Ahead"]

READS = 16
"""So many reads may be on their way in other order than they were asked for."""


class Ahead:
    """Sees reads that follow on each other; for many threads.

    Parameters
    ----------
    count
        How many elements there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._ends: deque[int] = deque(maxlen=READS)
        self._next = 0

    def follows(self, first: int, count: int) -> bool:
        """Note a read of `count` elements from `first` on; whether it follows on another one."""
        with self._lock:
            follows = first in self._ends
            self._ends.append(first + count)
            return follows

    def is_next(self, block: int) -> bool:
        """Whether there is a block that begins with an element, and nobody was told so yet."""
        with self._lock:
            if block >= self._count or block == self._next:
                return False
            self._next = block
            return True

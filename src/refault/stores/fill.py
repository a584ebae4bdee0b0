"""A store without a place: a pattern, repeated."""

from __future__ import annotations

import functools

from refault.errors import UsageError

from .base import Bytes
from .ranges import check_range

__all__ = ["FillStore"]

_BLOCK = 64 << 10


@functools.lru_cache(maxsize=8)
def _block(pattern: bytes) -> bytes:
    """Whole patterns, so that a copy may go on at the block's beginning.

    One more than a block needs, so that a usual page is one copy; and one block for all
    stores of a pattern, for there may be thousands.
    """
    return pattern * (_BLOCK // len(pattern) + 2 if len(pattern) < _BLOCK else 1)


class FillStore:
    """Byte ``i`` is ``pattern[i % len(pattern)]``.

    Parameters
    ----------
    size
        Bytes in the store.
    pattern
        At least one byte; any length.
    """

    name = "fill"

    def __init__(self, size: int, pattern: bytes) -> None:
        if not pattern:
            raise UsageError("the fill pattern is empty; give at least one byte")
        if size < 0:
            raise UsageError(f"the size of a fill store is {size}; give 0 or more bytes")
        self.size = size
        self._period = len(pattern)
        self._block = memoryview(_block(bytes(pattern)))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the pattern as it stands at `offset`."""
        length = len(buffer)
        check_range(self, offset, length, "read")
        block = self._block
        start = offset % self._period
        done = 0
        while done < length:
            count = min(length - done, len(block) - start)
            buffer[done : done + count] = block[start : start + count]
            done += count
            start = 0

    def where(self, page_size: int) -> Bytes | None:
        """The bytes of a unit, if they are the same in every unit."""
        if page_size % self._period or page_size > len(self._block):
            return None
        return Bytes(constant=self._block)

    def read_nowait(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer`; a pattern never waits."""
        self.read_into(offset, buffer)
        return True

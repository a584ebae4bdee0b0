"""A store of the demo's own: it computes its bytes, and some reads fail.

Any object with a ``size`` and a ``read_into`` is a store.  It is pickled and used in the
pager process, so its class is in a module that can be imported there.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["BLOCK", "FailingStore", "content"]

BLOCK: Final = 64 << 10
UNLUCKY: Final = 400
"""One block in so many cannot be read at first."""


def content(block: int) -> bytes:
    """The bytes of one block."""
    return hashlib.shake_128(block.to_bytes(8, "little")).digest(BLOCK)


class FailingStore:
    """Raises for the first, or the first few, reads of some blocks.

    Parameters
    ----------
    size
        In bytes.
    """

    name = "failing store"

    def __init__(self, size: int) -> None:
        self.size = size
        self.failures: dict[int, int] = {}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on, or raise."""
        done = 0
        while done < len(buffer):
            block, skip = divmod(offset + done, BLOCK)
            self.perhaps_fail(block)
            part = content(block)[skip : skip + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def perhaps_fail(self, block: int) -> None:
        """Raise, but not for ever."""
        number, rest = divmod(block, UNLUCKY)
        failures = self.failures.get(block, 0)
        if rest == UNLUCKY // 2 and failures <= number % 3:
            self.failures[block] = failures + 1
            raise OSError(f"block {block} is not ready (this demo does it on purpose)")

"""Memory of decoded blocks, used again: fresh memory costs half as much as decoding into it.

The kernel clears each page of it when it is first touched, and takes it back when it is freed.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BlockMemory"]

LEAST_PART = 2
"""What is smaller than one over so much of a block gets memory of its own."""


class BlockMemory:
    """Arrays of about one size, whose memory comes back when nobody has them any more.

    Parameters
    ----------
    size
        Bytes of the largest array that is to be used again.
    spare
        The most bytes that wait for the next array.
    """

    def __init__(self, size: int, spare: int) -> None:
        self.size = size
        self.most = spare // max(1, size)
        # Several threads take from it and add to it, one at any moment within an allocation.
        self._spare: deque[npt.NDArray[np.uint8]] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes that wait for the next array."""
        return len(self._spare) * self.size

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array that lies together ("C"), with whatever is in it."""
        length = math.prod(shape) * dtype.itemsize
        if not self.most or not self.size // LEAST_PART <= length <= self.size or not length:
            return np.empty(shape, dtype)
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(self.size, np.uint8)
        lent = np.asarray(_Lent(self, memory))
        return lent[:length].view(dtype).reshape(shape)

    def give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        """Nobody has any part of `memory`."""
        if len(self._spare) < self.most:
            self._spare.append(memory)


class _Lent:
    """Whose memory an array and all its views have: it ends with the last one of them."""

    def __init__(self, owner: BlockMemory, memory: npt.NDArray[np.uint8]) -> None:
        self._owner = owner
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._owner.give_back(self._memory)

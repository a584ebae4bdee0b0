"""What swap is: where pages go that no store would take back."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeAlias

__all__ = ["Key", "SwapSpace", "load_part"]

Key: TypeAlias = tuple[Hashable, Hashable]
"""(owner, index): an owner's pages can be discarded together."""


class SwapSpace(Protocol):
    """Keeps pages; any number of threads may use it."""

    def store_all(self, pages: Sequence[tuple[Key, memoryview]]) -> None:
        """Keep copies of pages, instead of what was kept under their keys, or raise.

        What was not kept is not what was there before either: it is missing.
        """

    def load_all(self, pages: Sequence[tuple[Key, memoryview]]) -> None:
        """Fill buffers with pages, which stay, or raise."""

    def load_nowait(self, key: Key, buffer: memoryview) -> bool:
        """Fill `buffer` if that needs no waiting."""

    def discard_all(self, owner: Hashable) -> None:
        """Forget all pages of an owner, without waiting for anything."""

    def close(self) -> None:
        """Forget everything, and give everything back."""


def load_part(swap: SwapSpace, key: Key, size: int, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` with a part of a page of `size` bytes, which stays, or raise."""
    if len(buffer) == size:
        swap.load_all([(key, buffer)])
        return
    whole = memoryview(bytearray(size))
    swap.load_all([(key, whole)])
    buffer[:] = whole[offset : offset + len(buffer)]

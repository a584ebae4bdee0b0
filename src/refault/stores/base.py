"""What a store is: the place where the pages of a mapping come from.

A store lives in the pager process.  Its methods are called from the pager's
worker threads, several at a time, never from the program whose pages they
fill; so they may block, and may hold the pager's GIL for a while, without
stopping a page fault of another region.

Only `size` and `read_into` are required.  A store without `write_from` can be
opened with mode ``"r"`` and ``"c"`` only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from refault.errors import StoreError

__all__ = [
    "Bytes",
    "Key",
    "NowaitStore",
    "Store",
    "SwapSpace",
    "WritableStore",
    "check_range",
    "store_name",
]

Key: TypeAlias = tuple[Hashable, Hashable]
"""(owner, index) of a page in swap: an owner's pages can be discarded together."""


@runtime_checkable
class Store(Protocol):
    """Where pages come from.

    Attributes
    ----------
    size
        Bytes in the store.  Asked once, when the store is opened.
    """

    @property
    def size(self) -> int: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes from `offset` on, or raise.

        A short read is an error: a store that cannot fill the buffer raises,
        and no byte of the buffer is used.  `StoreError(permanent=True)` says
        that asking again is of no use; any other exception is asked again.
        """


@runtime_checkable
class WritableStore(Store, Protocol):
    """A store that changed pages are written back to."""

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Store all of `buffer` at `offset`, or raise."""

    def flush(self) -> None:
        """Make everything written so far durable, or raise."""


@runtime_checkable
class NowaitStore(Store, Protocol):
    """A store that can tell whether a read would have to wait."""

    def read_nowait(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` if that needs no waiting; False if it would.

        Called from the pager's event loop: it must never block.  After False
        the content of `buffer` is undefined.
        """


class SwapSpace(Protocol):
    """Where pages go that no store would take back."""

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


class Bytes(NamedTuple):
    """Where a store's bytes can be had without asking the store.

    A store that has a method ``where(page_size)`` returns this, or None.

    Attributes
    ----------
    constant
        Every unit holds these bytes; they are as long as a unit at least.
    fd
        A file that holds them, at the same offsets; -1: there is none.
    mapped
        Whether the file may be mapped, and copied from there.
    memory
        Whether reading the file never waits.
    """

    constant: bytes | memoryview = b""
    fd: int = -1
    mapped: bool = False
    memory: bool = False


def store_name(store: object) -> str:
    """How messages name `store`: its ``name``, or its class."""
    return str(getattr(store, "name", None) or type(store).__qualname__)


def check_range(store: Store, offset: int, length: int, verb: str) -> None:
    """See that bytes lie in `store`.

    Parameters
    ----------
    store
        Which one.
    offset, length
        The bytes.
    verb
        What is to be done with them: "read" or "write".

    Raises
    ------
    StoreError
        They are not in it.
    """
    if not 0 <= offset <= store.size - length:
        raise StoreError(
            f"{store_name(store)}: cannot {verb} {length} bytes at offset {offset}: the store ends"
            f" at {store.size}; ask for less",
            permanent=True,
        )

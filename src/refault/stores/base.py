"""What a store is: the place where the pages of a mapping come from.

A store lives in the pager process.  Its methods are called from the pager's
worker threads, several at a time, never from the program whose pages they
fill; so they may block, and may hold the pager's GIL for a while, without
stopping a page fault of another region.

Only `size` and `read_into` are required.  A store without `write_from` can be
opened with mode ``"r"`` and ``"c"`` only.  A store may have a ``name``, which messages
use, and a ``version``: anything that is another one when the content is.
docs/stores.md tells what happens when it fails.

What else a store may have, each on its own:

``writable``, ``readonly``
    False if it cannot be changed although it has `write_from`, and a text that says why.
``buffered``
    True if what was written is safe after `flush` only; then the pager calls it at the end, too.
``fetch(offset, length)``
    Returns a buffer of its own with so many bytes, or a list of buffers that follow on each other,
    and is asked instead of `read_into`: for libraries that allocate what they return.  If it
    returns None, `read_into` is asked.
``parallel``
    How many reads at a time suit it; 8 if it does not say.  An eighth of them, and one at least if
    there are two, is left to pages that somebody waits for.
``read_bytes``
    How many bytes of neighbouring pages should be joined to one read, at most 2 MiB; 1 MiB if it
    does not say.
``ahead_bytes``
    How many bytes to ask for ahead of who reads in order, if a quarter of the budget has room for
    them: what keeps the store busy, because it is far away or has much to do.
    ``parallel * read_bytes`` if it says both of them; else as for a file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from refault.errors import StoreError

__all__ = [
    "Bytes",
    "NowaitStore",
    "Store",
    "WritableStore",
    "check_range",
    "is_writable",
    "store_name",
    "store_version",
]


@runtime_checkable
class Store(Protocol):
    """Where pages come from.

    Attributes
    ----------
    size
        Bytes in the store.  Asked once, when the store is opened.

    Notes
    -----
    A store that knows what array it holds has attributes ``dtype`` and ``shape`` as well, and
    ``order`` if that may be "F": then nobody has to give them to `refault.open`.
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


def store_version(store: object) -> str:
    """Text that is another one when the content of `store` is; empty if it does not say."""
    version = getattr(store, "version", None)
    return "" if version is None else str(version)


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


def is_writable(store: object) -> bool:
    """Whether `store` has ``write_from`` and does not say ``writable = False``."""
    return callable(getattr(store, "write_from", None)) and bool(getattr(store, "writable", True))

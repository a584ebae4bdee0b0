"""What the libraries have in common: a chunked array, and where it is to be found."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from refault.errors import StoreError, UsageError

from .grid import Rectangle

__all__ = [
    "ChunkedArray",
    "Empty",
    "Facts",
    "FileVersion",
    "Place",
    "Remote",
    "check_dtype",
    "require",
    "sync",
    "wrong_key",
]

_libc = ctypes.CDLL(None, use_errno=True)


Empty: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
"""What makes an array with whatever is in it, as `numpy.empty` does."""


class Facts(NamedTuple):
    """What an array says of itself, when it is opened.

    Attributes
    ----------
    chunks
        The least that can be decoded.
    write_chunks
        The least that can be encoded: as large as `chunks`, or larger.
    order
        Of the array that the library itself returns.
    version
        Another one if the content is another one; None: there is no telling.
    together
        Bytes of chunks that lie side by side in memory and should be decoded with one call, if a
        chunk is not larger.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]
    order: str = "C"
    version: str | None = None
    together: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ChunkedArray(Protocol):
    """An open array of one of the libraries; for many threads."""

    facts: Facts

    def read(self, rectangle: Rectangle, empty: Empty = np.empty) -> npt.NDArray[Any]:
        """Return a rectangle of elements that lies together ("C"), or raise.

        `empty` makes the array, where it need not be the library's own.
        """

    def read_into(self, rectangle: Rectangle, out: npt.NDArray[Any]) -> None:
        """Fill `out`, which lies together ("C"), with a rectangle of elements, or raise."""

    def write(self, rectangle: Rectangle, values: npt.NDArray[Any]) -> None:
        """Change a rectangle of elements, or raise; the caller has locked its chunks."""

    def flush(self) -> None:
        """Make what was written durable, or raise."""

    def close(self) -> None:
        """Close what was opened."""

    def is_permanent(self, error: BaseException) -> bool:
        """Whether to ask again is of no use after `error`."""


class Place(Protocol):
    """Where an array is, so that another process can open it; it is pickled."""

    @property
    def name(self) -> str:
        """How messages name it."""

    @property
    def far(self) -> bool:
        """Whether it is behind a network."""

    def open(self, *, writable: bool) -> ChunkedArray:
        """Open it."""


class Remote(NamedTuple):
    """How to reach what has a URL.

    Attributes
    ----------
    with_obstore
        Whether obstore speaks its protocol; fsspec otherwise.
    """

    with_obstore: bool
    storage_options: Mapping[str, Any]


class FileVersion:
    """A file that must stay as it is while it is read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found = self._look()

    def _look(self) -> tuple[int, ...]:
        status = os.stat(self.path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def __str__(self) -> str:
        return "-".join(map(str, self.found))

    def check(self) -> None:
        """See that nobody has changed it.

        Raises
        ------
        StoreError
            Somebody has, so what was read may be of two versions.
        """
        if self._look() != self.found:
            raise StoreError(
                f"{self.path}: was changed while it is open for reading; open it again",
                permanent=True,
            )


def require(module: str, extra: str) -> Any:
    """Import a library.

    Raises
    ------
    UsageError
        It is not installed.
    """
    try:
        found: ModuleType = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this array needs {module}, which cannot be imported ({error}); "
            f"pip install 'refault[{extra}]'"
        ) from error
    return found


def check_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return `dtype`, if its elements can lie in memory as they are.

    Raises
    ------
    UsageError
        They are Python objects, strings of any length, or have no size.
    """
    if dtype.hasobject:
        raise UsageError(
            f"{name}: dtype {dtype} has elements of no fixed size (strings of any length, objects),"
            " which cannot be paged; store it with a fixed length, as 'S8' or 'U8'"
        )
    if dtype.subdtype is not None:
        raise UsageError(
            f"{name}: its elements are arrays themselves ({dtype}); store it with one axis more"
        )
    if not dtype.itemsize:
        raise UsageError(f"{name}: dtype {dtype} has no size; store it with another one")
    return dtype


def sync(path: str) -> None:
    """Make everything durable that was written to the filesystem of `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def wrong_key(name: str, key: str | None, found: Iterable[str]) -> str:
    """What to say if a file or group has no array of that key, or it is not said which."""
    names = [repr(one) for one in itertools.islice(found, 21)]
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    what = "has several arrays or none; say which with key" if key is None else f"no array {key!r}"
    return f"{name}: {what}; it has {listed or 'no arrays'}"

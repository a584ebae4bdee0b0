"""A local file by its path: a store that travels to the pager by itself."""

from __future__ import annotations

import os
import stat
import threading
from typing import Any

from refault.errors import StoreError, UsageError

from .file import FileStore, file_version

__all__ = ["File"]


class File:
    """A local file, for what takes a store; `refault.open` takes the path itself.

    Parameters
    ----------
    path
        Of a regular file.
    writable
        Whether it may be written; it never grows.

    Attributes
    ----------
    version
        Another one when the file has changed, as far as its length and its time of
        modification tell.
    """

    _store: FileStore | None

    def __init__(self, path: str | os.PathLike[str], writable: bool = False) -> None:
        self.name = os.path.abspath(path)
        self.writable = writable
        status = os.stat(self.name)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{self.name} is not a regular file; copy what it holds into one")
        self.size = status.st_size
        self._forget()

    @property
    def version(self) -> str:
        return file_version(self._opened().fileno())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on, or raise `StoreError`."""
        self._opened().read_into(offset, buffer)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Write all of `buffer` at `offset`, or raise `StoreError`."""
        self._opened().write_from(offset, buffer)

    def flush(self) -> None:
        """Make everything written so far durable, or raise `StoreError`."""
        self._opened().flush()

    def close(self) -> None:
        """Close the file; it is opened again if it is used again."""
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "writable": self.writable, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._store = None
        self._lock = threading.Lock()

    def _opened(self) -> FileStore:
        with self._lock:
            if self._store is None:
                self._store = self._open()
            return self._store

    def _open(self) -> FileStore:
        flags = (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            fd = os.open(self.name, flags)
        except OSError as error:
            raise StoreError(
                f"{self.name}: cannot be opened: {error.strerror}; see that the file is there, and "
                "that you may use it",
                permanent=True,
            ) from error
        try:
            return FileStore(fd, self.name, self.size, self.writable)
        except BaseException:
            os.close(fd)
            raise

"""What was changed of something that can be replaced as a whole only.

Changes are kept in a local file without a name until the whole is replaced.  The file is as long
as the whole, and has holes where nothing was put; so it takes as much disk as was put there.  It is
gone when this process ends, however it ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading

from refault.errors import StoreError

from .ranges import Ranges
from .spill import choose_directory, make_file

__all__ = ["Staging"]


class Staging:
    """A copy of something as far as it is known; any number of threads at a time.

    Parameters
    ----------
    size
        Bytes of the whole.
    name
        Of the whole, for messages.
    directory
        Where the file is made; None: TMPDIR, or /var/tmp.

    Attributes
    ----------
    known
        Which bytes are here.
    """

    def __init__(self, size: int, name: str, directory: str | None = None) -> None:
        self.size = size
        self.name = name
        self.directory = choose_directory(directory)
        self.known = Ranges()
        self._lock = threading.Lock()
        try:
            self._fd = make_file(self.directory)
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, offset: int, buffer: memoryview | bytes) -> None:
        """Put bytes into the file.

        Raises
        ------
        StoreError
            There is no room.  What is in the file of these bytes now is not known: put them there
            again.
        """
        view, done = memoryview(buffer), 0
        try:
            while done < len(view):
                put = os.pwrite(self._fd, view[done:], offset + done)
                if not put:
                    raise OSError(errno.EIO, "the kernel wrote nothing")
                done += put
        except OSError as error:
            raise self._failed(error) from error
        with self._lock:
            self.known.add(offset, offset + done)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Which parts of ``[start, end)`` are not here."""
        with self._lock:
            return self.known.gaps(start, end)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what is in the file."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not got:
                raise StoreError(
                    f"{self.name}: the file of its changes in {self.directory} is too short;"
                    " check that disk",
                    permanent=True,
                )
            done += got

    def whole(self) -> mmap.mmap:
        """All of it, without reading it."""
        return mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Give the disk back."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.name}: its changes cannot be kept in {self.directory}:"
            f" {error.strerror or error}; free as much space there as it has bytes, or set TMPDIR"
        )

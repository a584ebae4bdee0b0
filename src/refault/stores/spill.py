"""One temporary file that nobody else can see, and its free space.

Some facts about temporary files
--------------------------------
* A file made with O_TMPFILE never has a name; where the filesystem has no such
  thing, a named file is unlinked at once.  Either way the kernel frees it when
  the descriptor is closed, however the process dies.
* /tmp is memory (tmpfs) on many systems: spilling there would free nothing.
  So the default is /var/tmp, unless TMPDIR says where to.
* Space that was freed inside the file still fills the disk until a hole is
  punched.  Punching takes time, so it is done by `trim` and without the lock:
  the extent counts as allocated while it is punched.
* A disk may answer with other bytes than were written, and a failed writeback
  is not told to a reader.  So each record has a checksum, held in memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import zlib
from functools import cache
from typing import Any

from refault.errors import StoreError, UsageError

from .extents import Extents

__all__ = ["Slot", "SpillFile", "choose_directory", "make_file"]

_UNIT = 512
_BLOCK = 4096
_TRIM_AT = 16 << 20
_PUNCH_AT = 64 << 10
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


class Slot:
    """Where a record lies, and its checksum."""

    __slots__ = ("checksum", "length", "start")

    def __init__(self, start: int, length: int, checksum: int) -> None:
        self.start = start
        self.length = length
        self.checksum = checksum


class SpillFile:
    """Records on disk: written once, read many times, forgotten.

    Any number of threads at a time.  The file appears with the first record.

    Parameters
    ----------
    directory
        Where; None: TMPDIR, or /var/tmp, or what `tempfile` says.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = choose_directory(directory)
        self._lock = threading.Lock()
        self._extents = Extents()
        self._fd = -1
        self._size = 0  # units the file reaches to; never less than _extents.end
        self._freed = 0  # units since the last trim
        self._trimming = False
        self._punches = True
        self._users = 0
        self._closed = False

    @property
    def file_bytes(self) -> int:
        """Bytes of disk that the file occupies."""
        with self._lock:
            return os.fstat(self._fd).st_blocks * 512 if self._fd >= 0 else 0

    @property
    def wasteful(self) -> bool:
        """Whether so much was freed that `trim` is worth its time."""
        return not self._trimming and self._freed * _UNIT >= max(_TRIM_AT, self._size * _UNIT // 4)

    def write(self, data: bytes) -> Slot:
        """Put a record into the file.

        Raises
        ------
        StoreError
            Disk full, or any other error; nothing is left of the record.
        """
        units = -(-len(data) // _UNIT)
        view = memoryview(data)
        done = 0
        try:
            fd, start = self._allocate(units)
        except StoreError:
            raise
        except OSError as error:
            raise self._failed("make a spill file", error) from error
        try:
            while done < len(data):
                put = os.pwrite(fd, view[done:], start * _UNIT + done)
                if not put:
                    raise OSError(errno.EIO, "the kernel wrote nothing")
                done += put
        except BaseException as error:
            self._give_back(start, units)
            if isinstance(error, OSError):
                raise self._failed(f"spill {len(data)} bytes", error) from error
            raise
        finally:
            self._leave()
        return Slot(start, len(data), zlib.crc32(data))

    def read(self, slot: Slot) -> bytearray | None:
        """What lies at `slot`, unverified; None if the file ends before.

        A slot that another thread frees meanwhile gives other bytes, so find out
        whether it is still the caller's, and only then `verify`.
        """
        data = bytearray(slot.length)
        view = memoryview(data)
        done = 0
        fd = self._enter()
        try:
            while done < slot.length:
                got = os.preadv(fd, [view[done:]], slot.start * _UNIT + done)
                if not got:
                    return None
                done += got
        except OSError as error:
            raise self._failed(f"read {slot.length} spilled bytes", error) from error
        finally:
            self._leave()
        return data

    def verify(self, slot: Slot, data: bytearray | None) -> bytearray:
        """`data` if it is what was written to `slot`, else raise `StoreError`."""
        if data is None or zlib.crc32(data) != slot.checksum:
            raise StoreError(
                f"swap: the {slot.length} bytes at offset {slot.start * _UNIT} of the spill file "
                f"in {self.directory} are not what was written there; the page is lost: check "
                "the disk, and choose another directory for swap",
                permanent=True,
            )
        return data

    def free(self, slot: Slot) -> None:
        """Forget a record.  Quick: the disk space comes back with `trim`."""
        self._give_back(slot.start, -(-slot.length // _UNIT))

    def trim(self) -> None:
        """Give free space back to the disk.  Takes its time; blocks nobody else."""
        with self._lock:
            if self._closed or self._fd < 0 or self._trimming:
                return
            self._trimming = True
            self._users += 1
            self._freed = 0
            fd = self._fd
            extents = self._extents
            spots = [spot for spot in extents if spot[1] * _UNIT >= _PUNCH_AT]
        try:
            for start, size in spots:
                if self._punches:
                    with self._lock:
                        if not extents.claim(start, size):
                            continue
                    self._punch_claimed(fd, start, size)
            if self._punches:
                with self._lock:
                    size = self._size - extents.end
                    start = extents.grow(size) if size else 0
                if size:
                    self._punch_claimed(fd, start, size)
            with self._lock:
                if extents.end < self._size:
                    os.ftruncate(fd, extents.end * _UNIT)
                    self._size = extents.end
        except OSError as error:
            raise self._failed("shorten the spill file", error) from error
        finally:
            with self._lock:
                self._trimming = False
            self._leave()

    def close(self) -> None:
        """Close the file, and so free it; whoever still uses it finishes first."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._users:
                return
        self._release()

    def _allocate(self, units: int) -> tuple[int, int]:
        with self._lock:
            self._check_open()
            if self._fd < 0:
                self._fd = make_file(self.directory)
            start = self._extents.allocate(units)
            self._size = max(self._size, self._extents.end)
            self._users += 1
            return self._fd, start

    def _give_back(self, start: int, units: int) -> None:
        with self._lock:
            self._extents.release(start, units)
            self._freed += units

    def _punch_claimed(self, fd: int, start: int, size: int) -> None:
        # Whole blocks only: the kernel would write zeros into the others.
        first = -(-start * _UNIT // _BLOCK) * _BLOCK
        last = (start + size) * _UNIT // _BLOCK * _BLOCK
        try:
            if last > first:
                self._punches = _punch(fd, first, last - first)
        finally:
            with self._lock:
                self._extents.release(start, size)

    def _enter(self) -> int:
        with self._lock:
            self._check_open()
            self._users += 1
            return self._fd

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or not self._closed:
                return
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("swap is closed; its pages are gone", permanent=True)

    def _failed(self, what: str, error: OSError) -> StoreError:
        return StoreError(
            f"swap: cannot {what} in {self.directory}: {error.strerror or error}; free some "
            "space there, choose another directory for swap, or give swap more memory"
        )


def choose_directory(directory: str | os.PathLike[str] | None) -> str:
    """Where files without a name go; None: TMPDIR, or /var/tmp, or what `tempfile` says."""
    if directory is not None:
        chosen = os.fspath(directory)
        if not os.path.isdir(chosen) or not os.access(chosen, os.W_OK | os.X_OK):
            raise UsageError(
                f"swap directory {chosen} is not a directory that can be written to; "
                "make it, or choose another one"
            )
        return chosen
    if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK | os.X_OK):
        return "/var/tmp"
    import tempfile  # with shutil and its codecs, 5 ms of the start of the pager

    return tempfile.gettempdir()


def make_file(directory: str) -> int:
    """Make a file without a name."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, mode=0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    import tempfile

    fd, path = tempfile.mkstemp(prefix="refault-swap-", dir=directory)
    try:
        os.unlink(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


@cache
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def _punch(fd: int, start: int, length: int) -> bool:
    """Free a part of the file; False if its filesystem cannot."""
    while _fallocate()(fd, _PUNCH_HOLE_KEEP_SIZE, start, length):
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True

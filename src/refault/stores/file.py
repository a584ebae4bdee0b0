"""A local file as a store.

Some facts about files
----------------------
* ``preadv2(RWF_NOWAIT)`` reads what is in the page cache and nothing else.  It
  fails with EAGAIN if nothing is there, answers short if only the beginning is,
  and tmpfs refuses it altogether (EOPNOTSUPP): but there a plain read waits for nothing.
* ``pwrite`` past the end of a file extends it, with zeros in between.  If the
  file was truncated under us, writing one page back would turn all missing
  pages before it into zeros that look like data.  So the length is looked at
  before every write, and a write that would extend is refused.
* With O_APPEND, Linux's ``pwrite`` ignores the offset.  Such a descriptor is
  refused.
* An error of ``fdatasync`` is told once: the kernel marks the pages clean, and
  the next call succeeds although the data never reached the disk.  So we
  remember it, and every later `flush` fails too.
* A descriptor that is closed while another thread is about to use its number
  may by then be another file.  So the last one who uses it closes it, and a
  better descriptor is put in its place with ``dup3``, which is atomic.
* The kernel reads a mapped file a few MiB ahead of its reader at most, often 128 KiB, and the disk
  is idle meanwhile.  POSIX_FADV_WILLNEED begins to read all of a range at once; to read one byte
  of it waits for that part.
* From a memfd to a file, ``sendfile`` and ``splice`` are no faster than reading
  into a buffer and ``pwrite`` (64 KiB on ext4: 10.0 and 10.2 against 9.8 us),
  and ``copy_file_range`` refuses (EXDEV).  So there is no such path here.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from refault.errors import StoreError, UsageError
from refault.native import library

from .base import Bytes

__all__ = ["FileStore", "file_version", "in_memory"]

_HOPELESS = frozenset(
    {
        errno.EACCES,
        errno.EBADF,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
        errno.ESPIPE,
        errno.ESTALE,
    }
)
"""Errors that asking again does not cure."""

_AHEAD_BYTES = 2 << 20
_AHEAD_MOST = 16
"""So many pieces of so many bytes are on their way in `read_ahead`: others use the disk, too."""

_NEXT_STEP = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some of the disk quota",
    errno.EFBIG: "raise the file size limit (ulimit -f) of the process",
    errno.EIO: "look at the kernel log (dmesg) for disk errors",
    errno.EROFS: "mount the filesystem read-write, or open the region with mode 'c'",
    errno.ESTALE: "the file is gone from its server; open it again",
}


@functools.lru_cache(maxsize=64)
def in_memory(device: int) -> bool:
    """Whether a device number is that of a filesystem which is nothing but memory."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo") as mounts:
            for line in mounts:
                fields, _, source = line.partition(" - ")
                if fields.split()[2] == number:
                    return source.split()[0] in ("tmpfs", "ramfs")
    except (OSError, IndexError):
        pass
    return False


def file_version(file: int | str | bytes) -> str:
    """Text that changes when the content of a file does: its length and time of change."""
    status = os.stat(file)
    return f"{status.st_size}-{status.st_mtime_ns}"


class FileStore:
    """The first `size` bytes of a regular file.

    Parameters
    ----------
    fd
        Descriptor of the file.  The store owns it, unless the constructor raises.
    path
        How messages name the file.  It is never opened.
    size
        Bytes of the file when it was opened.  Nothing is read or written past them.
    writable
        Whether `write_from` is allowed; `fd` must be open for writing then.

    Notes
    -----
    All methods may be called from several threads at a time.  `read_nowait`
    must not be called at the same time as `close`: both belong to the event loop.
    """

    def __init__(self, fd: int, path: str, size: int, writable: bool) -> None:
        self.name = path
        self.size = size
        self.key = self._examine(fd, writable)
        """Device and inode: two stores with the same key are the same file."""
        self.writable = writable
        self._fd = fd
        self._nowait = True
        self._nowait_flags = os.RWF_NOWAIT
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._lost: str | None = None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on, or raise `StoreError`."""
        length = len(buffer)
        if not 0 <= offset <= self.size - length:
            raise self._outside("read", offset, length)
        done = 0
        fd = self._enter("read", offset)
        try:
            while done < length:
                got = os.preadv(fd, [buffer[done:]], offset + done)
                if not got:
                    raise self._truncated("read", offset + done)
                done += got
        except StoreError:
            raise
        except OSError as error:
            raise self._failed("read", offset + done, error) from error
        finally:
            self._leave()

    def read_nowait(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` if all of it is in the page cache; never block."""
        if not self._nowait or not 0 <= offset <= self.size - len(buffer):
            return False
        try:
            return os.preadv(self._fd, (buffer,), offset, self._nowait_flags) == len(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                if self._nowait_flags and in_memory(self.key[0]):
                    self._nowait_flags = 0
                    return self.read_nowait(offset, buffer)
                self._nowait = False
            return False

    def read_ahead(self, offset: int, length: int, wanted: Callable[[], bool]) -> None:
        """Have the kernel bring a part of the file into the page cache; no error is told.

        Returns when nearly all of it is there, or as soon as it is not `wanted` any more.
        """
        byte = bytearray(1)
        begun: deque[int] = deque()
        end = min(offset + length, self.size)
        try:
            fd = self._enter("read", offset)
        except StoreError:
            return
        try:
            for at in range(offset, end, _AHEAD_BYTES):
                if not wanted():
                    return
                last = min(at + _AHEAD_BYTES, end) - 1
                if self.read_nowait(last, memoryview(byte)):
                    continue
                os.posix_fadvise(fd, at, last + 1 - at, os.POSIX_FADV_WILLNEED)
                begun.append(last)
                if len(begun) == _AHEAD_MOST:
                    os.preadv(fd, [byte], begun.popleft())
        except OSError:
            return  # whoever touches it is told
        finally:
            self._leave()

    def fileno(self) -> int:
        """The descriptor; it stays the store's."""
        return self._fd

    @property
    def version(self) -> str:
        """Length and time of the last change; empty if nobody can tell."""
        try:
            return file_version(self._fd)
        except OSError:
            return ""

    def where(self, page_size: int) -> Bytes | None:
        """The file itself: its page cache can be copied from directly."""
        memory = in_memory(self.key[0])
        return Bytes(fd=self._fd, mapped=memory or self._mincore_tells(), memory=memory)

    def _mincore_tells(self) -> bool:
        """Whether mincore says the truth about the file.

        To whoever does not own it and may not write it, it says that all is in memory.
        """
        try:
            return os.fstat(self._fd).st_uid == os.geteuid() or os.access(
                f"/proc/self/fd/{self._fd}", os.W_OK
            )
        except OSError:
            return False

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Write all of `buffer` at `offset`, or raise `StoreError`."""
        length = len(buffer)
        if not self.writable:
            raise StoreError(
                f"{self.name}: cannot write at offset {offset}: it was opened for reading only; "
                "open the region with mode 'r+'",
                permanent=True,
            )
        if not 0 <= offset <= self.size - length:
            raise self._outside("write", offset, length)
        done = 0
        fd = self._enter("write", offset)
        try:
            if os.fstat(fd).st_size < offset + length:
                raise self._truncated("write", offset)
            while done < length:
                got = os.pwrite(fd, buffer[done:], offset + done)
                if not got:
                    raise OSError(errno.EIO, "the kernel wrote nothing")
                done += got
        except StoreError:
            raise
        except OSError as error:
            raise self._failed("write", offset + done, error) from error
        finally:
            self._leave()

    def write_runs(self, source: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Write many ranges at once, from the same offsets of another file.

        Parameters
        ----------
        source
            Descriptor of the file that holds them: a memfd.
        ranges
            (offset, length) of each, in order.

        Raises
        ------
        StoreError
            Which of them have been written is not known.
        """
        done = 0
        native = library()
        if native is not None and self.writable and ranges:
            end = sum(ranges[-1])
            fd = self._enter("write", ranges[0][0])
            try:
                if os.fstat(fd).st_size < end:
                    raise self._truncated("write", ranges[0][0])
                numbers = array("q", [number for one in ranges for number in one])
                begun = array("q", [0])
                done = native.rf_copy(
                    source, fd, numbers.buffer_info()[0], len(ranges), begun.buffer_info()[0]
                )
            finally:
                self._leave()
        # The rest, and with it the one that failed, by the way that says what is wrong.
        for offset, length in ranges[done:]:
            buffer = bytearray(length)
            if os.preadv(source, [buffer], offset) != length:
                raise StoreError(f"{self.name}: what is to be written at {offset} cannot be read")
            self.write_from(offset, memoryview(buffer))

    def flush(self) -> None:
        """Make everything written so far durable, or raise `StoreError`.

        Once it has failed it fails for ever: the kernel forgets what it could
        not write, so a later success would prove nothing.
        """
        if not self.writable:
            return
        fd = self._enter("flush", 0)
        try:
            if self._lost is None:
                os.fdatasync(fd)
        except OSError as error:
            self._lost = error.strerror or str(error)
            raise self._undurable() from error
        finally:
            self._leave()
        if self._lost is not None:
            raise self._undurable()

    def adopt(self, fd: int, writable: bool) -> None:
        """Take over another descriptor of the same file, and what it permits.

        A store that was opened for reading becomes writable when `writable` is
        true; else `fd` is only closed.  Reads in other threads go on meanwhile.

        Parameters
        ----------
        fd
            The store owns it, unless this raises.
        writable
            Whether `fd` is open for writing and may be used for it.

        Raises
        ------
        UsageError
            `fd` is another file, or not open for writing.
        """
        if self._examine(fd, writable) != self.key:
            raise UsageError(
                f"{self.name}: the second descriptor is another file (it was replaced meanwhile); "
                "close the first region, then open the file again"
            )
        if writable and not self.writable:
            mine = self._enter("open", 0)
            try:
                os.dup2(fd, mine, inheritable=False)
                self.writable = True
            finally:
                self._leave()
        os.close(fd)

    def close(self) -> None:
        """Close the file; whoever still reads or writes finishes first.

        Does not wait, and does not flush.  A second call does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._users:
                return
        self._release()

    def _enter(self, verb: str, offset: int) -> int:
        with self._lock:
            if not self._closed:
                self._users += 1
                return self._fd
        raise StoreError(
            f"{self.name}: cannot {verb} at offset {offset}: the store is closed; "
            "open the file again",
            permanent=True,
        )

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or not self._closed:
                return
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _examine(self, fd: int, writable: bool) -> tuple[int, int]:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{self.name} is not a regular file; copy what it holds into one")
        if writable:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_APPEND:
                raise UsageError(
                    f"{self.name} is not open for reading and writing at any offset; "
                    "open it with O_RDWR and without O_APPEND"
                )
        return status.st_dev, status.st_ino

    def _outside(self, verb: str, offset: int, length: int) -> StoreError:
        return StoreError(
            f"{self.name}: cannot {verb} {length} bytes at offset {offset}: the store ends at "
            f"{self.size}; ask for less, or open the file again if it has grown",
            permanent=True,
        )

    def _truncated(self, verb: str, offset: int) -> StoreError:
        return StoreError(
            f"{self.name}: cannot {verb} at offset {offset}: the file is shorter than the "
            f"{self.size} bytes it had when opened; restore it, then open it again",
            permanent=True,
        )

    def _failed(self, verb: str, offset: int, error: OSError) -> StoreError:
        code = error.errno or 0
        step = _NEXT_STEP.get(code, "check the file and its disk, then open it again")
        return StoreError(
            f"{self.name}: cannot {verb} at offset {offset}: {error.strerror or error}; {step}",
            permanent=code in _HOPELESS,
        )

    def _undurable(self) -> StoreError:
        return StoreError(
            f"{self.name}: cannot make changes durable: {self._lost}; some of what was written "
            "may never reach the disk: save the array to another file, and check the disk",
            permanent=True,
        )

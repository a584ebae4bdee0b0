"""Which blocks are in the overlay: two bits for each, in a file.

How it survives
---------------
* *written*: the block's bytes have been written to the overlay.  *durable*: they have
  been flushed since.  A block is read from the overlay if it has either bit.
* If the process is killed, the kernel still has everything that was written: bits and
  bytes.  If the machine goes down, a bit may be on disk whose bytes are not; then the
  block would read as a hole, as zeros.  So the *written* bits belong to the boot that is
  named in the file, and count for nothing in the next one.  A *durable* bit is set when
  the bytes are on disk, and only then.
* What is kept somewhere else (the overlay is a store of the user's) may not outlive the
  process before it is flushed: then the *written* bits are in memory only.
* A bit is not cleared while the machine is up, and its block never goes back to the base.
  So any mixture of old and new bits, as a crash leaves it, is a right one.
* The bitmaps are allocated when the file is made: to write to a hole of a mapped file on a
  full disk is a SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from refault.errors import StoreError, UsageError

from .boot import BOOT_LENGTH, this_boot

__all__ = ["BLOCK", "OverlayMap"]

BLOCK = 4096
HEADER = 4096
BOOT = 3072
"""Where in the header the boot is named."""
CHUNK = 4096
WINDOW = 8192
"""Blocks looked at together: shifts of longer numbers would cost more than they save."""
MAGIC = b"refault overlay"
FORMAT = 1


class OverlayMap:
    """The bitmaps of an overlay; any number of threads may use them.

    Parameters
    ----------
    path
        A file that `create` has made.
    size, version
        Of the base.
    outlives
        Whether what was written, and not flushed, outlives this process.

    Attributes
    ----------
    pending
        Whether there is something that does not.

    Raises
    ------
    StoreError
        The file cannot be read, is damaged, or belongs to another base.
    """

    def __init__(self, path: str, size: int, version: str, *, outlives: bool) -> None:
        self.path = path
        self.blocks = -(-size // BLOCK)
        self._length = _bitmap_length(size)
        self._outlives = outlives
        self._own = bytearray(0 if outlives else self._length)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._lost: str | None = None
        self._only_writer = False
        self.pending = False
        self._fd, self.writable = self._open()
        try:
            self._check(size, version)
            access = mmap.ACCESS_WRITE if self.writable else mmap.ACCESS_READ
            self._map = mmap.mmap(self._fd, HEADER + 2 * self._length, access=access)
        except BaseException:
            os.close(self._fd)
            raise

    @staticmethod
    def create(path: str, size: int, version: str) -> None:
        """Make the file, at one stroke; all blocks are in the base."""
        said = {"format": FORMAT, "block": BLOCK, "size": size, "version": version}
        text = json.dumps(said).encode()
        header = b"%s %08x %s\n" % (MAGIC, zlib.crc32(text), text)
        if len(header) > BOOT:
            raise UsageError(f"{path}: the base has a version of {len(version)} letters; cut it")
        fd, fresh = tempfile.mkstemp(prefix=f"{os.path.basename(path)}-", dir=os.path.dirname(path))
        try:
            with open(fd, "wb") as file:
                file.write(header)
                file.flush()
                os.posix_fallocate(fd, 0, HEADER + 2 * _bitmap_length(size))
                os.fsync(fd)
            os.link(fresh, path)
        except FileExistsError:
            pass  # Somebody else was quicker, and that is the map.
        finally:
            Path(fresh).unlink()
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a range of bytes into (start, stop, whether it is in the overlay)."""
        first, stop = offset // BLOCK, -(-(offset + length) // BLOCK)
        start, inside = offset, False
        for low in range(first, stop, WINDOW):
            count = min(WINDOW, stop - low)
            mask = (1 << count) - 1
            bits = self._bits(low, low + count) & mask
            if low == first:
                inside = bool(bits & 1)
            # One bit for each block that is not where the one before it is.
            turns = (bits ^ (bits << 1 | inside)) & mask
            while turns:
                turn = (low + (turns & -turns).bit_length() - 1) * BLOCK
                yield start, turn, inside
                start, inside = turn, not inside
                turns &= turns - 1
        yield start, offset + length, inside

    def __contains__(self, block: int) -> bool:
        return bool(self._bits(block, block + 1) & 1)

    def lock(self) -> None:
        """Be the only one who writes, until `close`; must come before `mark`.

        Raises
        ------
        StoreError
            Somebody else is.
        """
        with self._lock:
            if self._only_writer:
                return
            if not self.writable:
                raise StoreError(
                    f"{self.path}: the map of the overlay may not be written; see who owns it",
                    permanent=True,
                )
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{self.path}: another array writes to this overlay; close it first"
                ) from None
            if not self._of_this_boot():
                start = HEADER + self._length
                self._map[start : start + self._length] = bytes(self._length)
                self._map[BOOT : BOOT + BOOT_LENGTH] = this_boot()
            self._only_writer = True

    def mark(self, first: int, stop: int) -> None:
        """These blocks have been written to the overlay, as a whole."""
        low, high = first // 8, -(-stop // 8)
        mask = ((1 << (stop - first)) - 1) << (first - 8 * low)
        with self._lock:
            old = int.from_bytes(self._written(low, high), "little")
            new = (old | mask).to_bytes(high - low, "little")
            if not self._outlives:
                self._own[low:high] = new
                self.pending = True
            else:
                start = HEADER + self._length
                self._map[start + low : start + high] = new

    def settle(self, flush: Callable[[], None]) -> None:
        """Call `flush`; what had been written before is durable then, for good."""
        with self._flushing:
            with self._lock:
                written = self._written(0, self._length)
                self.pending = False
            try:
                flush()
            except BaseException:
                self.pending = not self._outlives
                raise
            for low in range(0, self._length, CHUNK):
                part = int.from_bytes(written[low : low + CHUNK], "little")
                at = slice(HEADER + low, HEADER + min(low + CHUNK, self._length))
                old = int.from_bytes(self._map[at], "little")
                if part & ~old:
                    self._map[at] = (old | part).to_bytes(at.stop - at.start, "little")
            self._sync()

    def close(self) -> None:
        """Let go of the file, and of the lock."""
        self._map.close()
        os.close(self._fd)

    def _open(self) -> tuple[int, bool]:
        try:
            try:
                return os.open(self.path, os.O_RDWR | os.O_CLOEXEC), True
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EROFS):
                    raise
                return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), False
        except OSError as error:
            raise StoreError(
                f"{self.path}: the map of the overlay cannot be opened: {error.strerror}; put it "
                "back, or make a new overlay",
                permanent=True,
            ) from error

    def _check(self, size: int, version: str) -> None:
        header = os.pread(self._fd, HEADER, 0)
        line = header.partition(b"\n")[0]
        checksum, _, text = line.removeprefix(MAGIC + b" ").partition(b" ")
        whole = os.fstat(self._fd).st_size == HEADER + 2 * self._length
        if not line.startswith(MAGIC) or checksum != b"%08x" % zlib.crc32(text):
            raise StoreError(
                f"{self.path}: this is no map of an overlay, or it is damaged; restore it, or make "
                "a new overlay",
                permanent=True,
            )
        said = json.loads(text)
        wanted = {"format": FORMAT, "block": BLOCK, "size": size, "version": version}
        if said != wanted or not whole:
            raise StoreError(
                f"{self.path}: the overlay was made for another base, or the base has changed "
                f"({said} instead of {wanted}); restore the base, or make a new overlay",
                permanent=True,
            )

    def _of_this_boot(self) -> bool:
        return self._map[BOOT : BOOT + BOOT_LENGTH] == this_boot()

    def _written(self, low: int, high: int) -> bytes:
        if not self._outlives:
            return bytes(self._own[low:high])
        if not self._only_writer and not self._of_this_boot():
            return bytes(high - low)
        start = HEADER + self._length
        return self._map[start + low : start + high]

    def _bits(self, first: int, stop: int) -> int:
        low, high = first // 8, -(-stop // 8)
        durable = int.from_bytes(self._map[HEADER + low : HEADER + high], "little")
        written = int.from_bytes(self._written(low, high), "little")
        return (durable | written) >> (first - 8 * low)

    def _sync(self) -> None:
        # An error of msync is told once, see `refault.stores.file`: so it is remembered.
        try:
            if self._lost is None:
                self._map.flush()
        except OSError as error:
            self._lost = error.strerror or str(error)
        if self._lost is not None:
            raise StoreError(
                f"{self.path}: cannot make the map durable: {self._lost}; save the array to a "
                "file, and check the disk",
                permanent=True,
            )


def _bitmap_length(size: int) -> int:
    blocks = -(-size // BLOCK)
    return -(-blocks // (8 * CHUNK)) * CHUNK

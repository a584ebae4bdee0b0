"""Blocks in a folder: bounded, checked, shared by processes; what a disk cache keeps.

Decisions
---------
* A file for each block, named by what it holds.  It has its name when it is whole
  (O_TMPFILE, then a link), so who is killed leaves nothing, and readers need no lock.
* Nothing is synced.  After a power cut a file may hold anything; its checksums say so,
  and the block is fetched again.  There is one for each 4 KiB, so that a page is checked
  without reading the rest of its block.
* The bound is kept by one number in a file under a lock (``flock``, which the kernel gives
  back when its owner is killed).  Bytes are counted before they are written; what is
  counted and never written is found when the folder is looked through, which is done to
  evict, and in each new boot, since the number itself is not synced either.
* The time of a file's last change is the time of its last use.  The oldest go first, down
  to nine tenths of the bound, so that the folder is not looked through too often.
* Only files in a folder of its own are ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .boot import BOOT_LENGTH, this_boot

__all__ = ["HEADER", "BlockFolder", "block_bytes"]

HEADER = 4096
PAGE = 4096
MAGIC = b"refault1"
FIELDS = struct.Struct("<8s32sQ")
CHECKSUMS = (HEADER - FIELDS.size - 4) // 4
"""How many there is room for."""
COUNT = struct.Struct(f"<{BOOT_LENGTH}sQ")
KEEP = 0.9
UNFINISHED = "new-"
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A disk cache of refault.\n"
"""What backup programs know a cache by (https://bford.info/cachedir/)."""


def block_bytes(length: int) -> int:
    """What a block of so many bytes takes up."""
    return HEADER + -(-length // PAGE) * PAGE


class _File(NamedTuple):
    used: int
    size: int
    path: str


class BlockFolder:
    """A bounded folder of blocks, by key; any number of threads and processes.

    Parameters
    ----------
    folder
        Is made if it is not there.
    limit
        Bytes that all blocks in it may take up.

    Raises
    ------
    OSError
        It cannot be made or written.
    """

    largest = CHECKSUMS * PAGE
    """The longest block."""

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = os.path.join(folder, "refault-blocks")
        self.limit = limit
        with self._locked():
            Path(self.folder, "CACHEDIR.TAG").write_bytes(TAG)

    def load(self, key: bytes, length: int, start: int, buffer: memoryview) -> bool | None:
        """Fill `buffer` with a part of a block.

        Parameters
        ----------
        key
            32 bytes.
        length
            Of the block.
        start
            Where in the block the part begins.

        Returns
        -------
        bool or None
            False: there is no such block.  None: there was one, and it was damaged; it is
            removed.  The buffer holds rubbish in both cases.
        """
        path = self._path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            if _read(fd, key, length, start, buffer):
                os.utime(fd)
                return True
        except OSError:
            pass  # What cannot be read is as good as damaged.
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None

    def save(self, key: bytes, data: memoryview) -> None:
        """Keep a block; what was used longest ago makes room for it.

        Raises
        ------
        OSError
            The disk is full, or refuses.  Nothing is kept then.
        """
        path = self._path(key)
        size = block_bytes(len(data))
        if size > self.limit:
            return
        with self._locked() as count:
            if os.path.exists(path):
                return
            used = _read_count(count)
            if used is None or used + size > self.limit:
                used = self._evict(size)
            os.pwrite(count, COUNT.pack(this_boot(), used + size), 0)
            _write(path, [_header(key, data), data])

    def used(self) -> int:
        """Count what all blocks take up, file by file."""
        with self._locked():
            return sum(file.size for file in self._files())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Be the only one in the folder who writes; gives the file with the number of bytes."""
        path = os.path.join(self.folder, "bytes")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _path(self, key: bytes) -> str:
        name = key.hex()
        return os.path.join(self.folder, name[:2], name)

    def _evict(self, size: int) -> int:
        """Remove what was used longest ago until there is room; returns what is left."""
        files = sorted(self._files())
        used = sum(file.size for file in files)
        goal = min(self.limit - size, int(self.limit * KEEP))
        for file in files:
            if used <= goal:
                break
            os.unlink(file.path)
            used -= file.size
        return used

    def _files(self) -> Iterator[_File]:
        """All blocks; what a killed writer has left behind is removed."""
        for folder in os.scandir(self.folder):
            if len(folder.name) != 2:
                continue
            for entry in os.scandir(folder.path):
                if entry.name.startswith(UNFINISHED):
                    os.unlink(entry.path)
                    continue
                with contextlib.suppress(FileNotFoundError):  # Found damaged meanwhile.
                    status = entry.stat()
                    size = -(-status.st_size // PAGE) * PAGE
                    yield _File(status.st_mtime_ns, size, entry.path)


def _header(key: bytes, data: memoryview) -> bytes:
    parts = (data[at : at + PAGE] for at in range(0, len(data), PAGE))
    checksums = b"".join(zlib.crc32(part).to_bytes(4, "little") for part in parts)
    header = (FIELDS.pack(MAGIC, key, len(data)) + checksums).ljust(HEADER - 4, b"\0")
    return header + zlib.crc32(header).to_bytes(4, "little")


def _read(fd: int, key: bytes, length: int, start: int, buffer: memoryview) -> bool:
    """Fill `buffer` with a part of a block, from pages that are as they were written."""
    header = os.pread(fd, HEADER, 0)
    end = start + len(buffer)
    if (
        len(header) != HEADER
        or zlib.crc32(header[:-4]) != int.from_bytes(header[-4:], "little")
        or FIELDS.unpack_from(header) != (MAGIC, key, length)
    ):
        return False
    first, stop = start // PAGE, -(-end // PAGE)
    low, high = first * PAGE, min(stop * PAGE, length)
    whole = (low, high) == (start, end)
    pages = buffer if whole else memoryview(bytearray(high - low))
    if os.preadv(fd, [pages], HEADER + low) != len(pages):
        return False
    checksums = struct.unpack_from(f"<{stop - first}I", header, FIELDS.size + 4 * first)
    for number, checksum in enumerate(checksums):
        if zlib.crc32(pages[number * PAGE : (number + 1) * PAGE]) != checksum:
            return False
    if not whole:
        buffer[:] = pages[start - low : end - low]
    return True


def _read_count(fd: int) -> int | None:
    """The number of bytes; None if nobody has counted since the machine came up."""
    found = os.pread(fd, COUNT.size, 0)
    if len(found) != COUNT.size:
        return None
    boot, used = COUNT.unpack(found)
    return int(used) if boot == this_boot() else None


def _write(path: str, parts: list[bytes | memoryview]) -> None:
    """Make a file that has its name when it is whole."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fresh = None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd, fresh = tempfile.mkstemp(prefix=UNFINISHED, dir=folder)
    try:
        with open(fd, "wb", buffering=0, closefd=False) as file:
            for part in parts:
                done = 0
                while done < len(part):
                    done += file.write(part[done:])
        # A directory descriptor has Python call linkat, which can follow the link in /proc.
        source = fresh or f"/proc/self/fd/{fd}"
        os.link(source, path, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
        if fresh is not None:
            os.unlink(fresh)

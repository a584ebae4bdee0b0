"""The page tables of a process, read from /proc: PAGEMAP_SCAN, and the older 64 bits per page.

For whoever wants to know which pages have been written: with write protection in
asynchronous mode the kernel resolves the faults itself and only remembers that they
happened; `Pagemap.scan` asks for what it remembers, and in the same step protects it again.
"""

# Some facts about PAGEMAP_SCAN (Linux 6.7)
# -----------------------------------------
#
# A range is armed by a userfaultfd with FEATURE_WP_ASYNC (and WP_UNPOPULATED, which it implies)
# that registers it MODE_WP, and by one write protection of all of it.  WRITTEN then means: not
# protected any more.  Before that, and in memory that nobody armed, everything counts as
# WRITTEN, pages that do not exist included.
#
# WP_MATCHING makes "which were written" and "protect them again" one step, under the lock of
# the page table: no write falls in between.  Pages that do not match are left alone.
#
# Without CHECK_WPASYNC memory that cannot be tracked is skipped, silently; with it, the scan
# fails with EPERM at such memory.
#
# A scan may stop before its end: the vector is full, or `max_pages` have been found.  That is
# not an error.  `walk_end` says from where to go on.  Neighbours with the same categories are
# one element of the vector; with WP_MATCHING, what does not fit into the vector is not protected.
#
# What it cannot see.  Protection is a bit in the page table entries of *one mapping*.  What changes
# shared memory without going through these entries leaves no trace: stores through another
# mapping of the file, write(2) to the file, a hole punched into it, MADV_REMOVE.  In anonymous
# memory there is no such way in.  So a snapshot of shared memory by this means is only right if
# all who write go through armed mappings.
#
# After mremap without FEATURE_EVENT_REMAP, and in the child of a fork, everything is WRITTEN.
#
# On huge pages with holes a scan that protects locks up unpatched kernels (CVE-2026-72174): do not.

from __future__ import annotations

import ctypes
import mmap
import os
from errno import EINTR, EINVAL, ENOTTY, EPERM
from fcntl import ioctl
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

__all__ = [
    "ENTRY_EXCLUSIVE",
    "ENTRY_FILE",
    "ENTRY_GUARD",
    "ENTRY_PRESENT",
    "ENTRY_SOFT_DIRTY",
    "ENTRY_SWAPPED",
    "ENTRY_UFFD_WP",
    "PAGEMAP_SCAN",
    "PAGE_IS_ACCESSED",
    "PAGE_IS_FILE",
    "PAGE_IS_GUARD",
    "PAGE_IS_HUGE",
    "PAGE_IS_PFNZERO",
    "PAGE_IS_PRESENT",
    "PAGE_IS_SOFT_DIRTY",
    "PAGE_IS_SWAPPED",
    "PAGE_IS_WPALLOWED",
    "PAGE_IS_WRITTEN",
    "SCAN_CHECK_WPASYNC",
    "SCAN_WP_MATCHING",
    "PageRange",
    "Pagemap",
    "Scan",
]

PAGEMAP_SCAN: Final = 0xC0606610

PAGE_IS_WPALLOWED: Final = 1 << 0
"""Write protection in asynchronous mode is armed there."""
PAGE_IS_WRITTEN: Final = 1 << 1
PAGE_IS_FILE: Final = 1 << 2
PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4
PAGE_IS_PFNZERO: Final = 1 << 5
PAGE_IS_HUGE: Final = 1 << 6
PAGE_IS_SOFT_DIRTY: Final = 1 << 7
PAGE_IS_GUARD: Final = 1 << 8
"""Linux 6.15 and later."""
PAGE_IS_ACCESSED: Final = 1 << 9
"""Linux 7.3."""

SCAN_WP_MATCHING: Final = 1
SCAN_CHECK_WPASYNC: Final = 2

ENTRY_SOFT_DIRTY: Final = 1 << 55
ENTRY_EXCLUSIVE: Final = 1 << 56
ENTRY_UFFD_WP: Final = 1 << 57
ENTRY_GUARD: Final = 1 << 58
"""Linux 6.15."""
ENTRY_FILE: Final = 1 << 61
ENTRY_SWAPPED: Final = 1 << 62
ENTRY_PRESENT: Final = 1 << 63

_ARGUMENT = Struct("=12Q")
_RANGE = Struct("=3Q")


class PageRange(NamedTuple):
    """Neighbouring pages of the same categories: the addresses ``[start, end)``."""

    start: int
    end: int
    categories: int


class Scan(NamedTuple):
    """What one `Pagemap.scan` found, and where it stopped."""

    ranges: list[PageRange]
    walk_end: int


class Pagemap:
    """The page tables of one process.

    Parameters
    ----------
    pid
        Whose; None: our own.
    vector
        How many ranges one scan can report; what does not fit is left for the next.

    Notes
    -----
    Like `Userfaultfd`, an object is for one thread: its working space is used again.
    """

    __slots__ = ("_address", "_buffer", "_size", "fd")

    def __init__(self, pid: int | None = None, *, vector: int = 512) -> None:
        self._size = vector
        self._buffer = bytearray(vector * _RANGE.size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer)) if vector else 0
        name = f"/proc/{'self' if pid is None else pid}/pagemap"
        self.fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def scan(
        self,
        start: int,
        end: int,
        *,
        require: int = 0,
        any_of: int = 0,
        inverted: int = 0,
        report: int = 0,
        flags: int = 0,
        max_pages: int = 0,
    ) -> Scan:
        """Look at the pages of ``[start, end)`` once.

        Parameters
        ----------
        start, end
            Aligned to pages.
        require
            ``PAGE_IS_*`` bits that a page must have, all of them.
        any_of
            Bits of which it must have one; 0: no such condition.
        inverted
            Bits that are turned round before they are compared: with `require` of the same bit,
            the page must *not* have it.
        report
            Bits that are told of each range; 0: those of `require` and `any_of`.
        flags
            `SCAN_WP_MATCHING`, `SCAN_CHECK_WPASYNC`.
        max_pages
            Stop after so many pages; 0: no limit.

        Returns
        -------
        Scan
            If its `walk_end` is not `end`, the scan stopped early: go on from there.

        Raises
        ------
        KernelError
            EPERM: `SCAN_CHECK_WPASYNC`, and part of the range is not armed.  ENOTTY: the kernel
            is older than 6.7.
        """
        report = report or require | any_of
        argument = bytearray(
            _ARGUMENT.pack(
                _ARGUMENT.size,
                flags,
                start,
                end,
                0,
                self._address if report else 0,
                self._size if report else 0,
                max_pages,
                inverted,
                require,
                any_of,
                report,
            )
        )
        while True:
            try:
                count = ioctl(self.fd, PAGEMAP_SCAN, argument)
                break
            except OSError as error:
                if error.errno != EINTR:
                    raise _translate(error, start, end) from error
        walk_end = _ARGUMENT.unpack(argument)[4]
        with memoryview(self._buffer) as view, view[: count * _RANGE.size] as filled:
            return Scan([PageRange(*found) for found in _RANGE.iter_unpack(filled)], walk_end)

    def scan_all(
        self,
        start: int,
        end: int,
        *,
        require: int = 0,
        any_of: int = 0,
        inverted: int = 0,
        report: int = 0,
        flags: int = 0,
    ) -> Iterator[PageRange]:
        """`scan` up to the end, however many times that takes."""
        while start < end:
            ranges, walk_end = self.scan(
                start,
                end,
                require=require,
                any_of=any_of,
                inverted=inverted,
                report=report,
                flags=flags,
            )
            yield from ranges
            if walk_end <= start:
                raise KernelError(
                    EINVAL, f"PAGEMAP_SCAN makes no progress at {start:#x}; run: refault doctor"
                )
            start = walk_end

    def entries(self, start: int, pages: int) -> list[int]:
        """The 64 bits (``ENTRY_*``) of each page from `start` on.

        Page frame numbers are zeros without CAP_SYS_ADMIN.  Huge pages have an entry for each
        of their small ones.
        """
        data = os.pread(self.fd, 8 * pages, start // mmap.PAGESIZE * 8)
        return memoryview(data).cast("Q").tolist()


def _translate(error: OSError, start: int, end: int) -> KernelError:
    number = error.errno or 0
    if number == EPERM:
        hint = "part of it is not registered for write protection with WP_ASYNC"
    elif number == ENOTTY:
        hint = "it came with Linux 6.7; run: refault doctor"
    else:
        hint = "align it to pages, and ask for categories that this kernel knows"
    return KernelError(number, f"PAGEMAP_SCAN of {start:#x}..{end:#x}: {error.strerror}; {hint}")

"""Memory of the five kinds that userfaultfd knows, and how to touch it.

A thread that touches lazy memory must not hold the GIL.  So all touching is done by C functions
called through `ctypes.CDLL`, which gives the GIL up; never by indexing, and not by `string_at`,
which keeps it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from refault.machine.pagemap import Pagemap

__all__ = [
    "ALL",
    "ANON",
    "HUGETLB",
    "HUGETLB_PRIVATE",
    "HUGE_PAGE",
    "NO_MEMORY",
    "PAGE",
    "SHARED",
    "SHMEM",
    "SHMEM_PRIVATE",
    "Area",
    "Kind",
    "Signalled",
    "catching",
    "entries",
    "huge_page_size",
    "libc",
    "load",
    "madvise",
    "map_memory",
    "mremap",
    "pattern",
    "punch",
    "read_bytes",
    "store",
]

PAGE: Final = mmap.PAGESIZE
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED = 1, 2, 0x20, 0x10
MAP_NORESERVE = 0x4000
PROT_READ, PROT_WRITE = 1, 2
MFD_HUGETLB = 4
MADV_DONTNEED, MADV_REMOVE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 9, 14, 15
MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE = 21, 22, 23, 25
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

libc = ctypes.CDLL(None, use_errno=True)
_void, _size = ctypes.c_void_p, ctypes.c_size_t
libc.mmap.restype = _void
libc.mmap.argtypes = (_void, _size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.mremap.restype = _void
libc.mremap.argtypes = (_void, _size, _size, ctypes.c_int, _void)
libc.munmap.argtypes = (_void, _size)
libc.mprotect.argtypes = (_void, _size, ctypes.c_int)
libc.madvise.argtypes = (_void, _size, ctypes.c_int)
libc.memcpy.restype = libc.memset.restype = _void
libc.memcpy.argtypes = (_void, _void, _size)
libc.memset.argtypes = (_void, ctypes.c_int, _size)
libc.memcmp.argtypes = (_void, _void, _size)
libc.read.restype = libc.write.restype = ctypes.c_ssize_t
libc.read.argtypes = libc.write.argtypes = (ctypes.c_int, _void, _size)
libc.syscall.restype = ctypes.c_long
libc.sigaction.argtypes = (ctypes.c_int, _void, _void)
FAILED: Final = ctypes.c_void_p(-1).value


class Kind(NamedTuple):
    """A kind of memory, by the name that the kernel's tests give it."""

    name: str
    file: bool
    shared: bool
    huge: bool


ANON: Final = Kind("anon", file=False, shared=False, huge=False)
SHMEM: Final = Kind("shmem", file=True, shared=True, huge=False)
SHMEM_PRIVATE: Final = Kind("shmem-private", file=True, shared=False, huge=False)
HUGETLB: Final = Kind("hugetlb", file=True, shared=True, huge=True)
HUGETLB_PRIVATE: Final = Kind("hugetlb-private", file=True, shared=False, huge=True)
ALL: Final = (ANON, SHMEM, SHMEM_PRIVATE, HUGETLB, HUGETLB_PRIVATE)
SHARED: Final = (SHMEM, HUGETLB)
NO_MEMORY: Final = (Kind("-", file=False, shared=False, huge=False),)


def huge_page_size() -> int:
    """The default huge page size of hugetlb; 0: there is none."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("Hugepagesize:"):
                return int(line.split()[1]) << 10
    return 0


HUGE_PAGE: Final = huge_page_size()


def _errno(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def map_memory(
    length: int, prot: int, flags: int, fd: int = -1, at: int | None = None, offset: int = 0
) -> int:
    address = libc.mmap(at, length, prot, flags, fd, offset)
    if address == FAILED:
        raise _errno("mmap")
    return int(address)


def madvise(start: int, length: int, advice: int) -> None:
    if libc.madvise(start, length, advice):
        raise _errno(f"madvise {advice}")


def mremap(old: int, length: int, new: int, flags: int = MREMAP_MAYMOVE | MREMAP_FIXED) -> int:
    address = libc.mremap(old, length, length, flags, new)
    if address == FAILED:
        raise _errno("mremap")
    return int(address)


def punch(fd: int, offset: int, length: int) -> None:
    """Punch a hole into a file."""
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise _errno("fallocate")


class Area:
    """A mapping, and for shared memory a second one of the same file, the alias.

    Parameters
    ----------
    kind
        What memory.
    pages
        How many pages of `page` bytes, its page size.
    align
        Where to begin: at a multiple of so many bytes.
    """

    def __init__(self, kind: Kind, pages: int, *, align: int = 0, prot: int = 3) -> None:
        self.kind = kind
        self.page = HUGE_PAGE if kind.huge else PAGE
        self.pages = pages
        self.length = pages * self.page
        self.fd = -1
        self.alias = 0
        flags = MAP_SHARED if kind.shared else MAP_PRIVATE
        if kind.file:
            huge = MFD_HUGETLB if kind.huge else 0
            self.fd = os.memfd_create("refault-scenario", os.MFD_CLOEXEC | huge)
            os.ftruncate(self.fd, self.length)
        else:
            flags |= MAP_ANONYMOUS
        at = None
        if align:
            hole = map_memory(self.length + align, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
            at = -(-hole // align) * align
            flags |= MAP_FIXED
        self.start = map_memory(self.length, prot, flags, self.fd, at)
        if kind.shared:
            self.alias = map_memory(self.length, 3, MAP_SHARED, self.fd)

    @property
    def end(self) -> int:
        return self.start + self.length

    def at(self, number: int) -> int:
        return self.start + number * self.page

    def numbers(self) -> range:
        return range(self.pages)

    def number(self, address: int) -> int:
        """Which page an address lies in."""
        return (address - self.start) // self.page

    def drop(self, first: int = 0, count: int | None = None) -> None:
        """Make pages missing again, in the file as well.

        In the file of a private mapping, too: whoever reads a page there that is neither in the
        mapping nor in the file puts one of zeros into the file of shmem.  From then on the page
        is not missing any more, whatever is dropped from the mapping.
        """
        count = self.pages - first if count is None else count
        start, length = self.at(first), count * self.page
        if self.kind.shared:
            madvise(start, length, MADV_REMOVE)
            return
        madvise(start, length, MADV_DONTNEED)
        if self.kind.file:
            punch(self.fd, first * self.page, length)


def pattern(number: int) -> int:
    """The byte that page `number` is filled with; never 0."""
    return number % 251 + 1


def filled(pages: int, page: int) -> int:
    """A private source, page `n` of which holds `pattern(n)` everywhere; its address."""
    source = map_memory(pages * page, 3, MAP_PRIVATE | MAP_ANONYMOUS)
    for number in range(pages):
        libc.memset(source + number * page, pattern(number), page)
    return source


def load(address: int) -> int:
    """The byte at `address`; the GIL is free meanwhile."""
    into = ctypes.create_string_buffer(1)
    libc.memcpy(into, address, 1)
    return into.raw[0]


def read_bytes(address: int, length: int) -> bytes:
    into = ctypes.create_string_buffer(length)
    libc.memcpy(into, address, length)
    return into.raw


def store(address: int, byte: int) -> None:
    libc.memset(address, byte, 1)


def is_filled(address: int, length: int, byte: int) -> bool:
    """Whether all of a range holds `byte`."""
    return load(address) == byte and (
        length == 1 or libc.memcmp(address, address + 1, length - 1) == 0
    )


def entries(start: int, pages: int, step: int = PAGE) -> list[int]:
    """The pagemap entry of each page of `step` bytes, in this process."""
    with Pagemap() as pagemap:
        return [pagemap.entries(start + number * step, 1)[0] for number in range(pages)]


# --- signals ------------------------------------------------------------------------------


class _Action(ctypes.Structure):
    """`struct sigaction` of glibc on 64-bit machines."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


SA_SIGINFO, SA_NODEFER = 4, 0x40000000
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Signalled:
    """The addresses at which the signal came."""

    def __init__(self) -> None:
        self.addresses: list[int] = []
        self.errors: list[BaseException] = []


@contextmanager
def catching(number: signal.Signals, repair: Callable[[int], Any]) -> Iterator[Signalled]:
    """Run `repair(address)` in the handler itself; the access is then made again.

    The handlers of the `signal` module run between two bytecodes, when the access is over.  This
    one is called by the kernel, in the midst of the C function that made the access.  That is
    sound as long as the access is made by a function of ctypes that has given the GIL up, and
    holds no lock of malloc: memcpy and memset.
    """
    found = Signalled()

    def handler(_: int, info: int, __: int) -> None:
        address = ctypes.c_uint64.from_address(info + 16).value
        found.addresses.append(address)
        try:
            repair(address)
        except BaseException as error:
            found.errors.append(error)
            os.write(2, f"in the handler of signal {number}: {error!r}\n".encode())
            os.abort()

    callback = _HANDLER(handler)
    action, before = _Action(), _Action()
    action.handler = ctypes.cast(callback, ctypes.c_void_p).value
    action.flags = SA_SIGINFO
    if libc.sigaction(number, ctypes.byref(action), ctypes.byref(before)):
        raise _errno("sigaction")
    try:
        yield found
    finally:
        libc.sigaction(number, ctypes.byref(before), None)

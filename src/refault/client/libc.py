"""The few calls of the C library that Python's own modules do not give.

Python's `mmap` module cannot choose an address, keeps a copy of the descriptor,
and unmaps whenever its object dies.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from refault.errors import KernelError

__all__ = [
    "dont_fork",
    "map_shared",
    "place",
    "reserve",
    "set_ptracer",
    "unmap",
]

MAP_SHARED = mmap.MAP_SHARED
MAP_PRIVATE = mmap.MAP_PRIVATE
MAP_ANONYMOUS = mmap.MAP_ANONYMOUS
MAP_NORESERVE = 0x4000
MAP_FIXED = 0x10
MAP_FIXED_NOREPLACE = 0x100000
PROT_NONE = 0
PROT_READ = mmap.PROT_READ
PROT_WRITE = mmap.PROT_WRITE
MADV_DONTFORK = 10
HUGE = 2 << 20
PR_SET_PTRACER = 0x59616D61

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4

FAILED = ctypes.c_void_p(-1).value

HINTS = {
    errno.ENOMEM: (
        "the range is larger than the address space that is left (ulimit -v), or the process has"
        " too many mappings: raise vm.max_map_count"
    ),
    errno.EEXIST: "something else is mapped there",
}


def map_shared(fd: int, offset: int, length: int, *, writable: bool, address: int = 0) -> int:
    """Map `length` bytes of `fd` and return where they are.

    With `address`, exactly there, over whatever is mapped there: for a range that
    `reserve` has taken.
    """
    flags = MAP_SHARED | MAP_NORESERVE | (MAP_FIXED if address else 0)
    protection = PROT_READ | PROT_WRITE if writable else PROT_READ
    return _map(address, length, protection, flags, fd, offset)


def reserve(address: int, length: int, *, replace: bool) -> None:
    """Keep a range of addresses with nothing behind it: every touch is a SIGSEGV.

    Parameters
    ----------
    address, length
        The range.
    replace
        What is mapped there goes; otherwise that is an error (EEXIST).
    """
    fixed = MAP_FIXED if replace else MAP_FIXED_NOREPLACE
    where = _map(address, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed)
    if where != address:  # a kernel before 4.17 takes the address for a hint
        unmap(where, length)
        raise _error(errno.EEXIST, f"mmap of {length} bytes at {address:#x}")


def place(length: int, offset: int) -> int:
    """Reserve a range where a file can be mapped from `offset` on with huge pages; 0 for any place.

    The kernel maps 2 MiB of a file at once where they are in one piece in the page cache, and
    lie at a multiple of 2 MiB both in the file and in memory.
    """
    if length < HUGE:
        return 0
    try:
        start = _map(0, length + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    except KernelError:
        return 0
    address = start + (offset - start) % HUGE
    end = address + length
    if address > start:
        unmap(start, address - start)
    if end < start + length + HUGE:
        unmap(end, start + length + HUGE - end)
    return address


def unmap(address: int, length: int) -> None:
    """Give a range back."""
    if _munmap(address, length):
        raise _error(ctypes.get_errno(), f"munmap of {length} bytes at {address:#x}")


def dont_fork(address: int, length: int) -> None:
    """Leave the range out of the memory of a forked child."""
    if _madvise(address, length, MADV_DONTFORK):
        raise _error(ctypes.get_errno(), f"madvise of {length} bytes at {address:#x}")


def set_ptracer(pid: int) -> None:
    """Let process `pid` read our memory where the Yama module restricts that.

    Without that module the kernel refuses the call, and there is no restriction.
    """
    _prctl(PR_SET_PTRACER, pid, 0, 0, 0)


def _map(
    address: int, length: int, protection: int, flags: int, fd: int = -1, offset: int = 0
) -> int:
    result = _mmap(address, length, protection, flags, fd, offset)
    if result is None or result == FAILED:
        place = f" at {address:#x}" if address else ""
        raise _error(ctypes.get_errno(), f"mmap of {length} bytes{place}")
    return int(result)


def _error(number: int, what: str) -> KernelError:
    hint = HINTS.get(number, "run: refault doctor")
    return KernelError(number, f"{what}: {os.strerror(number)}; {hint}")

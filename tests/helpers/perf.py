"""Counts the page faults of one thread: the kernel's software events, by perf_event_open."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import struct
from typing import NamedTuple

__all__ = ["FaultCounters", "Faults", "own_all_pages", "perf_problem"]

SYSCALL = {"x86_64": 298, "aarch64": 241}
TYPE_SOFTWARE = 1
PAGE_FAULTS, PAGE_FAULTS_MIN, PAGE_FAULTS_MAJ = 2, 5, 6
ATTRIBUTE_SIZE = 64
EXCLUDE_KERNEL = 1 << 5
FLAG_CLOEXEC = 8
MADV_POPULATE_WRITE = 23

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Faults(NamedTuple):
    """Exceptions of the processor, and how the kernel accounted them."""

    all: int
    minor: int
    major: int


class FaultCounters:
    """Page faults of the thread that makes this object, from now on; user mode only."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        try:
            for config in (PAGE_FAULTS, PAGE_FAULTS_MIN, PAGE_FAULTS_MAJ):
                self._fds.append(_open(config))
        except OSError:
            self.close()
            raise

    def read(self) -> Faults:
        return Faults(*(int.from_bytes(os.read(fd, 8), "little") for fd in self._fds))

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _open(config: int) -> int:
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(0, f"unknown machine {platform.machine()}")
    attribute = struct.pack(
        "=IIQQQQQ", TYPE_SOFTWARE, ATTRIBUTE_SIZE, config, 0, 0, 0, EXCLUDE_KERNEL
    )
    attribute = attribute.ljust(ATTRIBUTE_SIZE, b"\0")
    fd = int(
        _libc.syscall(
            ctypes.c_long(number),
            ctypes.c_char_p(attribute),
            ctypes.c_long(0),
            ctypes.c_long(-1),
            ctypes.c_long(-1),
            ctypes.c_long(FLAG_CLOEXEC),
        )
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def own_all_pages() -> None:
    """Make every page of ours present and writable, so that only others' faults are counted.

    After a fork the first write to each page is a fault.  To be called before anything is lazy.
    """
    _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with open("/proc/self/maps") as file:
        lines = file.readlines()
    for line in lines:
        where, rights = line.split()[:2]
        if rights == "rw-p":
            start, end = (int(part, 16) for part in where.split("-"))
            _libc.madvise(start, end - start, MADV_POPULATE_WRITE)


@functools.cache
def perf_problem() -> str | None:
    """Why faults cannot be counted here; None if they can."""
    try:
        FaultCounters().close()
    except OSError as error:
        return f"perf_event_open is refused ({error.strerror}): see kernel.perf_event_paranoid"
    return None

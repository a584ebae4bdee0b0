"""Pins of pages: by io_uring for as long as we like, by process_vm_readv in passing."""

from __future__ import annotations

import ctypes
import errno
import os

from .memory import libc
from .registry import KernelRefuses

__all__ = ["pin_for_long", "pin_in_passing"]

IO_URING_SETUP, IO_URING_REGISTER, REGISTER_BUFFERS = 425, 427, 0


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def pin_for_long(start: int, length: int) -> int:
    """Pin pages, writable, until the descriptor that is returned is closed."""
    parameters = ctypes.create_string_buffer(120)
    fd = int(libc.syscall(ctypes.c_long(IO_URING_SETUP), ctypes.c_long(1), parameters))
    if fd < 0:
        code = ctypes.get_errno()
        raise KernelRefuses(f"io_uring, which pins for us: {os.strerror(code)}")
    vector = _Vector(start, length)
    done = libc.syscall(
        ctypes.c_long(IO_URING_REGISTER),
        ctypes.c_long(fd),
        ctypes.c_long(REGISTER_BUFFERS),
        ctypes.byref(vector),
        ctypes.c_long(1),
    )
    if done < 0:
        code = ctypes.get_errno()
        os.close(fd)
        if code in (errno.ENOMEM, errno.EPERM):
            raise KernelRefuses(f"io_uring may pin nothing: {os.strerror(code)}")
        raise OSError(code, f"io_uring_register: {os.strerror(code)}")
    return fd


def pin_in_passing(start: int, length: int) -> bytes:
    """Read our own memory as process_vm_readv does: under a read-only pin."""
    into = ctypes.create_string_buffer(length)
    local = _Vector(ctypes.addressof(into), length)
    remote = _Vector(start, length)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    got = libc.process_vm_readv(
        os.getpid(),
        ctypes.byref(local),
        ctypes.c_ulong(1),
        ctypes.byref(remote),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    if got != length:
        code = ctypes.get_errno()
        raise OSError(code, f"process_vm_readv: {os.strerror(code)}")
    return into.raw

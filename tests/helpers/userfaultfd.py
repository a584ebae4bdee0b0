"""Whether this machine gives userfaultfd to a test, asked of the kernel directly.

Independent of `refault.machine.uffd`, so that a mistake there shows as a
failure and not as a skip.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import platform
import struct

import pytest

__all__ = ["needs_userfaultfd", "open_userfaultfd", "userfaultfd_problem"]

SYSCALL = {"x86_64": 323, "aarch64": 282}
UFFD_USER_MODE_ONLY = 1
UFFD_API = 0xAA
UFFDIO_API = 0xC018AA3F
USERFAULTFD_IOC_NEW = 0xAA00
UFFD_FEATURE_MINOR_SHMEM = 1 << 10
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12


@functools.cache
def userfaultfd_problem() -> str | None:
    """Why the tests on real memory cannot run here; None if they can."""
    try:
        fd = open_userfaultfd()
    except OSError as error:
        return (
            f"userfaultfd is not available ({error.strerror}): allow /dev/userfaultfd to this"
            " user, or set vm.unprivileged_userfaultfd=1"
        )
    try:
        answer = bytearray(struct.pack("=QQQ", UFFD_API, 0, 0))
        fcntl.ioctl(fd, UFFDIO_API, answer)
    except OSError as error:
        return f"userfaultfd refuses UFFDIO_API: {error.strerror}"
    finally:
        os.close(fd)
    features = struct.unpack("=QQQ", answer)[1]
    wanted = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    if features & wanted != wanted:
        return "the kernel is too old: write protection of shared memory came with Linux 5.19"
    return None


def open_userfaultfd() -> int:
    """Open a userfaultfd with the most that we may have; UFFDIO_API is still to be done."""
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return _syscall()
    try:
        return fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)


def _syscall() -> int:
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(0, f"unknown machine {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


needs_userfaultfd = pytest.mark.skipif(
    userfaultfd_problem() is not None, reason=str(userfaultfd_problem())
)
"""Decorator for tests on real memory; without rights they are skipped, and say why."""

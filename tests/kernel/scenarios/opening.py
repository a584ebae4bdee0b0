"""1 to 3: the API handshake and what registering answers."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from refault.errors import KernelError
from refault.machine import uffd

from .memory import ALL, HUGE_PAGE, Area, Kind
from .registry import KernelRefuses, NotApplicable, scenario
from .serving import offered, open_descriptor, raw_ioctl

__all__: list[str] = []

REGISTER, UNREGISTER, API = 1 << 0, 1 << 1, 1 << 63
WAKE, COPY, ZEROPAGE, MOVE, WRITEPROTECT, CONTINUE, POISON = (1 << bit for bit in range(2, 9))


def handshake(door: uffd.Door) -> None:
    def agree(api: int, features: int) -> tuple[int, tuple[int, int, int]]:
        argument = bytearray(struct.pack("=QQQ", api, features, 0))
        try:
            fcntl.ioctl(fd, uffd.UFFDIO_API, argument)
        except OSError as error:
            return error.errno or -1, struct.unpack("=QQQ", argument)
        return 0, struct.unpack("=QQQ", argument)

    try:
        fd = uffd.open_door(door)
    except OSError as error:
        raise KernelRefuses(f"{door}: {error.strerror}") from error
    nothing = (0, 0, 0)
    assert agree(uffd.UFFD_API + 1, 0) == (errno.EINVAL, nothing)
    assert agree(uffd.UFFD_API, 1 << 63) == (errno.EINVAL, nothing)
    code, (api, features, ioctls) = agree(uffd.UFFD_API, 0)
    assert (code, api) == (0, uffd.UFFD_API)
    assert features & uffd.FEATURE_PAGEFAULT_FLAG_WP
    assert ioctls == REGISTER | UNREGISTER | API
    assert agree(uffd.UFFD_API, 0)[0] == errno.EINVAL, "a second time"
    os.close(fd)


@scenario(1, title="API by system call: refuses what it does not know, agrees once")
def api_syscall(_: Kind) -> None:
    handshake("syscall")


@scenario(2, title="API by /dev/userfaultfd: the same")
def api_device(_: Kind) -> None:
    if not os.path.exists(uffd.DEVICE):
        raise NotApplicable(f"no {uffd.DEVICE}: it came with Linux 6.1")
    handshake("device")


@scenario(3, title="REGISTER with every set of modes, and the ioctls it promises", kinds=ALL)
def register_ioctls(kind: Kind) -> str:
    area = Area(kind, 4)
    features = offered()
    accepted = []
    for mode in range(8):
        descriptor = open_descriptor()
        expected = WAKE | COPY | (0 if kind.huge else ZEROPAGE)
        if features & uffd.FEATURE_MOVE and not kind.huge:
            expected |= MOVE
        if features & uffd.FEATURE_POISON:
            expected |= POISON
        if mode & uffd.MODE_WP:
            expected |= WRITEPROTECT
        if mode & uffd.MODE_MINOR:
            expected |= CONTINUE
        try:
            answer = descriptor.register(area.start, area.length, mode)
        except KernelError as error:
            assert error.errno == errno.EINVAL
            assert mode == 0 or (mode & uffd.MODE_MINOR and not kind.file), f"mode {mode}"
        else:
            assert mode != 0
            assert answer == expected, f"mode {mode}: {answer:#x}, not {expected:#x}"
            accepted.append(mode)
            descriptor.unregister(area.start, area.length)
        descriptor.close()
    assert accepted == [mode for mode in range(1, 8) if kind.file or not mode & uffd.MODE_MINOR]
    if kind.huge:
        descriptor = open_descriptor()
        odd = raw_ioctl(descriptor.fd, uffd.UFFDIO_REGISTER, area.start, HUGE_PAGE // 2, 1)
        assert odd.errno == errno.EINVAL, "half a huge page"
    return "MINOR is refused (EINVAL)" if not kind.file else ""

"""13 to 15: minor faults, of pages that the file has and the mapping lacks."""

from __future__ import annotations

import errno
import os

from refault.machine import uffd
from refault.machine.uffd import (
    FAULT_MINOR,
    FAULT_WP,
    FAULT_WRITE,
    MODE_MINOR,
    MODE_WP,
    Message,
    Userfaultfd,
)

from .memory import (
    MADV_COLLAPSE,
    SHARED,
    SHMEM,
    Area,
    Kind,
    is_filled,
    libc,
    load,
    madvise,
    pattern,
    store,
)
from .registry import KernelRefuses, scenario
from .serving import Monitor, open_monitor, raw_ioctl
from .thp import huge_bytes, require_thp

__all__: list[str] = []


def _served(area: Area, modes: int, mode: int) -> Monitor:
    """Fill the file through the alias; each answer turns the bytes round and continues."""
    descriptor = open_monitor(area, modes)

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        number = area.number(message[2])
        if message[1] & FAULT_WP:
            descriptor.write_protect(area.at(number), area.page, 0)
            return
        assert message[1] & FAULT_MINOR
        alias = area.alias + number * area.page
        assert load(alias) == pattern(number)
        libc.memset(alias, 255 - pattern(number), area.page)
        descriptor.continue_(area.at(number), area.page, mode)

    monitor = Monitor(descriptor, answer)
    for number in area.numbers():
        libc.memset(area.alias + number * area.page, pattern(number), area.page)
    return monitor


@scenario(
    13,
    title="minor faults: one for each page read, none for the alias; CONTINUE shows what the"
    " answer changed",
    kinds=SHARED,
)
def minor(kind: Kind) -> None:
    area = Area(kind, 8)
    monitor = _served(area, MODE_MINOR, 0)
    assert not monitor.heard, "the alias is not registered"
    for number in area.numbers():
        assert is_filled(area.at(number), area.page, 255 - pattern(number))
    again = raw_ioctl(monitor.uffd.fd, uffd.UFFDIO_CONTINUE, area.start, area.page, 0)
    assert again == (errno.EEXIST, -errno.EEXIST)
    assert len(monitor.stop()) == area.pages
    assert monitor.faults(FAULT_MINOR) == area.pages


@scenario(14, title="minor faults answered write-protected: the first store asks", kinds=SHARED)
def minor_wp(kind: Kind) -> None:
    area = Area(kind, 8)
    monitor = _served(area, MODE_MINOR | MODE_WP, uffd.CONTINUE_WP)
    for number in area.numbers():
        assert load(area.at(number)) == 255 - pattern(number)
        store(area.at(number), 7)
        store(area.at(number) + 1, 7)
    monitor.stop()
    assert monitor.faults(FAULT_MINOR) == area.pages
    assert monitor.faults(FAULT_WP | FAULT_WRITE) == area.pages
    assert os.pread(area.fd, 2, 0) == b"\7\7"


@scenario(
    15,
    title="MADV_COLLAPSE after minor faults keeps the contents",
    kinds=(SHMEM,),
)
def minor_collapse(kind: Kind) -> str:
    size = require_thp()
    area = Area(kind, size // os.sysconf("SC_PAGE_SIZE"), align=size)
    monitor = _served(area, MODE_MINOR, 0)
    for number in area.numbers():
        assert load(area.at(number)) == 255 - pattern(number)
    monitor.stop()
    try:
        madvise(area.start, area.length, MADV_COLLAPSE)
    except OSError as error:
        raise KernelRefuses(f"MADV_COLLAPSE: {error.strerror}") from error
    for number in area.numbers():
        assert is_filled(area.at(number), area.page, 255 - pattern(number))
    return f"{huge_bytes(area.start, area.length) >> 10} KiB mapped huge"

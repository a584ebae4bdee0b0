"""4, 31, 43: zeros, poison, and what COPY must not do."""

from __future__ import annotations

import errno
import signal

from refault.machine import uffd
from refault.machine.uffd import MODE_MISSING, MODE_WP, Message, Userfaultfd

from .memory import (
    ALL,
    ANON,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE,
    SHMEM,
    SHMEM_PRIVATE,
    Area,
    Kind,
    catching,
    filled,
    is_filled,
    libc,
    load,
    map_memory,
    pattern,
    store,
)
from .registry import NotApplicable, scenario
from .serving import Monitor, offered, open_monitor, raw_ioctl

__all__: list[str] = []


@scenario(4, title="ZEROPAGE gives zeros once; not on huge pages", kinds=ALL)
def zeropage(kind: Kind) -> str:
    area = Area(kind, 2)
    descriptor = open_monitor(area, MODE_MISSING)
    first = (area.start, area.page, 0)
    once = raw_ioctl(descriptor.fd, uffd.UFFDIO_ZEROPAGE, *first)
    if kind.huge:
        assert once.errno == errno.EINVAL
        return "EINVAL, as it should"
    assert once == (0, area.page)
    assert is_filled(area.start, area.page, 0)
    assert raw_ioctl(descriptor.fd, uffd.UFFDIO_ZEROPAGE, *first) == (errno.EEXIST, -errno.EEXIST)

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        descriptor.zeropage(area.at(area.number(message[2])), area.page)

    monitor = Monitor(descriptor, answer)
    assert load(area.at(1) + 5) == 0
    assert len(monitor.stop()) == 1
    return ""


@scenario(31, title="POISON every other page (SIGBUS there), COPY the rest", kinds=ALL)
def poison(kind: Kind) -> None:
    if not offered() & uffd.FEATURE_POISON:
        raise NotApplicable("UFFDIO_POISON came with Linux 6.6")
    area = Area(kind, 8)
    source = filled(area.pages, area.page)

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        number = area.number(message[2])
        if number % 2:
            descriptor.copy(area.at(number), source + number * area.page, area.page)
        else:
            descriptor.poison(area.at(number), area.page)

    def replace(address: int) -> None:
        """Put other memory there, so that the access can be made again."""
        hole = address & -area.page
        libc.munmap(hole, area.page)
        map_memory(area.page, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at=hole)

    monitor = Monitor(open_monitor(area, MODE_MISSING), answer)
    with catching(signal.SIGBUS, replace) as signals:
        seen = [load(area.at(number)) for number in area.numbers()]
    assert seen == [pattern(n) if n % 2 else 0 for n in area.numbers()]
    assert [address & -area.page for address in signals.addresses] == [
        area.at(number) for number in area.numbers() if not number % 2
    ]
    assert len(monitor.stop()) == area.pages


@scenario(
    43,
    title="COPY into a range without PROT_WRITE makes no page writable",
    kinds=(ANON, SHMEM, SHMEM_PRIVATE),
)
def mkdirty(kind: Kind) -> None:
    area = Area(kind, 2)
    descriptor = open_monitor(area, MODE_MISSING | MODE_WP)
    libc.mprotect(area.start, area.length, 1)
    source = filled(2, area.page)
    descriptor.copy(area.start, source, area.page)
    descriptor.copy(area.at(1), source + area.page, area.page, uffd.COPY_WP)
    descriptor.write_protect(area.at(1), area.page, 0)

    def allow(_: int) -> None:
        libc.mprotect(area.start, area.length, 3)

    for number in area.numbers():
        libc.mprotect(area.start, area.length, 1)
        with catching(signal.SIGSEGV, allow) as signals:
            store(area.at(number), 0xEE)
        assert signals.addresses == [area.at(number)], f"page {number} could be written"
        assert load(area.at(number)) == 0xEE
        assert load(area.at(number) + PAGE - 1) == pattern(number)

"""16 to 26: protection against reads and writes (RWP, Linux 7.3)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Final

from refault.machine import uffd
from refault.machine.pagemap import ENTRY_UFFD_WP, PAGE_IS_ACCESSED, Pagemap
from refault.machine.uffd import Message, Userfaultfd

from .memory import (
    ALL,
    ANON,
    MADV_PAGEOUT,
    Area,
    Kind,
    entries,
    libc,
    load,
    madvise,
    pattern,
    store,
)
from .pinning import pin_in_passing
from .registry import NotApplicable, scenario
from .serving import Link, Monitor, Program, offered, open_descriptor
from .swapping import NO_SWAP, has_swap

__all__: list[str] = []

FEATURE_RWP: Final = 1 << 17
FEATURE_RWP_ASYNC: Final = 1 << 18
MODE_RWP: Final = 8
FAULT_RWP: Final = 8
UFFDIO_RWPROTECT: Final = 0xC018AA09
UFFDIO_SET_MODE: Final = 0x4010AA0A
PAGES: Final = 4


def control(descriptor: Userfaultfd, request: int, *fields: int) -> None:
    fcntl.ioctl(descriptor.fd, request, bytearray(struct.pack(f"={len(fields)}Q", *fields)))


def protect(descriptor: Userfaultfd, start: int, length: int, mode: int = 1) -> None:
    """Protect against all access; with mode 0 allow it, and wake."""
    control(descriptor, UFFDIO_RWPROTECT, start, length, mode)


def tracked(kind: Kind, features: int = 0) -> tuple[Area, Userfaultfd]:
    """A filled area that is registered for RWP."""
    if not offered() & FEATURE_RWP:
        raise NotApplicable("RWP came with Linux 7.3")
    area = Area(kind, PAGES)
    for number in area.numbers():
        libc.memset(area.at(number), pattern(number), area.page)
    descriptor = open_descriptor(FEATURE_RWP | features, page_size=area.page)
    descriptor.register(area.start, area.length, MODE_RWP)
    return area, descriptor


def allowing(area: Area, descriptor: Userfaultfd) -> Monitor:
    """Allows what is asked for."""

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        assert message[1] & FAULT_RWP
        protect(descriptor, area.at(area.number(message[2])), area.page, 0)

    return Monitor(descriptor, answer)


def accessed(area: Area) -> list[int]:
    with Pagemap() as pages:
        found = pages.scan_all(area.start, area.end, require=PAGE_IS_ACCESSED)
        return [area.number(at) for s, e, _ in found for at in range(s, e, area.page)]


def marks(area: Area) -> list[bool]:
    return [bool(entry & ENTRY_UFFD_WP) for entry in entries(area.start, PAGES, area.page)]


@scenario(16, title="RWP, asynchronous: accesses go on without a message", kinds=ALL)
def rwp_async(kind: Kind) -> None:
    area, descriptor = tracked(kind, FEATURE_RWP_ASYNC)
    protect(descriptor, area.start, area.length)
    assert all(marks(area))
    for number in area.numbers():
        assert load(area.at(number)) == pattern(number)
        store(area.at(number), 9)
    assert not any(marks(area))
    assert descriptor.read_messages(bytearray(64)) == []


@scenario(17, title="RWP, synchronous: the first access of each page asks", kinds=ALL)
def rwp_sync(kind: Kind) -> None:
    area, descriptor = tracked(kind)
    protect(descriptor, area.start, area.length)
    monitor = allowing(area, descriptor)
    for number in area.numbers():
        assert load(area.at(number)) == pattern(number)
        store(area.at(number), 9)
    assert len(monitor.stop()) == PAGES


@scenario(18, title="RWP: PAGEMAP_SCAN says which pages were accessed", kinds=ALL)
def rwp_pagemap(kind: Kind) -> None:
    area, descriptor = tracked(kind, FEATURE_RWP_ASYNC)
    protect(descriptor, area.start, area.length)
    assert accessed(area) == []
    load(area.at(1))
    store(area.at(3), 9)
    assert accessed(area) == [1, 3]


@scenario(19, title="RWP survives mprotect to nothing and back", kinds=ALL)
def rwp_mprotect(kind: Kind) -> None:
    area, descriptor = tracked(kind, FEATURE_RWP_ASYNC)
    protect(descriptor, area.start, area.length)
    libc.mprotect(area.start, area.length, 0)
    libc.mprotect(area.start, area.length, 3)
    assert all(marks(area))
    assert accessed(area) == []
    assert load(area.at(2)) == pattern(2)
    assert accessed(area) == [2]


@scenario(20, title="RWP: system calls get through to the page as well", kinds=ALL)
def rwp_gup(kind: Kind) -> None:
    area, descriptor = tracked(kind, FEATURE_RWP_ASYNC)
    protect(descriptor, area.start, area.length)
    reading, writing = os.pipe()
    assert libc.write(writing, area.at(1), 8) == 8
    assert os.read(reading, 8) == bytes([pattern(1)]) * 8
    assert pin_in_passing(area.at(2), 4) == bytes([pattern(2)]) * 4
    assert accessed(area) == [1, 2]


@scenario(21, title="RWP: SET_MODE turns asynchronous into synchronous", kinds=ALL)
def rwp_async_toggle(kind: Kind) -> None:
    area, descriptor = tracked(kind, FEATURE_RWP_ASYNC)
    protect(descriptor, area.start, area.length)
    assert load(area.at(0)) == pattern(0)
    control(descriptor, UFFDIO_SET_MODE, 0, FEATURE_RWP_ASYNC)
    monitor = allowing(area, descriptor)
    assert load(area.at(1)) == pattern(1)
    assert len(monitor.stop()) == 1
    control(descriptor, UFFDIO_SET_MODE, FEATURE_RWP_ASYNC, 0)
    assert load(area.at(2)) == pattern(2)
    assert descriptor.read_messages(bytearray(64)) == []


@scenario(22, title="RWP ends with the descriptor", kinds=ALL)
def rwp_close(kind: Kind) -> None:
    area, descriptor = tracked(kind)
    protect(descriptor, area.start, area.length)
    descriptor.close()
    assert not any(marks(area))
    assert [load(area.at(number)) for number in area.numbers()] == [*map(pattern, range(PAGES))]


def in_forked_program(kind: Kind, child: Callable[[Area], None]) -> None:
    """Fork with protected pages, with the event of fork read here."""

    def body(link: Link) -> None:
        area, descriptor = tracked(kind, FEATURE_RWP_ASYNC | uffd.FEATURE_EVENT_FORK)
        link.send("here", descriptor.fd)
        link.receive()
        protect(descriptor, area.start, area.length)
        Program(lambda _: child(area)).result()
        assert all(marks(area)), "the parent keeps it"

    if not offered() & FEATURE_RWP:
        raise NotApplicable("RWP came with Linux 7.3")
    program = Program(body)
    _, (fd,) = program.link.receive()
    monitor = Monitor(Userfaultfd(fd), lambda _, message: None)
    program.link.send("go on")
    program.result()
    assert [message[0] for message in monitor.stop()] == [uffd.EVENT_FORK]


@scenario(23, title="RWP after a fork with its event: the child keeps it", kinds=ALL)
def rwp_fork(kind: Kind) -> None:
    def child(area: Area) -> None:
        assert all(marks(area))
        assert load(area.at(1)) == pattern(1)
        assert accessed(area) == [1]

    in_forked_program(kind, child)


@scenario(24, title="RWP after a fork, and a pin in the child", kinds=ALL)
def rwp_fork_pin(kind: Kind) -> None:
    def child(area: Area) -> None:
        assert pin_in_passing(area.at(1), 4) == bytes([pattern(1)]) * 4
        assert marks(area)[2:] == [True, True]

    in_forked_program(kind, child)


@scenario(25, title="RWP of pages that are swapped out and copied on write", kinds=(ANON,))
def rwp_swap_cow(kind: Kind) -> None:
    area, descriptor = tracked(kind, FEATURE_RWP_ASYNC)
    if not has_swap():
        raise NotApplicable(NO_SWAP)
    protect(descriptor, area.start, area.length)
    madvise(area.start, area.length, MADV_PAGEOUT)
    assert all(marks(area))

    def child() -> None:
        assert load(area.at(1)) == pattern(1)
        store(area.at(1), 9)

    Program(lambda _: child()).result()
    assert load(area.at(1)) == pattern(1)
    store(area.at(2), 9)
    assert marks(area) == [True, False, False, True]


@scenario(26, title="RWP and write protection exclude each other", kinds=ALL)
def rwp_wp_exclusive(kind: Kind) -> None:
    tracked(kind)
    other = open_descriptor(FEATURE_RWP)
    second = Area(kind, 1)
    try:
        control(
            other,
            uffd.UFFDIO_REGISTER,
            second.start,
            second.length,
            MODE_RWP | uffd.MODE_WP,
            0,
        )
    except OSError as error:
        assert error.errno == errno.EINVAL
    else:
        raise AssertionError("both at once were accepted")

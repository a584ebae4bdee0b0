"""5 to 7: MOVE, page by page and a huge page at once."""

from __future__ import annotations

import errno

from refault.machine import uffd
from refault.machine.uffd import MODE_MISSING, Message, Userfaultfd

from .memory import (
    ALL,
    ANON,
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    PAGE,
    Area,
    Kind,
    entries,
    is_filled,
    libc,
    load,
    madvise,
    pattern,
)
from .registry import KernelRefuses, NotApplicable, scenario
from .serving import Monitor, offered, open_monitor, raw_ioctl
from .thp import huge_bytes, require_thp

__all__: list[str] = []

PRESENT = 1 << 63


def require_move() -> None:
    if not offered() & uffd.FEATURE_MOVE:
        raise NotApplicable("UFFDIO_MOVE came with Linux 6.8")


@scenario(5, title="MOVE answers each fault and leaves its source empty", kinds=ALL)
def move(kind: Kind) -> str:
    require_move()
    target, source = Area(kind, 8), Area(kind, 8)
    for number in source.numbers():
        libc.memset(source.at(number), pattern(number), source.page)
    descriptor = open_monitor(target, MODE_MISSING)
    if kind is not ANON:
        said = raw_ioctl(
            descriptor.fd, uffd.UFFDIO_MOVE, target.start, source.start, target.page, 0
        )
        assert said.errno == errno.EINVAL
        raise KernelRefuses("EINVAL: MOVE is for private anonymous memory")

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        number = target.number(message[2])
        descriptor.move(target.at(number), source.at(number), target.page)

    monitor = Monitor(descriptor, answer)
    for number in target.numbers():
        assert load(target.at(number) + number) == pattern(number)
        assert is_filled(target.at(number), target.page, pattern(number))
    assert len(monitor.stop()) == target.pages
    assert not any(entry & PRESENT for entry in entries(source.start, source.pages))
    assert load(source.at(3)) == 0
    hole = raw_ioctl(descriptor.fd, uffd.UFFDIO_MOVE, target.start, source.at(4), PAGE, 0)
    assert hole.errno == errno.EEXIST, "the target is looked at first"
    return ""


def _huge_pair() -> tuple[Area, Area, int]:
    """Two aligned ranges of two huge pages, of which the source is filled with huge pages."""
    require_move()
    size = require_thp()
    source = Area(ANON, 2 * size // PAGE, align=size)
    target = Area(ANON, 2 * size // PAGE, align=size)
    madvise(source.start, source.length, MADV_HUGEPAGE)
    madvise(target.start, target.length, MADV_HUGEPAGE)
    for number in source.numbers():
        libc.memset(source.at(number), pattern(number), PAGE)
    if huge_bytes(source.start, source.length) != source.length:
        try:
            madvise(source.start, source.length, MADV_COLLAPSE)
        except OSError as error:
            raise KernelRefuses(f"no huge page could be had: {error.strerror}") from error
    assert huge_bytes(source.start, source.length) == source.length
    return target, source, size


@scenario(6, title="MOVE of a whole transparent huge page keeps it huge", kinds=(ANON,))
def move_pmd(_: Kind) -> None:
    target, source, size = _huge_pair()
    descriptor = open_monitor(target, MODE_MISSING)

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        at = (message[2] & -size) - target.start
        descriptor.move(target.start + at, source.start + at, size)

    monitor = Monitor(descriptor, answer)
    for number in target.numbers():
        assert is_filled(target.at(number), PAGE, pattern(number))
    assert len(monitor.stop()) == 2, "one fault for each huge page"
    assert huge_bytes(target.start, target.length) == target.length
    assert huge_bytes(source.start, source.length) == 0
    assert load(source.start) == 0


@scenario(7, title="MOVE of part of a transparent huge page splits it", kinds=(ANON,))
def move_pmd_split(_: Kind) -> None:
    target, source, size = _huge_pair()
    descriptor = open_monitor(target, MODE_MISSING)
    piece = size // 8

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        at = (message[2] & -piece) - target.start
        descriptor.move(target.start + at, source.start + at, piece)

    monitor = Monitor(descriptor, answer)
    for number in target.numbers():
        assert is_filled(target.at(number), PAGE, pattern(number))
    assert len(monitor.stop()) == 2 * 8
    assert huge_bytes(target.start, target.length) == 0
    assert load(source.at(1)) == 0

"""37 to 40, 44: what mremap does to write protection and to registration."""

from __future__ import annotations

import select

from refault.machine import uffd
from refault.machine.pagemap import ENTRY_SWAPPED, ENTRY_UFFD_WP
from refault.machine.uffd import MODE_WP, Message, Userfaultfd

from .memory import (
    ANON,
    HUGETLB,
    HUGETLB_PRIVATE,
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    PAGE,
    SHMEM,
    SHMEM_PRIVATE,
    Area,
    Kind,
    entries,
    libc,
    load,
    madvise,
    mremap,
    pattern,
    store,
)
from .registry import KernelRefuses, NotApplicable, scenario
from .serving import Monitor, open_monitor
from .swapping import NO_SWAP, has_swap
from .thp import huge_bytes, require_thp, thp_sizes

__all__: list[str] = []

SMALL = (ANON, SHMEM, SHMEM_PRIVATE)


def moved_bits(area: Area, room: Area, features: int = 0) -> tuple[list[bool], Userfaultfd]:
    """Protect `area`, move it to `room`; which small pages still carry the bit."""
    descriptor = open_monitor(area, MODE_WP, features)
    descriptor.write_protect(area.start, area.length)
    pages = area.length // PAGE
    assert all(entry & ENTRY_UFFD_WP for entry in entries(area.start, pages))

    def answer(_: Userfaultfd, message: Message) -> None:
        assert message == (uffd.EVENT_REMAP, area.start, room.start, area.length)

    monitor = Monitor(descriptor, answer)
    libc.munmap(room.start, room.length)
    mremap(area.start, area.length, room.start)
    assert len(monitor.stop()) == bool(features)
    return [bool(entry & ENTRY_UFFD_WP) for entry in entries(room.start, pages)], descriptor


def fill(area: Area) -> None:
    for number in area.numbers():
        libc.memset(area.at(number), pattern(number), area.page)


def check_moved(area: Area, room: Area, bits: list[bool]) -> None:
    assert not any(bits), f"{sum(bits)} of {len(bits)} pages are still protected"
    for number in area.numbers():
        assert load(room.at(number)) == pattern(number)
        # Nobody listens there any more: a page that is protected would hang here.
        store(room.at(number), 1)


@scenario(37, title="mremap without its event takes the protection of small pages", kinds=SMALL)
def remap_base(kind: Kind) -> str:
    area, room = Area(kind, 8), Area(kind, 8)
    fill(area)
    bits, _ = moved_bits(area, room)
    check_moved(area, room, bits)
    area, room = Area(kind, 8), Area(kind, 8)
    fill(area)
    bits, descriptor = moved_bits(area, room, uffd.FEATURE_EVENT_REMAP)
    assert all(bits), "with the event all stay"
    monitor = Monitor(descriptor, lambda d, m: d.write_protect(m[2] & -PAGE, PAGE, 0))
    store(room.start, 1)
    assert len(monitor.stop()) == 1
    return "with the event all stay"


@scenario(38, title="the same for pages that are swapped out", kinds=SMALL)
def remap_swapped(kind: Kind) -> None:
    if not has_swap():
        raise NotApplicable(NO_SWAP)
    area, room = Area(kind, 8), Area(kind, 8)
    fill(area)
    descriptor = open_monitor(area, MODE_WP)
    descriptor.write_protect(area.start, area.length)
    madvise(area.start, area.length, MADV_PAGEOUT)
    wanted = ENTRY_UFFD_WP if kind.shared else ENTRY_UFFD_WP | ENTRY_SWAPPED
    assert all(entry & wanted == wanted for entry in entries(area.start, 8))
    libc.munmap(room.start, room.length)
    mremap(area.start, area.length, room.start)
    bits = [bool(entry & ENTRY_UFFD_WP) for entry in entries(room.start, 8)]
    check_moved(area, room, bits)


@scenario(39, title="the same for transparent huge pages", kinds=(ANON, SHMEM))
def remap_thp(kind: Kind) -> str:
    size = require_thp()
    area, room = (Area(kind, size // PAGE, align=size) for _ in range(2))
    madvise(area.start, area.length, MADV_HUGEPAGE)
    fill(area)
    try:
        madvise(area.start, area.length, MADV_COLLAPSE)
    except OSError as error:
        raise KernelRefuses(f"MADV_COLLAPSE: {error.strerror}") from error
    assert huge_bytes(area.start, area.length) == size
    bits, _ = moved_bits(area, room)
    check_moved(area, room, bits)
    others = len([s for s in thp_sizes("shmem_enabled" if kind.file else "enabled") if s != size])
    remark = f"{size >> 10} KiB"
    if others:
        remark += f", not the {others} smaller sizes"
    return remark + ("" if has_swap() else f"; not swapped out: {NO_SWAP}")


@scenario(40, title="the same for hugetlb pages", kinds=(HUGETLB, HUGETLB_PRIVATE))
def remap_hugetlb(kind: Kind) -> str:
    area = Area(kind, 2, align=2 << 20)
    room = Area(kind, 2, align=2 << 20)
    fill(area)
    bits, _ = moved_bits(area, room)
    check_moved(area, room, bits)
    return f"{area.page >> 10} KiB, the default size"


@scenario(
    44,
    title="mremap of registered huge pages; and pages that same-page merging (ksm) leaves alone",
    kinds=(HUGETLB, ANON),
)
def hugetlb_mremap_and_ksm(kind: Kind) -> str:
    if kind is ANON:
        return _ksm()
    area, room = (Area(kind, 4, align=2 << 20) for _ in range(2))
    fill(area)
    descriptor = open_monitor(area, uffd.MODE_MISSING | MODE_WP)
    libc.munmap(room.start, room.length)
    mremap(area.start, area.length, room.start)
    for number in room.numbers():
        assert load(room.at(number)) == pattern(number)
    room.drop(0, 1)
    assert load(room.start) == 0, "not registered there"
    assert not select.select([descriptor], [], [], 0)[0]
    return "mremap"


def _ksm() -> str:
    try:
        with open("/sys/kernel/mm/ksm/run") as file:
            running = file.read().strip() == "1"
    except OSError as error:
        raise NotApplicable("the kernel has no ksm") from error
    if not running:
        raise NotApplicable("ksm is off, and turning it on is for the whole machine")
    merge = 12
    area = Area(ANON, 64)
    libc.memset(area.start, 7, area.length)
    descriptor = open_monitor(area, MODE_WP)
    descriptor.write_protect(area.start, area.length)
    madvise(area.start, area.length, merge)
    scans = _full_scans()
    end_poll = select.poll()
    for _ in range(80):
        if _full_scans() >= scans + 2:
            break
        end_poll.poll(100)
    bits = entries(area.start, 64)
    assert all(entry & ENTRY_UFFD_WP for entry in bits)
    return ""


def _full_scans() -> int:
    with open("/sys/kernel/mm/ksm/full_scans") as file:
        return int(file.read())

"""41: asynchronous write protection and PAGEMAP_SCAN."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import sys
import threading
import time

from refault.errors import KernelError
from refault.machine import pagemap, uffd
from refault.machine.pagemap import (
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    PAGE_IS_WPALLOWED,
    PAGE_IS_WRITTEN,
    SCAN_CHECK_WPASYNC,
    SCAN_WP_MATCHING,
    Pagemap,
    PageRange,
)
from refault.machine.uffd import MODE_WP, Userfaultfd

from .memory import (
    ALL,
    ANON,
    HUGETLB,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    PAGE,
    SHMEM,
    SHMEM_PRIVATE,
    Area,
    Kind,
    libc,
    madvise,
    read_bytes,
    store,
)
from .registry import THIS_RUN, KernelRefuses, scenario
from .serving import open_monitor
from .thp import huge_bytes, require_thp

__all__: list[str] = []

SECONDS = float(os.environ.get("REFAULT_STRESS_SECONDS", "0.3"))


def armed(area: Area) -> Userfaultfd:
    """Arm the area: from now on stores are noted."""
    descriptor = open_monitor(area, MODE_WP, uffd.FEATURE_WP_ASYNC)
    descriptor.write_protect(area.start, area.length)
    return descriptor


def written(pages: Pagemap, area: Area, flags: int = 0) -> list[int]:
    """The numbers of the pages that are WRITTEN."""
    found = pages.scan_all(area.start, area.end, require=PAGE_IS_WRITTEN, flags=flags)
    return [area.number(at) for start, end, _ in found for at in range(start, end, area.page)]


@scenario(41, title="PAGEMAP_SCAN: refuses what it does not know", kinds=(ANON,))
def scan_arguments(kind: Kind) -> None:
    area = Area(kind, 4)
    good = {
        "size": 96,
        "flags": 0,
        "start": area.start,
        "end": area.end,
        "walk_end": 0,
        "vec": 0,
        "vec_len": 0,
        "max_pages": 0,
        "inverted": 0,
        "mask": PAGE_IS_WRITTEN,
        "any_of": 0,
        "return": 0,
    }

    def ask(**changes: int) -> int:
        argument = bytearray(struct.pack("=12Q", *(good | changes).values()))
        try:
            return int(fcntl.ioctl(pages.fd, pagemap.PAGEMAP_SCAN, argument))
        except OSError as error:
            return -(error.errno or 1)

    with Pagemap() as pages:
        assert ask() == 0
        assert ask(size=88) == -errno.EINVAL
        assert ask(flags=1 << 20) == -errno.EINVAL
        assert ask(start=area.start + 1) == -errno.EINVAL
        assert ask(mask=1 << 40) == -errno.EINVAL
        assert ask(any_of=1 << 40) == -errno.EINVAL
        assert ask(inverted=1 << 40) == -errno.EINVAL
        bad = {"return": 1 << 40, "vec": area.start, "vec_len": 4}
        assert ask(**bad) == -errno.EINVAL
        assert ask(vec=16, vec_len=1, **{"return": PAGE_IS_WRITTEN}) == -errno.EFAULT
        assert ask(start=area.end, end=area.start) in (-errno.EINVAL, -errno.EFAULT)
        try:
            pages.scan(area.start, area.end, require=PAGE_IS_WRITTEN, flags=SCAN_CHECK_WPASYNC)
        except KernelError as error:
            assert error.errno == errno.EPERM
        else:
            raise AssertionError("nobody armed it")
        assert not list(pages.scan_all(area.start, area.end, require=PAGE_IS_WPALLOWED))


@scenario(41, title="PAGEMAP_SCAN: WRITTEN is what was written, once", kinds=ALL)
def scan_written(kind: Kind) -> None:
    area = Area(kind, 8)
    libc.memset(area.start, 1, area.length)
    armed(area)
    with Pagemap() as pages:
        assert written(pages, area, SCAN_CHECK_WPASYNC) == []
        for number in (1, 2, 6):
            store(area.at(number), 9)
        assert written(pages, area) == [1, 2, 6]
        assert written(pages, area, SCAN_WP_MATCHING) == [1, 2, 6], "asking changes nothing"
        assert written(pages, area, SCAN_WP_MATCHING) == []
        store(area.at(6), 9)
        libc.mprotect(area.start, area.length, 1)
        libc.mprotect(area.start, area.length, 3)
        assert written(pages, area) == [6], "mprotect takes nothing"
        store(area.at(3), 9)
        assert written(pages, area) == [3, 6]
        zeros = os.open("/dev/zero", os.O_RDONLY)
        assert libc.read(zeros, area.at(4), 8) == 8
        assert written(pages, area) == [3, 4, 6], "system calls are seen"
        inverted = pages.scan_all(
            area.start, area.end, require=PAGE_IS_WRITTEN, inverted=PAGE_IS_WRITTEN, report=0xF
        )
        assert sum(end - start for start, end, _ in inverted) == 5 * area.page
        if kind is ANON:
            madvise(area.at(0), PAGE, MADV_DONTNEED)
            assert written(pages, area) == [0, 3, 4, 6], "DONTNEED is a change"


@scenario(
    41,
    title="PAGEMAP_SCAN: stops at max_pages and at a full vector, and protects no more",
    kinds=(ANON, SHMEM, SHMEM_PRIVATE),
)
def scan_limits(kind: Kind) -> None:
    area = Area(kind, 12)
    libc.memset(area.start, 1, area.length)
    armed(area)
    for number in (0, 1, 2, 4, 6, 7, 9, 11):
        store(area.at(number), 9)
    with Pagemap(vector=2) as pages, Pagemap() as wide:
        first = pages.scan(area.start, area.end, require=PAGE_IS_WRITTEN, flags=SCAN_WP_MATCHING)
        assert first.ranges == [
            PageRange(area.at(0), area.at(3), PAGE_IS_WRITTEN),
            PageRange(area.at(4), area.at(5), PAGE_IS_WRITTEN),
        ]
        assert area.at(5) <= first.walk_end <= area.at(6)
        assert written(wide, area) == [6, 7, 9, 11], "the rest is as it was"
        some = wide.scan(area.start, area.end, require=PAGE_IS_WRITTEN, max_pages=3)
        assert [area.number(start) for start, _, _ in some.ranges] == [6, 9]
        assert area.at(10) <= some.walk_end <= area.at(11), "up to the next that matches"
        one = pages.scan(
            area.start, area.end, require=PAGE_IS_WRITTEN, max_pages=1, flags=SCAN_WP_MATCHING
        )
        assert one == ([PageRange(area.at(6), area.at(7), PAGE_IS_WRITTEN)], area.at(7))
        assert written(pages, area) == [7, 9, 11], "scan_all goes on where a scan stopped"
        both = list(wide.scan_all(area.start, area.end, any_of=PAGE_IS_WRITTEN, report=0xB))
        assert all(categories & PAGE_IS_PRESENT for _, _, categories in both)


@scenario(
    41,
    title="PAGEMAP_SCAN: where nothing is populated, the quick way and the slow one agree",
    kinds=(ANON, SHMEM, SHMEM_PRIVATE),
)
def scan_unpopulated(kind: Kind) -> None:
    area = Area(kind, 2048)
    descriptor = armed(area)
    with Pagemap() as pages:
        for round_ in range(2):
            numbers = sorted(random.Random(round_).sample(area.numbers(), 50))
            for number in numbers:
                store(area.at(number), 1)
            slow = pages.scan_all(area.start, area.end, require=PAGE_IS_WRITTEN, report=0xF)
            spread = [area.number(at) for s, e, _ in slow for at in range(s, e, PAGE)]
            assert written(pages, area) == spread == numbers
            assert written(pages, area, SCAN_WP_MATCHING) == numbers
            assert written(pages, area) == []
        descriptor.write_protect(area.start, area.length, 0)
        assert len(written(pages, area)) == area.pages, "unprotected is WRITTEN"


@scenario(41, title="PAGEMAP_SCAN: a part of a transparent huge page", kinds=(ANON, SHMEM))
def scan_thp(kind: Kind) -> None:
    size = require_thp()
    area = Area(kind, 2 * size // PAGE, align=size)
    madvise(area.start, area.length, MADV_HUGEPAGE)
    libc.memset(area.start, 1, area.length)
    try:
        madvise(area.start, area.length, MADV_COLLAPSE)
    except OSError as error:
        raise KernelRefuses(f"MADV_COLLAPSE: {error.strerror}") from error
    assert huge_bytes(area.start, area.length) == area.length
    armed(area)
    small = size // PAGE
    with Pagemap() as pages:
        assert written(pages, area) == []
        store(area.at(5), 9)
        seen = written(pages, area)
        assert 5 in seen
        assert all(number < small for number in seen), "the other huge page is clean"
        half = [*range(small // 2)]
        libc.memset(area.start, 9, size)
        assert written(pages, area) == [*range(small)]
        first = pages.scan_all(
            area.start, area.at(small // 2), require=PAGE_IS_WRITTEN, flags=SCAN_WP_MATCHING
        )
        assert [area.number(at) for s, e, _ in first for at in range(s, e, PAGE)] == half
        assert written(pages, area) == [*range(small // 2, small)]
        list(pages.scan_all(area.start, area.end, require=PAGE_IS_HUGE))


@scenario(
    41,
    title="PAGEMAP_SCAN: threads write while it scans and protects; no change is lost",
    kinds=(ANON, SHMEM, SHMEM_PRIVATE, HUGETLB),
    limit=2 * SECONDS + 15,
)
def scan_transact(kind: Kind) -> str:
    sys.setswitchinterval(1e-4)
    area = Area(kind, 4 if kind.huge else 64)
    libc.memset(area.start, 1, area.length)
    armed(area)
    stop = threading.Event()
    stores = [0, 0]

    def write(who: int) -> None:
        dice = random.Random(who)
        while not stop.is_set():
            number = dice.randrange(area.pages)
            stores[who] += 1
            libc.memcpy(area.at(number) + 8 * who, struct.pack("=Q", stores[who]), 8)

    writers = [threading.Thread(target=write, args=(who,), daemon=True) for who in (0, 1)]
    mirror = [read_bytes(area.at(number), 16) for number in area.numbers()]
    for writer in writers:
        writer.start()
    end = time.monotonic() + SECONDS
    scans = reported = 0
    with Pagemap() as pages:
        while not stop.is_set():
            if time.monotonic() >= end:
                stop.set()
                for writer in writers:
                    writer.join()
            changed = written(pages, area, SCAN_WP_MATCHING)
            scans += 1
            reported += len(changed)
            for number in changed:
                mirror[number] = read_bytes(area.at(number), 16)
    assert mirror == [read_bytes(area.at(number), 16) for number in area.numbers()]
    return THIS_RUN + f"{sum(stores)} stores, {scans} scans, {reported} pages"

"""29, 30, 32: a program that forks, moves and frees its memory, and those who wait for it."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

from refault.machine import uffd
from refault.machine.uffd import MODE_MINOR, MODE_MISSING, MODE_WP, Message, Userfaultfd

from .memory import (
    ALL,
    ANON,
    HUGE_PAGE,
    MADV_DONTNEED,
    MADV_REMOVE,
    PAGE,
    Area,
    Kind,
    filled,
    is_filled,
    libc,
    load,
    madvise,
    mremap,
    pattern,
    store,
)
from .registry import scenario
from .serving import (
    Link,
    Monitor,
    Program,
    Touch,
    offered,
    open_descriptor,
    open_monitor,
    raw_ioctl,
)

__all__: list[str] = []

PAGES = 8
FEATURES = (
    uffd.FEATURE_EVENT_FORK
    | uffd.FEATURE_EVENT_REMAP
    | uffd.FEATURE_EVENT_REMOVE
    | uffd.FEATURE_EVENT_UNMAP
)


class Manager:
    """Knows where the pages of each process are, and serves them."""

    def __init__(self, descriptor: Userfaultfd, start: int, size: int, mode: int) -> None:
        self.size = size
        self.mode = mode
        self.source = filled(PAGES, size)
        self.start = {descriptor.fd: start}
        self.faults: Counter[tuple[int, int]] = Counter()
        self.events: list[tuple[int, int, int, int]] = []
        self.monitor = Monitor(descriptor, self.answer)
        self.first = descriptor.fd

    def answer(self, descriptor: Userfaultfd, message: Message) -> None:
        event, one, two, _ = message
        if event == uffd.EVENT_PAGEFAULT:
            self.faults[descriptor.fd == self.first, one & uffd.FAULT_WP] += 1
            page = two & -self.size
            if one & uffd.FAULT_WP:
                descriptor.write_protect(page, self.size, 0)
            else:
                at = page - self.start[descriptor.fd]
                descriptor.copy(page, self.source + at, self.size, self.mode)
            return
        self.events.append(message)
        if event == uffd.EVENT_FORK:
            child = Userfaultfd(one, page_size=self.size)
            self.start[one] = self.start[descriptor.fd]
            self.monitor.others.append(child)
            self.monitor.add(child)
        elif event == uffd.EVENT_REMAP:
            self.start[descriptor.fd] = two
        elif event == uffd.EVENT_REMOVE:
            descriptor.unregister(one, two - one)


def program_with_events(kind: Kind, protect: bool) -> tuple[dict[str, Any], Manager]:
    size = HUGE_PAGE if kind.huge else PAGE

    def body(link: Link) -> dict[str, Any]:
        descriptor = open_descriptor(FEATURES, page_size=size)
        modes = MODE_MISSING | (MODE_WP if protect else 0)
        area = Area(kind, PAGES, align=size)
        room = Area(kind, PAGES, align=size)
        extra = Area(kind, 1, align=size)
        descriptor.register(area.start, area.length, modes)
        descriptor.register(extra.start, extra.length, modes)
        link.send(area.start, descriptor.fd)
        link.receive()

        def look(start: int, first: int, last: int) -> None:
            for number in range(first, last):
                assert is_filled(start + number * size, size, pattern(number)), number
                if protect:
                    store(start + number * size, pattern(number))

        def child(_: Link) -> dict[str, Any]:
            look(area.start, 0, PAGES // 2)
            libc.munmap(extra.start, extra.length)
            libc.munmap(room.start, room.length)
            start = mremap(area.start, area.length, room.start)
            look(start, PAGES // 2, PAGES)
            look(start, 0, PAGES)
            madvise(start, area.length, MADV_REMOVE if kind.shared else MADV_DONTNEED)
            assert is_filled(start, area.length, 0)
            store(start, 1)
            return {"area": area.start, "room": start, "extra": extra.start}

        return dict(Program(child).result())

    program = Program(body)
    start, (fd,) = program.link.receive()
    descriptor = Userfaultfd(fd, page_size=size)
    manager = Manager(descriptor, start, size, uffd.COPY_WP if protect else 0)
    program.link.send("go on")
    result = program.result()
    manager.monitor.stop()
    length = PAGES * size
    expected = [
        (uffd.EVENT_UNMAP, result["extra"], result["extra"] + size, 0),
        (uffd.EVENT_REMAP, result["area"], result["room"], length),
        # Of the old addresses, after they were left: whoever frees pages by it must know.
        (uffd.EVENT_UNMAP, result["area"], result["area"] + length, 0),
        (uffd.EVENT_REMOVE, result["room"], result["room"] + length, 0),
    ]
    assert manager.events[0][0] == uffd.EVENT_FORK
    assert manager.events[1:] == expected, manager.events
    return result, manager


@scenario(
    29,
    title="fork, mremap, DONTNEED or REMOVE and munmap, each told before it is over;"
    " the faults are counted exactly",
    kinds=ALL,
)
def events(kind: Kind) -> None:
    _, manager = program_with_events(kind, protect=False)
    assert manager.faults == {(False, 0): PAGES}


@scenario(30, title="the same with write protection", kinds=ALL)
def events_wp(kind: Kind) -> None:
    _, manager = program_with_events(kind, protect=True)
    assert manager.faults[False, 0] == PAGES
    stores = manager.faults[False, uffd.FAULT_WP]
    assert stores == PAGES, f"{stores} protected stores"


@scenario(
    32,
    title="while a REMOVE is unread every answer is EAGAIN; reading it lets the sleeper go on",
    kinds=ALL,
)
def mmap_changing(kind: Kind) -> str:
    area = Area(kind, 8)
    modes = MODE_MISSING | MODE_WP | (MODE_MINOR if kind.shared else 0)
    descriptor = open_monitor(area, modes, uffd.FEATURE_EVENT_REMOVE)
    source = Area(ANON, 8 * area.page // PAGE)
    libc.memset(source.start, 7, source.length)
    if kind.shared:
        libc.memset(area.alias + 6 * area.page, 9, area.page)
    operations: dict[str, tuple[int, ...]] = {
        "COPY": (uffd.UFFDIO_COPY, area.at(2), source.start, area.page, 0),
        "POISON": (uffd.UFFDIO_POISON, area.at(3), area.page, 0),
    }
    if not kind.huge:
        operations["ZEROPAGE"] = (uffd.UFFDIO_ZEROPAGE, area.at(4), area.page, 0)
    if kind is ANON:
        operations["MOVE"] = (uffd.UFFDIO_MOVE, area.at(5), source.at(5), area.page, 0)
    if kind.shared:
        operations["CONTINUE"] = (uffd.UFFDIO_CONTINUE, area.at(6), area.page, 0)
    features = offered()
    for name, bit in (("POISON", uffd.FEATURE_POISON), ("MOVE", uffd.FEATURE_MOVE)):
        if not features & bit:
            operations.pop(name, None)
    descriptor.copy(area.start, source.start, area.page)

    sleeper = Touch(madvise, area.start, area.page, MADV_DONTNEED)
    assert sleeper.asleep()
    assert sleeper.state() == "D", "it waits for the event to be read, not to be interrupted"
    for name, (request, *fields) in operations.items():
        said = raw_ioctl(descriptor.fd, request, *fields)
        assert said == (errno.EAGAIN, -errno.EAGAIN), f"{name}: {said}"
    assert sleeper.asleep()
    buffer = bytearray(2 * uffd.MESSAGE_SIZE)
    heard = descriptor.read_messages(buffer)
    assert heard == [(uffd.EVENT_REMOVE, area.start, area.start + area.page, 0)]
    sleeper.result()
    for name, (request, *fields) in operations.items():
        said = raw_ioctl(descriptor.fd, request, *fields)
        assert said == (0, area.page), f"{name}: {said}"
    assert load(area.at(2)) == 7
    return ", ".join(operations)

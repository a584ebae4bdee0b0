"""8 to 11: what fork does to write protection, with and without its event."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from refault.machine import uffd
from refault.machine.pagemap import ENTRY_EXCLUSIVE, ENTRY_PRESENT, ENTRY_UFFD_WP
from refault.machine.uffd import MODE_WP, Message, Userfaultfd

from .memory import (
    ALL,
    HUGE_PAGE,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    PAGE,
    Area,
    Kind,
    entries,
    libc,
    load,
    madvise,
    pattern,
    store,
)
from .pinning import pin_for_long, pin_in_passing
from .registry import KernelRefuses, scenario
from .serving import Link, Monitor, Program, open_descriptor, open_monitor
from .swapping import has_swap

__all__: list[str] = []

PAGES = 4


def protected_area(kind: Kind) -> Area:
    area = Area(kind, PAGES)
    for number in area.numbers():
        libc.memset(area.at(number), pattern(number), area.page)
    return area


def marks(area: Area) -> list[bool]:
    """Which pages carry the bit of write protection, in this process."""
    return [bool(entry & ENTRY_UFFD_WP) for entry in entries(area.start, PAGES, area.page)]


def all_marked(area: Area) -> bool:
    return all(marks(area))


def with_events(kind: Kind, body: Callable[[Userfaultfd], object]) -> tuple[Any, Monitor]:
    """Run `body` in a process whose forks are heard here; what it returned, and who listened.

    Stores to protected pages are allowed, in every process of them.
    """

    def program(link: Link) -> object:
        descriptor = open_descriptor(uffd.FEATURE_EVENT_FORK, page_size=size)
        link.send("here", descriptor.fd)
        link.receive()
        return body(descriptor)

    size = HUGE_PAGE if kind.huge else PAGE
    running = Program(program)
    _, (fd,) = running.link.receive()

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        event, flags, address, _ = message
        if event == uffd.EVENT_FORK:
            child = Userfaultfd(flags, page_size=size)
            monitor.others.append(child)
            monitor.add(child)
        elif event == uffd.EVENT_PAGEFAULT:
            assert flags & uffd.FAULT_WP, f"a fault of flags {flags:#x} at {address:#x}"
            descriptor.write_protect(address & -size, size, 0)

    monitor = Monitor(Userfaultfd(fd), answer, start=False)
    monitor.start()
    running.link.send("go on")
    value = running.result()
    monitor.stop()
    return value, monitor


def in_child(work: Callable[[], Any]) -> Any:
    return Program(lambda _: work()).result()


@scenario(8, title="fork without its event: the child has no protection", kinds=ALL)
def wp_fork(kind: Kind) -> str:
    area = protected_area(kind)
    descriptor = open_monitor(area, MODE_WP)
    descriptor.write_protect(area.start, area.length)
    assert all_marked(area)

    def child() -> list[bool]:
        before = marks(area)
        # Nobody reads the descriptor: if this asked, it would hang.
        store(area.start, 0x55)
        return before

    assert not any(in_child(child))
    assert all_marked(area), "the parent keeps it"
    assert load(area.start) == (0x55 if kind.shared else pattern(0))
    remark = ""
    swaps = has_swap() and not kind.huge
    if kind.shared or swaps:
        madvise(area.start, area.length, MADV_DONTNEED if kind.shared else MADV_PAGEOUT)
        assert not any(entry & ENTRY_PRESENT for entry in entries(area.start, PAGES, area.page))
        assert all_marked(area), "markers, or swap entries"
        assert not any(in_child(lambda: marks(area)))
        remark = "also with no page mapped" if kind.shared else "also swapped out"
        descriptor.write_protect(area.start, area.length, 0)
        assert not any(marks(area))
        assert load(area.at(1)) == pattern(1)
        assert not any(marks(area))
    elif not kind.huge:
        remark = "not swapped out: this machine has no swap"
    return remark


@scenario(9, title="fork with its event: the child keeps it, and its stores ask", kinds=ALL)
def wp_fork_with_event(kind: Kind) -> None:
    def body(descriptor: Userfaultfd) -> tuple[list[bool], list[bool], list[bool]]:
        area = protected_area(kind)
        descriptor.register(area.start, area.length, MODE_WP)
        descriptor.write_protect(area.start, area.length)

        def child() -> tuple[list[bool], list[bool]]:
            before = marks(area)
            store(area.at(1), 0x44)
            assert load(area.at(1)) == 0x44
            return before, marks(area)

        return (*in_child(child), marks(area))

    (before, after, parent), monitor = with_events(kind, body)
    assert before == [True] * PAGES
    assert after == [True, False, True, True]
    assert parent == [True] * PAGES
    assert monitor.events() == {uffd.EVENT_FORK: 1, uffd.EVENT_PAGEFAULT: 1}
    assert len(monitor.others) == 1


def pins_and_forks(descriptor: Userfaultfd, kind: Kind, kept: bool) -> None:
    """Fork with pages that are pinned (copied at once), and with pages that are pinned later."""
    pinned, later = protected_area(kind), protected_area(kind)
    pin = pin_for_long(pinned.start, pinned.length)
    for area in (pinned, later):
        descriptor.register(area.start, area.length, MODE_WP)
        descriptor.write_protect(area.start, area.length)

    def child() -> None:
        assert marks(pinned) == [kept] * PAGES, "copied early"
        assert pin_in_passing(pinned.at(2), 1) == bytes([pattern(2)])
        assert marks(pinned) == [kept] * PAGES
        private = not kind.shared
        if private and not kind.huge:
            assert exclusive(pinned) == [True] * PAGES, "copied early: nobody else has it"
        assert marks(later) == [kept] * PAGES
        if private:
            assert not any(exclusive(later)), "shared for copy-on-write"
        for number in later.numbers():
            assert pin_in_passing(later.at(number), 1) == bytes([pattern(number)])
        if private:
            assert exclusive(later) == [True] * PAGES, "unshared by the pin"
        assert marks(later) == [kept] * PAGES

    in_child(child)
    assert all_marked(pinned)
    assert all_marked(later)
    assert [load(later.at(number)) for number in later.numbers()] == [*map(pattern, range(PAGES))]
    os.close(pin)


def exclusive(area: Area) -> list[bool]:
    return [bool(entry & ENTRY_EXCLUSIVE) for entry in entries(area.start, PAGES, area.page)]


@scenario(10, title="fork of pinned pages, and a pin in the child: no protection", kinds=ALL)
def wp_fork_pin(kind: Kind) -> None:
    pins_and_forks(open_descriptor(), kind, kept=False)


@scenario(11, title="the same with the event of fork: all is kept", kinds=ALL)
def wp_fork_pin_with_event(kind: Kind) -> None:
    def body(descriptor: Userfaultfd) -> str:
        try:
            pins_and_forks(descriptor, kind, kept=True)
        except KernelRefuses as reason:
            return str(reason)
        return ""

    refusal, monitor = with_events(kind, body)
    if refusal:
        raise KernelRefuses(refusal)
    assert monitor.events() == {uffd.EVENT_FORK: 1}

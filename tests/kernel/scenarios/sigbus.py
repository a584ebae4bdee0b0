"""27 and 28: SIGBUS instead of messages."""

from __future__ import annotations

import signal
from typing import Any

from refault.machine import uffd
from refault.machine.uffd import MODE_MISSING, MODE_WP, Message, Userfaultfd

from .memory import (
    ALL,
    HUGE_PAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE,
    Area,
    Kind,
    catching,
    filled,
    libc,
    load,
    map_memory,
    pattern,
    store,
)
from .registry import scenario
from .serving import Link, Monitor, Program, open_descriptor

__all__: list[str] = []

PAGES = 8


def sigbus_program(kind: Kind, protect: bool) -> tuple[dict[str, Any], Monitor]:
    """Touch half of the pages here and half in a child; how many signals each took."""
    size = HUGE_PAGE if kind.huge else PAGE

    def body(link: Link) -> dict[str, Any]:
        descriptor = open_descriptor(uffd.FEATURE_SIGBUS | uffd.FEATURE_EVENT_FORK, page_size=size)
        link.send("here", descriptor.fd)
        link.receive()
        area = Area(kind, PAGES)
        source = filled(PAGES, size)
        descriptor.register(area.start, area.length, MODE_MISSING | (MODE_WP if protect else 0))

        def copy(address: int) -> None:
            number = area.number(address)
            descriptor.copy(area.at(number), source + number * size, size, uffd.COPY_WP * protect)

        with catching(signal.SIGBUS, copy) as missing:
            read = [load(area.at(number)) for number in area.numbers()[: PAGES // 2]]
        assert read == [pattern(number) for number in range(PAGES // 2)]
        result = {"missing": len(missing.addresses)}
        if protect:

            def unprotect(address: int) -> None:
                descriptor.write_protect(address & -size, size, 0)

            with catching(signal.SIGBUS, unprotect) as protected:
                store(area.at(1), 9)
                store(area.at(1), 10)
            result["protected"] = len(protected.addresses)

        def child(_: Link) -> int:
            def replace(address: int) -> None:
                hole = address & -size
                libc.munmap(hole, size)
                map_memory(size, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at=hole)

            with catching(signal.SIGBUS, replace) as signals:
                for number in area.numbers()[PAGES // 2 :]:
                    load(area.at(number))
                if protect:
                    store(area.at(0), 11)
                    store(area.at(1), 11)
            return len(signals.addresses)

        result["child"] = Program(child).result()
        return result

    program = Program(body)
    _, (fd,) = program.link.receive()

    def answer(_: Userfaultfd, message: Message) -> None:
        if message[0] == uffd.EVENT_FORK:
            child = Userfaultfd(message[1])
            monitor.others.append(child)
            monitor.add(child)

    monitor = Monitor(Userfaultfd(fd), answer)
    program.link.send("go on")
    result = program.result()
    monitor.stop()
    return result, monitor


@scenario(
    27,
    title="SIGBUS mode: a signal for each missing page, COPY in its handler, no messages;"
    " in a child as well",
    kinds=ALL,
)
def sigbus(kind: Kind) -> None:
    result, monitor = sigbus_program(kind, protect=False)
    assert result == {"missing": PAGES // 2, "child": PAGES // 2}
    assert monitor.events() == {uffd.EVENT_FORK: 1}


@scenario(28, title="SIGBUS mode for write protection", kinds=ALL)
def sigbus_wp(kind: Kind) -> None:
    result, monitor = sigbus_program(kind, protect=True)
    # In the child page 0 is protected and page 1 is not.
    assert result == {"missing": PAGES // 2, "protected": 1, "child": PAGES // 2 + 1}
    assert monitor.events() == {uffd.EVENT_FORK: 1}

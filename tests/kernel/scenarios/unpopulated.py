"""12: write protection of anonymous pages that do not exist."""

from __future__ import annotations

from refault.machine import uffd
from refault.machine.pagemap import ENTRY_PRESENT, ENTRY_UFFD_WP
from refault.machine.uffd import MODE_WP, Message, Userfaultfd

from .memory import ANON, MADV_DONTNEED, PAGE, Area, Kind, entries, load, madvise, store
from .registry import scenario
from .serving import Monitor, open_monitor

__all__: list[str] = []


@scenario(12, title="write protection where there is no page yet, and its markers", kinds=(ANON,))
def wp_unpopulated(kind: Kind) -> None:
    area = Area(kind, 4)
    descriptor = open_monitor(area, MODE_WP, uffd.FEATURE_WP_UNPOPULATED)

    def look() -> list[bool]:
        return [bool(entry & ENTRY_UFFD_WP) for entry in entries(area.start, 4)]

    descriptor.write_protect(area.start, area.length)
    assert look() == [True] * 4
    assert not any(entry & ENTRY_PRESENT for entry in entries(area.start, 4)), "markers only"
    descriptor.write_protect(area.start, 2 * PAGE, 0)
    assert look() == [False, False, True, True]
    madvise(area.at(2), PAGE, MADV_DONTNEED)
    assert look() == [False, False, False, True], "DONTNEED takes the marker"

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        descriptor.write_protect(message[2] & -PAGE, PAGE, 0)

    monitor = Monitor(descriptor, answer)
    store(area.at(0), 1)
    store(area.at(2), 1)
    assert not monitor.heard, "no marker, no message"
    store(area.at(3), 1)
    assert monitor.faults(uffd.FAULT_WP | uffd.FAULT_WRITE) == 1
    # A read maps the zero page, protected; the store behind it asks.
    descriptor.write_protect(area.start, area.length)
    madvise(area.at(1), PAGE, MADV_DONTNEED)
    descriptor.write_protect(area.at(1), PAGE)
    assert load(area.at(1)) == 0
    (entry,) = entries(area.at(1), 1)
    assert entry & ENTRY_PRESENT and entry & ENTRY_UFFD_WP
    assert len(monitor.heard) == 1
    store(area.at(1), 9)
    assert load(area.at(1)) == 9
    assert len(monitor.stop()) == 2

"""42: guard regions."""

from __future__ import annotations

import signal

from refault.machine import uffd
from refault.machine.pagemap import ENTRY_GUARD

from .memory import (
    ANON,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    PAGE,
    SHMEM,
    SHMEM_PRIVATE,
    Area,
    Kind,
    catching,
    entries,
    load,
    madvise,
    pattern,
)
from .registry import NotApplicable, scenario
from .serving import Monitor, copier, open_monitor

__all__: list[str] = []


@scenario(
    42,
    title="guard pages: SIGSEGV without a message, and the fault after the guard is gone",
    kinds=(ANON, SHMEM, SHMEM_PRIVATE),
)
def guards(kind: Kind) -> str:
    area = Area(kind, 8)
    descriptor = open_monitor(area, uffd.MODE_MISSING)
    monitor = Monitor(descriptor, copier(area))
    odd = [number for number in area.numbers() if number % 2]
    try:
        for number in odd:
            madvise(area.at(number), PAGE, MADV_GUARD_INSTALL)
    except OSError as error:
        raise NotApplicable(
            f"no guards for {kind.name} in this kernel: {error.strerror}"
        ) from error
    shown = [bool(entry & ENTRY_GUARD) for entry in entries(area.start, area.pages)]

    def remove(address: int) -> None:
        madvise(address & -PAGE, PAGE, MADV_GUARD_REMOVE)

    heard = []
    for number in area.numbers():
        with catching(signal.SIGSEGV, remove) as signals:
            assert load(area.at(number)) == pattern(number)
        assert len(signals.addresses) == number % 2
        heard.append(len(monitor.heard))
    assert heard == [number + 1 for number in area.numbers()], "one message each, guard or not"
    monitor.stop()
    return "" if any(shown) else "pagemap does not show guards yet"

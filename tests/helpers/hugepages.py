"""Huge pages for a while: the pool is raised, and put back as it was."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator

__all__ = ["reserved_huge_pages"]

POOL = "/proc/sys/vm/nr_hugepages"


@contextlib.contextmanager
def reserved_huge_pages(count: int) -> Iterator[str]:
    """Have `count` more huge pages of the default size; yields why not, or "".

    Added, and taken away again, whatever the pool holds: another run may do the same meanwhile.
    """
    try:
        added = _change(lambda total: total + count)
    except OSError as error:
        yield f"no huge pages: {POOL} cannot be written ({error.strerror})"
        return
    try:
        yield "" if added >= count else f"no huge pages: only {added} of {count} could be had"
    finally:
        _change(lambda total: max(0, total - added))


def _change(wanted: Callable[[int], int]) -> int:
    """Change the pool, nobody else meanwhile; how many there are more."""
    with open(POOL, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = _meminfo("HugePages_Total")
        file.write(str(wanted(before)))
        file.flush()
        return _meminfo("HugePages_Total") - before


def _meminfo(name: str) -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0])
    return 0

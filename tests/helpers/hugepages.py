"""Huge pages for a while: the pool is raised, and put back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["reserved_huge_pages"]

POOL = "/proc/sys/vm/nr_hugepages"


@contextlib.contextmanager
def reserved_huge_pages(count: int) -> Iterator[str]:
    """Have `count` more huge pages of the default size; yields why not, or "".

    Added, and taken away again, whatever the pool holds: another run may do the same meanwhile.
    """
    before = _meminfo("HugePages_Total")
    try:
        _write(before + count)
    except OSError as error:
        yield f"no huge pages: {POOL} cannot be written ({error.strerror})"
        return
    added = _meminfo("HugePages_Total") - before
    try:
        yield "" if added >= count else f"no huge pages: only {added} of {count} could be had"
    finally:
        _write(max(0, _meminfo("HugePages_Total") - added))


def _write(total: int) -> None:
    with open(POOL, "w") as file:
        file.write(str(total))


def _meminfo(name: str) -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0])
    return 0

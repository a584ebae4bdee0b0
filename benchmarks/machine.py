"""What the figures depend on: the machine, its memory, its CPUs."""

from __future__ import annotations

import mmap
import os
import pathlib
import platform
import sys

__all__ = ["describe", "pin", "processor_of", "resident_kib", "warm_memory"]


def describe() -> dict[str, str | int | float]:
    """Facts that belong beside every figure."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def warm_memory(size: int) -> None:
    """Touch so much memory and give it back.

    On a virtual machine the first touch of a page of the guest's memory costs several times as much
    as the fault that is to be measured (12 us): the host has to find the page.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    left = min(size, available * 3 // 4)
    page = bytes(1)
    with mmap.mmap(-1, max(left, 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pool:
        for at in range(0, left, 4096):
            pool[at : at + 1] = page


def pin(cpu: int | None) -> None:
    """Bind the calling thread to a CPU; None: leave it to the scheduler."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


def processor_of(pid: int, tid: int | None = None) -> int:
    """The CPU that a thread ran on last."""
    path = pathlib.Path(f"/proc/{pid}/task/{tid or pid}/stat")
    return int(path.read_bytes().rpartition(b")")[2].split()[36])


def resident_kib(pid: int) -> dict[str, float]:
    """``rss`` of a process; ``pss``: its part of what it shares; ``private``: its own alone."""
    found = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0])
    return {
        "rss": float(found["Rss"]),
        "pss": float(found["Pss"]),
        "private": float(found["Private_Clean"] + found["Private_Dirty"]),
    }


if sys.platform != "linux":
    raise SystemExit("benchmarks: Linux only")

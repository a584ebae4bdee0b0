"""Whether transparent huge pages can be had, and where there are some."""

from __future__ import annotations

import os

from refault.machine.pagemap import PAGE_IS_HUGE, Pagemap

from .registry import KernelRefuses, NotApplicable

__all__ = ["huge_bytes", "require_thp", "thp_setting", "thp_sizes"]

ROOT = "/sys/kernel/mm/transparent_hugepage"


def thp_setting(name: str) -> str:
    """The setting in force: what stands in brackets."""
    with open(f"{ROOT}/{name}") as file:
        text = file.read()
    return text.partition("[")[2].partition("]")[0] or text.strip()


def thp_sizes(setting: str) -> list[int]:
    """The sizes of which the kernel has such a setting."""
    return sorted(
        int(name.removeprefix("hugepages-").removesuffix("kB")) << 10
        for name in os.listdir(ROOT)
        if name.startswith("hugepages-") and os.path.exists(f"{ROOT}/{name}/{setting}")
    )


def require_thp() -> int:
    """The size of a transparent huge page."""
    try:
        size = int(thp_setting("hpage_pmd_size"))
        setting = thp_setting("enabled")
    except OSError as error:
        raise NotApplicable("the kernel has no transparent huge pages") from error
    if setting == "never":
        raise KernelRefuses("transparent_hugepage/enabled is never")
    return size


def huge_bytes(start: int, length: int) -> int:
    """How much of the range is mapped by huge pages."""
    with Pagemap() as pagemap:
        found = pagemap.scan_all(start, start + length, require=PAGE_IS_HUGE)
        return sum(end - begin for begin, end, _ in found)

"""What a benchmark wants to know of the pager process, or to change in it."""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from benchmarks.machine import resident_kib
from refault.client import spawn
from refault.client.connection import current
from refault.memory import mapping
from refault.memory.workingset import WorkingSet
from refault.pager.__main__ import main

__all__ = [
    "PLAIN_PYTHON",
    "Fifo",
    "bytes_more",
    "native",
    "pager_memory",
    "pager_pid",
    "pager_processes",
    "use_fifo_pager",
]

PLAIN_PYTHON = {"REFAULT_NATIVE": "0"}
"""The environment in which no native code is used."""


def native() -> bool:
    """Whether this process, and so its pager, uses native code."""
    try:
        # Not by an import statement: it need not be there.
        found = importlib.import_module("refault.native")
    except ModuleNotFoundError:
        return False
    return bool(found.available())


def pager_pid() -> int:
    """Process id of the pager of this process; there is a region."""
    connection = current()
    assert connection is not None
    return connection.pager


def pager_processes() -> list[int]:
    """Process ids of the pager and of its guardian."""
    pid = pager_pid()
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def pager_memory() -> dict[str, float]:
    """MiB of the pager, and of the pager and its guardian together.

    Memory of regions is not in it: the pager does not map them.
    """
    own, *others = [resident_kib(pid) for pid in pager_processes()]
    private = own["private"] + sum(other["private"] for other in others)
    return {"pager_mib": own["rss"] / 1024, "both_private_mib": private / 1024}


def bytes_more(before: Mapping[str, float], after: Mapping[str, float], count: int) -> float:
    """By how many bytes pager and guardian have grown for each of `count` things."""
    return (after["both_private_mib"] - before["both_private_mib"]) * 2**20 / count


class Fifo(WorkingSet):
    """Plain first in, first out: no unit is better than another."""

    __slots__ = ()

    def remove_many(self, indexes: Sequence[int], *, ghost: bool) -> None:
        super().remove_many(indexes, ghost=False)


def use_fifo_pager() -> None:
    """Let the pager that this process will start evict by `Fifo`."""
    spawn.COMMAND[:] = ["-P", "-m", "benchmarks.pagers"]


if __name__ == "__main__":
    # The pager, with its eviction replaced.
    os.environ.pop("PYTHONSAFEPATH", None)
    # Not by assignment: the name is not one that the module offers.
    vars(mapping)["WorkingSet"] = Fifo
    sys.exit(main(sys.argv[1:]))

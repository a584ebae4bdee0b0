"""The most memory that processes had, without looking at them again and again.

The kernel keeps the greatest resident set of each process, and can be told to begin anew.  The sum
of the greatest of each is never less than the greatest sum.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

__all__ = ["Peaks"]

BEGIN_ANEW = "5"


class Peaks:
    """What processes have more, at most, than they had when this was made.

    Parameters
    ----------
    pids
        Their ids.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        for pid in pids:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text(BEGIN_ANEW)
        self._before = self._sum("VmRSS")

    def more(self) -> int:
        """Bytes."""
        return self._sum("VmHWM") - self._before

    def _sum(self, name: str) -> int:
        return sum(_bytes(pid, name) for pid in self._pids)


def _bytes(pid: int, name: str) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/status has no {name}")

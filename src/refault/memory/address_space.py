"""The ranges of one client process."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from .budget import Budget
from .vma import Vma

__all__ = ["AddressSpace"]


class AddressSpace:
    """All vmas of one client.  Source: the kernel's `struct mm_struct`.

    Parameters
    ----------
    budget
        The bound on all mappings of the process together.
    """

    __slots__ = ("_starts", "_vmas", "budget", "dead")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.dead = False
        self._starts: list[int] = []
        self._vmas: list[Vma] = []

    def find(self, address: int) -> Vma | None:
        """The vma that `address` lies in (``find_vma``)."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        vma = self._vmas[at]
        return vma if address < vma.end else None

    def insert(self, vma: Vma) -> None:
        """Add a vma; it must not overlap another one."""
        at = bisect_right(self._starts, vma.start)
        if at and self._vmas[at - 1].end > vma.start:
            raise AssertionError("overlapping vmas")
        if at < len(self._vmas) and vma.end > self._starts[at]:
            raise AssertionError("overlapping vmas")
        self._starts.insert(at, vma.start)
        self._vmas.insert(at, vma)
        vma.mapping.vmas.append(vma)

    def remove(self, vma: Vma) -> None:
        """Take a vma out (its lock held for writing) and tell those who slept."""
        at = bisect_right(self._starts, vma.start) - 1
        if at < 0 or self._vmas[at] is not vma:
            raise AssertionError("no such vma")
        del self._starts[at], self._vmas[at]
        vma.mapping.vmas.remove(vma)
        vma.detached = True

    def withdraw(self, vma: Vma) -> None:
        """Somebody holds the lock of a vma for writing: whoever takes no locks must leave it."""

    def restore(self, vma: Vma) -> None:
        """The opposite of `withdraw`, for a vma that stays."""

    def __iter__(self) -> Iterator[Vma]:
        return iter(tuple(self._vmas))

    def __len__(self) -> int:
        return len(self._vmas)

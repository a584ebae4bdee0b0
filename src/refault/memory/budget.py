"""How much may be resident.  A budget may stand under another one."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from .wait import WaitQueue

if TYPE_CHECKING:
    from .mapping import Mapping

__all__ = ["Budget"]

LOW_SHARE: Final = 6
"""The low mark is the limit shifted by so many bits,"""
LOW_MOST: Final = 8 << 20
"""and never more than this: two batches of eviction.  More would lie idle."""

_USAGE: Final = 0
_PEAK: Final = 1
_LIMIT: Final = 2
_MARK: Final = 3
_UNLIMITED: Final = 1 << 62


class Budget:
    """A hard bound on resident bytes: of one mapping, or of a whole process.

    A page unit is charged before its memory is allocated and uncharged after
    it was given back, so `usage` is never less than what the memfds hold.

    Attributes
    ----------
    limit
        Bytes; None: no bound of its own.
    usage, peak
        Bytes charged now, and at most so far.
    account
        Both as numbers in memory, with the limit, and how much of it may be used before little is
        free.  Native code charges there.
    mappings
        Whose pages are charged here.
    freed
        Woken whenever bytes come back, or could: a unit was unlocked or unpinned.
    reclaiming
        Whether a reclaim task already works for this budget.
    """

    __slots__ = ("account", "freed", "limit", "low_free", "mappings", "parent", "reclaiming")

    def __init__(self, limit: int | None, parent: Budget | None = None) -> None:
        self.parent = parent
        self.account = array("q", [0, 0, _UNLIMITED, _UNLIMITED])
        self.mappings: list[Mapping] = []
        self.freed = WaitQueue()
        self.reclaiming = False
        self.limit: int | None = None
        self.low_free = 0
        self.set_limit(limit)

    def set_limit(self, limit: int | None) -> None:
        """Change the bound; what is over it is reclaimed by whoever is next."""
        self.limit = limit
        self.low_free = min(limit >> LOW_SHARE, LOW_MOST) if limit is not None else 0
        self.account[_LIMIT] = _UNLIMITED if limit is None else limit
        self.account[_MARK] = self.account[_LIMIT] - self.low_free
        self.freed.wake_all()

    @property
    def usage(self) -> int:
        """Bytes charged now."""
        return self.account[_USAGE]

    @property
    def peak(self) -> int:
        """Bytes charged at most so far."""
        return self.account[_PEAK]

    def _add(self, size: int) -> None:
        account = self.account
        account[_USAGE] = usage = account[_USAGE] + size
        if usage > account[_PEAK]:
            account[_PEAK] = usage

    def try_charge(self, size: int) -> Budget | None:
        """Charge `size` bytes here and above; on failure say which budget is full.

        Returns
        -------
        None if charged, else the budget that has no room; nothing is charged then.
        """
        parent = self.parent
        if parent is not None and parent.limit is not None and parent.usage + size > parent.limit:
            return parent
        if self.limit is not None and self.usage + size > self.limit:
            return self
        self._add(size)
        if parent is not None:
            parent._add(size)
        return None

    def uncharge(self, size: int) -> None:
        """Give `size` bytes back, here and above, and wake whoever waits for them."""
        if size > self.usage:
            raise AssertionError("more bytes uncharged than were charged")
        self.account[_USAGE] -= size
        self.freed.wake_all()
        if self.parent is not None:
            self.parent.uncharge(size)

    def wake_waiters(self) -> None:
        """A unit has become evictable: whoever waits for room looks again."""
        self.freed.wake_all()
        if self.parent is not None:
            self.parent.wake_waiters()

    def pressed(self, size: int) -> bool:
        """Whether so little is free that reclaim should begin ahead of need.

        Never if the low mark is less than `size`, a unit: to keep that free would take a whole
        unit from a small budget, and an access that needs two units of two never had both.
        """
        return self.limit is not None and self.limit - self.usage < self.low_free >= size

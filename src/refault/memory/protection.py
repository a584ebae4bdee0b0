"""Units that somebody wants to copy before they are written.

Source: the kernel's userfaultfd write protection.  Whoever protects is the
monitor: a snapshot, say.  A fault that wants to write to a protected unit asks the
monitor for it and waits; the monitor copies the unit's old content and resolves it; the
fault is retried, and finds the unit free.  If the monitor ends, it releases
everybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from .wait import WaitQueue

__all__ = ["Protection"]


class Protection:
    """The protected units of one mapping.

    Attributes
    ----------
    units
        Which must not be written yet.
    asked
        Which of them somebody waits for.
    released
        The monitor has ended.
    """

    __slots__ = ("_queues", "asked", "released", "units")

    def __init__(self, units: Iterable[int]) -> None:
        self.units = set(units)
        self.asked: set[int] = set()
        self.released = False
        self._queues: dict[int, WaitQueue] = {}

    def ask(self, index: int) -> WaitQueue:
        """A writer needs the unit: tell the monitor; where to wait for the answer."""
        self.asked.add(index)
        return self._queues.setdefault(index, WaitQueue())

    def resolve(self, index: int) -> None:
        """The old content is copied: the unit may be written."""
        self.units.discard(index)
        self.asked.discard(index)
        queue = self._queues.pop(index, None)
        if queue is not None:
            queue.wake_all()

    def release(self) -> None:
        """The monitor ends: nothing is protected any more."""
        self.released = True
        for index in list(self.units):
            self.resolve(index)

"""Units whose content somebody must copy before it is changed.

Source: the kernel's userfaultfd write protection.  Whoever protects is the monitor: here, the
snapshots of a mapping.  A fault that wants to write to a protected unit asks the monitor for it and
waits; the monitor copies the unit's old content and answers; the fault is retried, and finds the
unit free.  If the last snapshot ends, everybody is released.

A copy is made once for all snapshots that lack one.  So whatever the newest snapshot has a copy of,
all older ones have, too; and what must be copied is what the newest one lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .wait import WaitQueue

__all__ = ["Image", "Images", "Protection"]


class Image:
    """The content that a unit had before it was changed.

    Attributes
    ----------
    content
        The machine's: where it is.
    users
        How many snapshots need it.
    """

    __slots__ = ("content", "users")

    def __init__(self, content: Any) -> None:
        self.content = content
        self.users = 0


class Images:
    """One mapping at one instant: the units that have changed since.

    What is not in `units` is in the mapping as it was.
    """

    __slots__ = ("instant", "units")

    def __init__(self, instant: int) -> None:
        self.instant = instant
        self.units: dict[int, Image] = {}


class Protection:
    """The snapshots of one mapping, and who waits for them.

    Attributes
    ----------
    snapshots
        The oldest first.
    asked
        The units that a writer waits for.
    questions
        Woken when there are more of them, and when a snapshot has ended.
    copied
        `holds` as a table, for who cannot call it: a byte for each unit, not 0 if the newest
        snapshot has a copy of it.  None: nobody has asked for it, see `make_table`.
    """

    __slots__ = ("_queues", "asked", "copied", "questions", "snapshots")

    def __init__(self) -> None:
        self.snapshots: list[Images] = []
        self.asked: set[int] = set()
        self.questions = WaitQueue()
        self.copied: bytearray | memoryview | None = None
        self._queues: dict[int, WaitQueue] = {}

    def make_table(self, zeros: Callable[[int], bytearray | memoryview], units: int) -> None:
        """Have a table of so many units in `copied`, which `zeros` makes, until another is newest.

        It is not made when a snapshot begins: everybody stands still then.
        """
        self.copied = zeros(units)
        for index in self.snapshots[-1].units:
            self.copied[index] = 1

    def holds(self, index: int) -> bool:
        """Whether a unit must not be written yet."""
        return bool(self.snapshots) and index not in self.snapshots[-1].units

    def ask(self, index: int) -> WaitQueue:
        """A writer needs the unit: tell the monitor; where to wait for the answer."""
        self.asked.add(index)
        self.questions.wake_all()
        return self._queues.setdefault(index, WaitQueue())

    def answer(self, index: int) -> None:
        """Let whoever asked for the unit look at it again."""
        self.asked.discard(index)
        queue = self._queues.pop(index, None)
        if queue is not None:
            queue.wake_all()

    def save(self, index: int, image: Image) -> None:
        """The old content is copied: the unit may be written."""
        for snapshot in reversed(self.snapshots):
            if index in snapshot.units:
                break
            snapshot.units[index] = image
            image.users += 1
        if self.copied is not None:
            self.copied[index] = 1
        self.answer(index)

    def begin(self, images: Images) -> None:
        """A snapshot begins: every unit is protected anew."""
        self.snapshots.append(images)
        self.copied = None

    def end(self, images: Images) -> list[Image]:
        """A snapshot ends; the copies that nobody needs any more."""
        if images is self.snapshots[-1]:
            self.copied = None
        self.snapshots.remove(images)
        freed = []
        for image in images.units.values():
            image.users -= 1
            if not image.users:
                freed.append(image)
        for index in [index for index in self.asked if not self.holds(index)]:
            self.answer(index)
        self.questions.wake_all()
        return freed

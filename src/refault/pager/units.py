"""Page units of a size that fits: carries out what `refault.memory.unitsize` decides.

A mapping whose page size was given keeps it.  So does one that is not known to be fast (each read
of a slow store costs the same, however small it is), a private one (swap knows its pages by the
number of the unit), and a very large one (all its state bytes are looked at).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from refault.errors import KernelError, StoreError, UsageError
from refault.fault.units import change_unit, clear_the_way
from refault.machine.linux import LinuxMapping
from refault.memory.unitsize import UnitChooser
from refault.memory.wait import Signal, Task, TaskState, Wait, WaitQueue, WaitReason, Waits

from .tasks import PagerTask
from .windows import no_windows

if TYPE_CHECKING:
    from .service import Pager

__all__ = ["Units"]

SMALL = 4 << 10
LARGEST = 256 << 10
ROOM_FOR = 64
"""So many of the largest units must fit the budget."""
LARGEST_MAPPING = 256 << 30

LOCKED_SECONDS = 0.25
"""How long the faults of a mapping may have to wait for a change that does not come about."""
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 60.0
PATIENCE_SECONDS = 5.0
"""How long an `open` tries to change the units of a file that is open already."""


class Units:
    """Changes the units of mappings.

    Parameters
    ----------
    pager
        Whose.
    """

    def __init__(self, pager: Pager) -> None:
        self.pager = pager
        self.running: dict[LinuxMapping, PagerTask] = {}
        self._ended: dict[LinuxMapping, WaitQueue] = {}

    def watch(self, mapping: LinuxMapping) -> None:
        """Let a new mapping, whose page size was not given, have what fits."""
        if (
            not mapping.private
            and mapping.read_nowait is not None
            and mapping.page_size > SMALL
            and mapping.size <= LARGEST_MAPPING
        ):
            limit, large = mapping.budget.limit, mapping.page_size
            if limit is None:
                limit = self.pager.budget.limit
            has_room = limit is None or limit >= ROOM_FOR * LARGEST
            mapping.chooser = UnitChooser(
                SMALL,
                large,
                LARGEST if has_room else large,
                lambda: self._as_wanted(mapping, FIRST_PAUSE),
            )

    def stop(self, mapping: LinuxMapping) -> None:
        """A mapping ends: no change any more."""
        mapping.chooser = None
        task = self.running.get(mapping)
        if task is not None:
            task.send_signal(Signal.CLOSING)

    def fix(self, mapping: LinuxMapping, page_size: int, task: Task) -> Waits[None]:
        """Give a mapping units of a size that a user asked for.

        Raises
        ------
        StoreError, UsageError
            It is not possible.
        """
        pager = self.pager
        for number in pager.references[mapping]:
            region = pager.regions.get(number)
            if region is not None:
                pager.usable(region.limit, page_size)
        end = time.monotonic() + PATIENCE_SECONDS
        while mapping.page_size != page_size:
            if mapping not in pager.references:
                raise StoreError(f"{mapping.name}: was closed meanwhile; open it again")
            if mapping.pins or time.monotonic() > end or task.signal_pending():
                raise UsageError(
                    f"{mapping.name} is open with page_size={mapping.page_size}, and that cannot be"
                    " changed now: pages of it are pinned, could not be read, or are being written"
                    " for too long; release pins, or leave page_size out"
                )
            self._start(mapping, page_size)
            queue = self._ended.setdefault(mapping, WaitQueue())
            timer = pager.loop.call_later(PATIENCE_SECONDS, queue.wake_all)
            yield Wait(queue, TaskState.INTERRUPTIBLE, WaitReason.ADDRESS_SPACE)
            timer.cancel()
            if mapping.page_size != page_size:
                pause = WaitQueue()
                pager.loop.call_later(FIRST_PAUSE, pause.wake_all)
                yield Wait(pause, TaskState.INTERRUPTIBLE, WaitReason.ADDRESS_SPACE)

    def _as_wanted(self, mapping: LinuxMapping, pause: float) -> None:
        """Change what is not as the chooser wants it; try again after a pause, if that fails."""
        chooser = mapping.chooser
        if chooser is None or chooser.wanted == mapping.page_size:
            return
        self._start(mapping, chooser.wanted)
        self.pager.loop.call_later(
            pause, lambda: self._as_wanted(mapping, min(2 * pause, LONGEST_PAUSE))
        )

    def _start(self, mapping: LinuxMapping, page_size: int) -> None:
        """Begin to change the units of a mapping, unless that is under way already."""
        if mapping in self.running:
            return
        pager = self.pager
        task = PagerTask(pager.loop.scheduler, "units")
        self.running[mapping] = task

        def done(_: object) -> None:
            del self.running[mapping]
            if mapping in pager.references:
                pager.adjust_budget(mapping)
            queue = self._ended.pop(mapping, None)
            if queue is not None:
                queue.wake_all()

        task.generator = self._change(mapping, page_size, task)
        task.done = done
        pager.loop.scheduler.alive.add(task)
        pager.loop.scheduler.ready.append(task)

    def _change(self, mapping: LinuxMapping, page_size: int, task: PagerTask) -> Waits[bool]:
        limit = mapping.budget.limit
        if limit is not None and limit < page_size:
            return False
        machine = self.pager.machine
        yield from clear_the_way(machine, mapping, page_size, task)
        mapping.window_holds += 1
        timer = None
        try:
            # Windows are runs of units, too.
            yield from no_windows(mapping)
            timer = self.pager.loop.call_later(
                LOCKED_SECONDS, lambda: task.send_signal(Signal.DEADLINE)
            )
            return (yield from change_unit(machine, mapping, page_size, task))
        except KernelError:
            return False
        finally:
            mapping.window_holds -= 1
            if timer is not None:
                timer.cancel()

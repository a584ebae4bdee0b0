"""Working sets: what a run needed is written to a file, and read first by the next one.

Source: REAP (Ustiugov et al., ASPLOS 2021), which records the pages that a virtual machine
needs after it was restored, and reads them at once the next time.  The set is what repeats, not the
order.

What holds for the reads:

- Few requests.  What lies near is read together, with what lies between, if that is no more than
  what is wanted; it is dropped.  Not of a local file: there a request costs next to nothing.
- Demand first.  They go through the fault path with RETRY_NOWAIT, like readahead, into the lane
  of the mapping, but never fill it: a part of its threads is left for faults.
- Never more than fits.  They take what is free of the budgets, evict nothing, and end when a budget
  is nearly full.  If not all fits, what weighs most is read.  What is under way at a time is a
  quarter of a budget at most, since it cannot be evicted if a fault needs room.
- A unit that comes in this way is PG_AHEAD, so it counts as used only when a fault maps it, and it
  is evicted like any other.
- They end with the first read that fails: whoever needs the page asks again.

A file that is damaged, or cannot be written, is a warning.  One that was recorded on other bytes
(another size or `version`) is not used, and is replaced at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from refault.errors import Error, StoreError
from refault.fault.gup import readahead
from refault.machine.linux import RUN_BYTES, LinuxMapping, say
from refault.memory.budget import Budget
from refault.memory.page import PG_READING, PG_UPTODATE
from refault.memory.touched import Touched
from refault.memory.wait import Signal, Task, TaskState, Wait, WaitQueue, WaitReason, Waits
from refault.stores.base import store_version
from refault.stores.recorded import (
    Damaged,
    Foreign,
    Range,
    Recorded,
    at_most,
    overlaid,
    read_recorded,
    write_recorded,
)

from .tasks import PagerTask

if TYPE_CHECKING:
    from .service import Pager

__all__ = ["WorkingSets"]

LEFT_FREE: Final = 16
"""One part in so many of a budget is left to faults."""
LANE_SHARE: Final = (3, 4)
"""How much of the lane of a mapping these reads may take."""
UNDER_WAY: Final = 4
"""One part in so many of a budget may be being read for them at a time."""


class _Kept:
    """The working set of a mapping at one place.

    Attributes
    ----------
    before
        What the last run left there, if it is of these bytes.
    written
        How many faults there had been when it was written.
    """

    __slots__ = ("before", "written")

    def __init__(self, before: Recorded | None) -> None:
        self.before = before
        self.written = -1


class WorkingSets:
    """Records and reads the working sets of all mappings.

    Parameters
    ----------
    pager
        Whose.
    """

    def __init__(self, pager: Pager) -> None:
        self.pager = pager
        self._lane = pager.loop.workers.lane(2)
        self._kept: dict[LinuxMapping, dict[str, _Kept]] = {}
        self._running: dict[LinuxMapping, set[PagerTask]] = {}
        self._ended = WaitQueue()

    # -- from one run to the next ----------------------------------------------

    def load(self, mapping: LinuxMapping, path: str, task: Task) -> Waits[list[Range]]:
        """Keep the working set of a mapping in a file from now on; returns what is there."""
        kept = self._kept.setdefault(mapping, {})
        if path in kept:
            return []

        def read() -> Recorded | None:
            found = read_recorded(path)
            same = found is not None and (found.version, found.size) == (
                store_version(mapping.store),
                mapping.size,
            )
            return found if same else None

        before = None
        try:
            before = yield from self.pager.in_thread(self._lane, read, task)
        except Foreign as error:
            say(f"{path}: {error}, and stays as it is; give another working_set")
            return []
        except (Damaged, OSError) as error:
            say(f"{path}: this working set is not used: {error}")
        kept.setdefault(path, _Kept(before))
        if before is None:
            return []
        self._adopt_page_size(mapping, before.page_size)
        return list(before.ranges)

    def save(self, mapping: LinuxMapping, task: Task) -> Waits[None]:
        """Write what has been used to the files of a mapping, unless they say it already."""
        for path, kept in self._kept.get(mapping, {}).items():
            counters = mapping.counters
            now = counters.faults + counters.evictions
            if kept.written == now:
                continue
            kept.written = now
            try:
                yield from self._write(mapping, path, kept, task)
            except (Error, OSError) as error:
                if task.signal_pending():
                    return  # the thread goes on by itself
                say(f"{path}: the working set cannot be kept: {error}; give another working_set")

    def _write(self, mapping: LinuxMapping, path: str, kept: _Kept, task: Task) -> Waits[None]:
        touched = Touched(mapping)

        def write() -> None:
            before = [] if kept.before is None else kept.before.ranges
            recorded = Recorded(
                store_version(mapping.store),
                touched.size,
                touched.page_size,
                overlaid(touched.ranges(), before),
            )
            write_recorded(path, recorded)

        yield from self.pager.in_thread(self._lane, write, task)

    def stop(self, mapping: LinuxMapping) -> None:
        """A mapping ends: nothing more is read."""
        for task in self._running.get(mapping, ()):
            task.send_signal(Signal.CLOSING)

    def forget(self, mapping: LinuxMapping) -> None:
        """A mapping has ended."""
        self._kept.pop(mapping, None)

    def _adopt_page_size(self, mapping: LinuxMapping, page_size: int) -> None:
        """Begin with the units that the last run ended with, if nothing is in memory yet."""
        chooser = mapping.chooser
        if (
            chooser is not None
            and page_size in (chooser.small, chooser.large, chooser.largest)
            and page_size != mapping.page_size
            and not mapping.vmas
            and not len(mapping.working_set)
            and mapping.can_change()
        ):
            mapping.set_page_size(page_size)
            self.pager.adjust_budget(mapping)

    # -- reading ---------------------------------------------------------------

    def prefetch(self, mapping: LinuxMapping, ranges: list[Range]) -> int:
        """Begin to read ranges of an object in the background.

        Returns
        -------
        int
            Bytes that there is room for.
        """
        room = _room(mapping)
        if room is not None:
            room -= room % mapping.page_size
        chosen = ranges if room is None else at_most(ranges, room)
        if not chosen:
            return 0
        task = PagerTask(self.pager.loop.scheduler, "working set")
        running = self._running.setdefault(mapping, set())
        running.add(task)
        mapping.prefetching = True

        def done(_: object) -> None:
            running.discard(task)
            if not running:
                mapping.prefetching = False
                self._running.pop(mapping, None)
                self._ended.wake_all()

        task.generator = self._read(mapping, chosen, task)
        task.done = done
        task.scheduler.alive.add(task)
        task.scheduler.ready.append(task)
        return sum(end - start for start, end, _ in chosen)

    def wait(self, mapping: LinuxMapping, task: Task) -> Waits[None]:
        """Wait until nothing is being read for `prefetch` any more.

        Raises
        ------
        StoreError
            The task shall not wait any longer.
        """
        while mapping in self._running:
            if task.signal_pending():
                raise StoreError(f"{mapping.name}: is being prefetched still; wait again")
            yield Wait(self._ended, TaskState.INTERRUPTIBLE, WaitReason.READ)

    def _read(self, mapping: LinuxMapping, ranges: list[Range], task: PagerTask) -> Waits[None]:
        lane = self.pager.lanes[mapping]
        width = max(1, lane.width * LANE_SHARE[0] // LANE_SHARE[1])
        step, limit = RUN_BYTES, _limit(mapping)
        if limit is not None:
            # What is under way cannot be evicted.
            units = limit // UNDER_WAY // mapping.page_size
            width = max(1, min(width, units))
            step = max(1, min(step // mapping.page_size, units // width)) * mapping.page_size
        under_way: deque[int] = deque()
        pieces = _pieces(ranges, step)
        for near in (
            _near(pieces, step) if mapping.read_nowait is None else ([one] for one in pieces)
        ):
            while len(under_way) >= width:
                if not (yield from _is_read(mapping, under_way.popleft(), task)):
                    return
            newest = None
            begun: int | None = 0
            for start, end in near:
                begun = yield from self._begin(mapping, start, end, task)
                if begun:
                    newest = end - 1
                if begun is None:
                    break
            if newest is not None:
                first, last = near[0][0] >> mapping.page_shift, (newest >> mapping.page_shift) + 1
                self.pager.machine.bridge(mapping, first, last)
                under_way.append(newest)
            if begun is None:
                break
        while under_way:
            if not (yield from _is_read(mapping, under_way.popleft(), task)):
                return

    def _begin(
        self, mapping: LinuxMapping, start: int, end: int, task: PagerTask
    ) -> Waits[int | None]:
        """Begin to read a piece; returns how many units were begun, None if it is over."""
        vma = next((vma for vma in mapping.vmas if not vma.mm.dead), None)
        if vma is None or not (yield from vma.lock.down_read(task, TaskState.INTERRUPTIBLE)):
            return None
        try:
            if vma.detached or mapping.closed:
                return None
            first, last = start >> mapping.page_shift, ((end - 1) >> mapping.page_shift) + 1
            for windows in mapping.windows:
                last = windows.uncovered(first, last)
            room = _room(mapping)
            if room is not None and room < mapping.page_size:
                return None
            if room is not None:
                last = min(last, first + room // mapping.page_size)
            begun = yield from readahead(self.pager.machine, vma, task, first, last)
            mapping.counters.prefetched += begun
            return begun
        finally:
            vma.lock.up_read()


def _is_read(mapping: LinuxMapping, at: int, task: PagerTask) -> Waits[bool]:
    """Wait until the read of a byte has ended; False if no more should be begun."""
    while True:
        if task.signal_pending() or mapping.closed:
            return False
        index = at >> mapping.page_shift
        if not mapping.flags[index] & PG_READING:
            # It may have been evicted since, or dropped by a hand.
            return bool(mapping.flags[index] & PG_UPTODATE) or index not in mapping.errors
        yield Wait(mapping.page_queue(index), TaskState.INTERRUPTIBLE, WaitReason.READ)


def _pieces(ranges: list[Range], step: int) -> list[tuple[int, int]]:
    """Ranges without their weights, neighbours joined, and cut to `step` bytes."""
    pieces: list[tuple[int, int]] = []
    for start, end, _ in ranges:
        if pieces and pieces[-1][1] == start and start % step:
            low, _ = pieces.pop()
            start = low
        while start < end:
            stop = min(end, start - start % step + step)
            pieces.append((start, stop))
            start = stop
    return pieces


def _near(pieces: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Pieces to read together, up to `most` bytes: no more of them in vain than is wanted."""
    near: list[tuple[int, int]] = []
    wanted = 0
    for start, end in pieces:
        whole = end - near[0][0] if near else 0
        if near and whole <= min(most, 2 * (wanted + end - start)):
            near.append((start, end))
            wanted += end - start
            continue
        if near:
            yield near
        near, wanted = [(start, end)], end - start
    if near:
        yield near


def _limit(mapping: LinuxMapping) -> int | None:
    """The smallest of the budgets; None: there is no bound."""
    return min((limit for _, limit in _limits(mapping)), default=None)


def _room(mapping: LinuxMapping) -> int | None:
    """Bytes that may still come in before somebody asks for them; None: any number."""
    return min(
        (
            max(0, limit - max(limit // LEFT_FREE, 2 * budget.low_free) - budget.usage)
            for budget, limit in _limits(mapping)
        ),
        default=None,
    )


def _limits(mapping: LinuxMapping) -> Iterator[tuple[Budget, int]]:
    budget: Budget | None = mapping.budget
    while budget is not None:
        if budget.limit is not None:
            yield budget, budget.limit
        budget = budget.parent

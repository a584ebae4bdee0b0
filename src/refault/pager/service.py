"""The pager itself: its clients, their regions, the mappings behind them."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from refault.errors import StoreError, UsageError
from refault.fault.reclaim import evict_units, reclaim, sync_units, wake_if_pressed, wanted
from refault.machine.linux import LinuxAddressSpace, LinuxMachine, LinuxMapping, say
from refault.machine.server import MappingRecord
from refault.machine.urgency import Urgency
from refault.memory.budget import Budget
from refault.memory.page import PG_LOCKED, PG_UPTODATE, PG_WRITEBACK
from refault.memory.vma import Vma
from refault.memory.wait import Task, TaskState, Wait, WaitQueue, WaitReason, Waits
from refault.stores.base import Store
from refault.stores.recorded import Range
from refault.stores.swap import Swap
from refault.stores.swapspace import SwapSpace

from .guardian import Guardian
from .loop import Loop
from .patience import Patience
from .snapshots import Snapshots
from .tasks import PagerTask
from .units import Units
from .workers import Lane
from .workingsets import WorkingSets

__all__ = ["Pager", "Region"]

DEFAULT_PAGE_SIZE = 64 << 10
SMALLEST_PAGE_SIZE = 4 << 10
LARGEST_PAGE_SIZE = 2 << 20
LANE_WIDTH = 8
HELPERS = 2
SWAP_SHARE = 4
"""Compressed pages may take one over so much of the machine's memory before they spill."""


class Region:
    """What one client sees of one mapping.

    Attributes
    ----------
    vma
        None until the client has attached it.
    prefetch
        What is to be read as soon as it is attached, with its weight.
    """

    def __init__(
        self,
        number: int,
        mapping: LinuxMapping,
        map_offset: int,
        map_length: int,
        deadline: float | None,
    ) -> None:
        self.number = number
        self.mapping = mapping
        self.map_offset = map_offset
        self.map_length = map_length
        self.deadline = deadline
        self.data_offset = 0
        self.data_length = map_length
        self.limit: int | None = None
        self.vma: Vma | None = None
        self.prefetch: list[Range] = []

    def units(self, start: int, end: int) -> tuple[int, int]:
        """Units of the mapping that bytes ``[start, end)`` of the region touch."""
        if end <= start:
            return 0, 0
        shift = self.mapping.page_shift
        return (self.map_offset + start) >> shift, ((self.map_offset + end - 1) >> shift) + 1


class Pager:
    """Everything in this process; also the `Services` of its machine.

    Parameters
    ----------
    guardian
        Who answers the faults of our clients if we are killed.
    """

    def __init__(self, guardian: Guardian) -> None:
        self.guardian = guardian
        self.loop = Loop()
        self.loop.add(guardian.fileno(), lambda _: self.guardian_gone())
        self.machine = LinuxMachine(self)
        if self.loop.server is not None:
            self.loop.server.copy_to(self.machine.copies)
            self.loop.server.on_pressed = functools.partial(wake_if_pressed, self.machine)
        self.loop.before_poll.append(self.machine.unplug)
        self.placement = self.loop.placement
        self.swap = Swap(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SWAP_SHARE)
        self.budget = Budget(None)
        self.clients: list[Any] = []
        self.regions: dict[int, Region] = {}
        self.shared: dict[tuple[int, int], LinuxMapping] = {}
        self.references: dict[LinuxMapping, set[int]] = {}
        self.lanes: dict[LinuxMapping, Lane] = {}
        self.closing = 0
        self.units = Units(self)
        self.snapshots = Snapshots(self)
        self.working_sets = WorkingSets(self)
        self.helpers = self.loop.workers.lane(HELPERS)
        self.numbers = iter(range(1, 1 << 62))

    # -- Services -----------------------------------------------------------

    def submit(
        self,
        mapping: LinuxMapping,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        urgency: Urgency,
    ) -> Callable[[], None]:
        """Run `work` in a thread of the mapping's lane; call what is returned to hurry it."""
        lane = self.lanes[mapping]
        return functools.partial(lane.hurry, lane.submit(work, done, urgency))

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        """Set a timer."""
        return self.loop.call_later(seconds, call)

    def spawn_reclaim(self, budget: Budget) -> None:
        """Start the background reclaim of a budget, unless it runs."""
        if budget.reclaiming:
            return
        self._give_way(budget)
        budget.reclaiming = True
        task = PagerTask(self.loop.scheduler, "reclaim")
        task.generator = self._reclaim(budget, task)
        self.loop.scheduler.alive.add(task)
        self.loop.scheduler.ready.append(task)

    def _reclaim(self, budget: Budget, task: PagerTask) -> Waits[None]:
        yield from reclaim(self.machine, budget, task)
        if wanted(budget) > 0:
            # There is nothing to evict.
            self._give_way(budget, newest=True)

    def _give_way(self, budget: Budget, *, newest: bool = False) -> None:
        for mapping in budget.mappings:
            assert isinstance(mapping, LinuxMapping)
            for windows in mapping.windows:
                windows.give_way(newest=newest)

    def run_in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run `work` in a thread that waits for no store."""
        self.helpers.submit(work, done)

    # -- waiting for threads --------------------------------------------------

    def in_thread(self, lane: Lane, work: Callable[[], Any], task: Task) -> Waits[Any]:
        """Run `work` in a thread and wait for what it returns, or raise what it raised.

        Raises
        ------
        StoreError
            Also when a signal ended the wait; the thread goes on by itself.
        """
        queue = WaitQueue()
        answer: list[tuple[Any, BaseException | None]] = []

        def done(result: Any, error: BaseException | None) -> None:
            answer.append((result, error))
            queue.wake_all()

        lane.submit(work, done)
        while not answer:
            yield Wait(queue, TaskState.INTERRUPTIBLE, WaitReason.READ)
            if not answer and task.signal_pending():
                raise StoreError("interrupted while a store was busy")
        result, error = answer[0]
        if error is not None:
            raise error
        return result

    def in_own_thread(self, work: Callable[[], Any], task: Task) -> Waits[Any]:
        """As `in_thread`, of no lane: nobody else waits behind `work`."""
        lane = self.loop.workers.lane(1)
        try:
            return (yield from self.in_thread(lane, work, task))
        finally:
            lane.close()

    # -- mappings -------------------------------------------------------------

    def make_mapping(
        self,
        store: Store,
        *,
        name: str,
        size: int,
        private: bool,
        writable: bool,
        page_size: int | None,
        limit: int | None,
        readahead: bool,
        swap: SwapSpace | None = None,
        key: tuple[int, int] | None = None,
    ) -> LinuxMapping:
        """Make a mapping; one that is `shared` by a key is found again by it."""
        given = page_size is not None
        if page_size is None:
            page_size = DEFAULT_PAGE_SIZE
            while limit is not None and page_size > SMALLEST_PAGE_SIZE and limit < 16 * page_size:
                page_size >>= 1
        if page_size & (page_size - 1) or not SMALLEST_PAGE_SIZE <= page_size <= LARGEST_PAGE_SIZE:
            raise UsageError(
                f"page_size {page_size}: must be a power of two from 4 KiB to 2 MiB; "
                f"leave it out for {DEFAULT_PAGE_SIZE >> 10} KiB"
            )
        budget = Budget(self.usable(limit, page_size), self.budget)
        try:
            mapping = LinuxMapping(
                next(self.numbers),
                name,
                size,
                page_size,
                budget,
                private=private,
                writable=writable,
                readahead=readahead,
                store=store,
                swap=self.swap if swap is None else swap,
            )
        except (MemoryError, OverflowError) as error:
            raise UsageError(
                f"{name}: {size} bytes in pages of {page_size} are more than the pager can keep"
                " account of; give a larger page_size, or open less at once"
            ) from error
        if self.loop.server is not None:
            mapping.native = MappingRecord(self.loop.server, mapping)
        self.lanes[mapping] = self.loop.workers.lane(getattr(store, "parallel", LANE_WIDTH))
        self.references[mapping] = set()
        mapping.page_size_given = given
        if not given:
            self.units.watch(mapping)
        if key is not None:
            self.shared[key] = mapping
        return mapping

    def usable(self, limit: int | None, page_size: int) -> int | None:
        """The budget in force: at least two units, since an access can straddle two.

        Raises
        ------
        UsageError
            Not even one unit fits.
        """
        if limit is None:
            return None
        if limit < page_size:
            raise UsageError(
                f"resident={limit} is smaller than one page unit of {page_size} bytes; "
                f"give more, or a smaller page_size"
            )
        return max(limit, 2 * page_size)

    def add_region(
        self,
        mapping: LinuxMapping,
        offset: int,
        length: int,
        deadline: float | None,
        limit: int | None,
    ) -> Region:
        """Make a region of bytes ``[offset, offset + length)`` of a mapping."""
        map_offset = offset & ~4095
        map_end = -(-(offset + length) // 4096) * 4096
        region = Region(next(self.numbers), mapping, map_offset, map_end - map_offset, deadline)
        region.data_offset = offset - map_offset
        region.data_length = length
        region.limit = limit
        self.regions[region.number] = region
        self.references[mapping].add(region.number)
        self.adjust_budget(mapping)
        return region

    def share_region(self, other: Region) -> Region:
        """Make a region of the same bytes for another client."""
        region = self.add_region(other.mapping, 0, 1, other.deadline, other.limit)
        region.map_offset, region.map_length = other.map_offset, other.map_length
        region.data_offset, region.data_length = other.data_offset, other.data_length
        return region

    def adjust_budget(self, mapping: LinuxMapping) -> None:
        """Regions that share a mapping share its budget: the smallest one counts."""
        # A region whose last changes are being written is referenced, and not in the list.
        regions = (self.regions.get(number) for number in self.references[mapping])
        limits = [
            region.limit for region in regions if region is not None and region.limit is not None
        ]
        wanted = self.usable(min(limits), mapping.page_size) if limits else None
        if wanted != mapping.budget.limit:
            mapping.budget.set_limit(wanted)
            mapping.budget_changed()
            self.trim(mapping.budget)

    def trim(self, budget: Budget) -> None:
        """Reclaim what a lowered budget does not allow any more."""
        if budget.limit is not None and budget.usage > budget.limit:
            self.spawn_reclaim(budget)

    def drop_region(self, region: Region, task: Task) -> Waits[None]:
        """A client has unmapped a region: write back, and free the mapping with its last one.

        Raises
        ------
        StoreError
            Changed pages could not be written; they are kept until they can, or until the
            time is over.
        """
        vma = region.vma
        if vma is not None:
            assert isinstance(vma.mm, LinuxAddressSpace)
            vma.mm.withdraw(vma)
            yield from vma.lock.down_write(task, TaskState.UNINTERRUPTIBLE)
            vma.mm.remove(vma)
            vma.lock.up_write()
            region.vma = None
        if self.regions.pop(region.number, None) is None:
            return
        mapping = region.mapping
        references = self.references[mapping]
        # It is referenced as long as we write: the other regions may end meanwhile.
        while len(references) > 1:
            self.adjust_budget(mapping)
            if not mapping.private:
                yield from sync_units(self.machine, mapping, 0, mapping.pages, task)
            if len(references) > 1:
                references.discard(region.number)
                return
        self.closing += 1
        self.units.stop(mapping)
        self.working_sets.stop(mapping)
        try:
            yield from self._last_writeback(mapping, region, task)
            yield from self.working_sets.save(mapping, task)
            while True:
                yield from self._until_idle(mapping)
                # Others may have come, written, and gone.
                again = mapping.dirty and len(references) == 1 and self._written_back(mapping)
                if not again:
                    break
                yield from self._last_writeback(mapping, region, task)
        finally:
            yield from self._until_idle(mapping)
            self.closing -= 1
            references.discard(region.number)
            if not references and not mapping.held:
                self._free(mapping)
            self.stop_if_idle()

    @staticmethod
    def _written_back(mapping: LinuxMapping) -> bool:
        return mapping.writable and not mapping.private

    def _last_writeback(self, mapping: LinuxMapping, region: Region, task: Task) -> Waits[None]:
        if not self._written_back(mapping):
            return
        over: list[None] = []

        def time_over() -> None:
            over.append(None)
            pause = mapping.write_pause
            text = f"the store has taken no change for {patience.seconds:g} s"
            if not any(number in self.regions for number in self.references[mapping]):
                self.machine.end_writes(mapping, pause.cause if pause else StoreError(text))
            if pause is not None:
                pause.cooled()

        patience = Patience(self.loop, mapping, region.deadline, time_over)
        try:
            while True:
                failed = yield from sync_units(self.machine, mapping, 0, mapping.pages, task)
                if not mapping.dirty:
                    failed = yield from self._last_flush(mapping, task)
                    if failed is None:
                        return
                if failed is None:
                    continue
                if over or getattr(failed, "permanent", False):
                    lost = mapping.dirty * mapping.page_size or mapping.counters.bytes_written
                    text = (
                        f"{mapping.name}: up to {lost} changed bytes were NOT written and are "
                        f"lost: {failed}"
                    )
                    say(text)
                    raise StoreError(text)
                pause = self.machine.write_failed(mapping, failed)
                while pause.cooling:
                    yield Wait(pause.over, TaskState.UNINTERRUPTIBLE, WaitReason.STORE_ERROR)
        finally:
            patience.cancel()

    def _last_flush(self, mapping: LinuxMapping, task: Task) -> Waits[StoreError | None]:
        """Flush a store that has not sent on what was written to it."""
        if not getattr(mapping.store, "buffered", False):
            return None
        flush: Callable[[], None] = mapping.store.flush  # type: ignore[attr-defined]
        try:
            yield from self.in_thread(self.lanes[mapping], flush, task)
        except StoreError as error:
            return error
        return None

    def _until_idle(self, mapping: LinuxMapping) -> Waits[None]:
        """Wait until nobody evicts units or writes them: the memfd's number will be another's.

        Reads need no waiting.  They may take for ever, and keep the memfd open themselves.
        """
        while True:
            for index in mapping.working_set:
                if mapping.flags[index] & (PG_LOCKED | PG_WRITEBACK):
                    queue = mapping.page_queue(index)
                    break
            else:
                return
            yield Wait(queue, TaskState.UNINTERRUPTIBLE, WaitReason.PAGE_LOCK)

    def free_if_unused(self, mapping: LinuxMapping) -> None:
        """Nobody holds an instant of a mapping any more: free it, if its last region is gone."""
        if mapping.held or self.references.get(mapping, True):
            return

        def work() -> Waits[None]:
            try:
                yield from self._until_idle(mapping)
            finally:
                self.closing -= 1
                if not mapping.held and not self.references.get(mapping, True):
                    self._free(mapping)
                self.stop_if_idle()

        self.closing += 1
        self.loop.scheduler.spawn(PagerTask(self.loop.scheduler, "last of it"), work())

    def _free(self, mapping: LinuxMapping) -> None:
        del self.references[mapping]
        self.working_sets.forget(mapping)
        self.lanes.pop(mapping).close()
        for key, shared in list(self.shared.items()):
            if shared is mapping:
                del self.shared[key]
        mapping.close()
        if mapping.swap is not self.swap:
            self._close_swap(mapping.swap)

    def _close_swap(self, swap: SwapSpace) -> None:
        """Have a swap that was one mapping's own forget everything, which may take its time."""

        def done(_: None, error: BaseException | None) -> None:
            if error is not None:
                say(str(error))
            self.closing -= 1
            self.stop_if_idle()

        self.closing += 1
        lane = self.loop.workers.lane(1)
        lane.submit(swap.close, done)
        lane.close()

    def flush(self, region: Region, first: int, last: int, task: Task) -> Waits[None]:
        """Write back dirty units ``[first, last)`` and make them durable.

        Raises
        ------
        StoreError
            What could not be written stays dirty.
        """
        mapping = region.mapping
        if mapping.private or not mapping.writable:
            return
        failed = yield from sync_units(self.machine, mapping, first, last, task)
        if failed is None and task.signal_pending():
            failed = StoreError(f"{mapping.name}: cancelled; what is not written yet is kept")
        if failed is not None:
            if isinstance(failed, StoreError):
                raise failed
            raise StoreError(
                f"{mapping.name}: changed pages could not be written: {failed}; they are kept"
            ) from failed
        flush = getattr(mapping.store, "flush", None)
        if flush is not None:
            yield from self.in_thread(self.lanes[mapping], flush, task)

    def grow(self, mapping: LinuxMapping, size: int, task: Task) -> Waits[None]:
        """The file of a shared mapping has become longer since it was first opened.

        Its last unit may be in memory, with zeros where the file had ended: it must go first.

        Raises
        ------
        StoreError, UsageError
            It cannot go.
        """
        with mapping.holding():
            yield from self._drop_tail(mapping, task)
        if mapping not in self.references:
            raise StoreError(f"{mapping.name}: was closed meanwhile; open it again")
        if size > mapping.size:
            mapping.store.size = size  # type: ignore[misc]
            mapping.grow(size)

    def _drop_tail(self, mapping: LinuxMapping, task: Task) -> Waits[None]:
        tail = mapping.pages - 1
        while mapping.size % mapping.page_size and mapping.flags[tail] & (PG_UPTODATE | PG_LOCKED):
            if tail in mapping.pins:
                raise UsageError(
                    f"{mapping.name} has grown, and what was its last page is pinned: release the "
                    f"pin, then open it again"
                )
            failed = yield from evict_units(self.machine, mapping, [tail], task, ghost=False)
            if failed is not None:
                raise StoreError(f"{mapping.name}: cannot grow: {failed}")
            if mapping.flags[tail] & (PG_LOCKED | PG_WRITEBACK):
                yield Wait(mapping.page_queue(tail), TaskState.INTERRUPTIBLE, WaitReason.PAGE_LOCK)
            if task.signal_pending():
                raise StoreError(f"{mapping.name}: cannot grow: it was cancelled")

    # -- life -----------------------------------------------------------------

    def guardian_gone(self) -> None:
        """Somebody killed the guardian; what it guards against has not happened."""
        self.loop.remove(self.guardian.fileno())
        self.guardian.ended()
        say(
            "the guardian of the pager has been killed; if the pager is killed too, programs that"
            " use it get SIGBUS at once"
        )

    def stop_if_idle(self) -> None:
        """End the loop if nobody needs us any more."""
        if not self.clients and not self.closing:
            self.loop.stopped = True

    def mappings(self) -> Iterator[LinuxMapping]:
        """All mappings there are."""
        return iter(self.references)

    def socketpair_end(self, fd: int) -> socket.socket:
        """Make a socket object of a received descriptor."""
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)

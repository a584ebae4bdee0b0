"""Pages are to come, to go, to stay, to be written."""

from __future__ import annotations

from array import array

from refault.errors import Error, StoreError, UsageError
from refault.fault import gup
from refault.fault.gup import Foll, GupOutcome
from refault.fault.reclaim import evict_units
from refault.memory.touched import Touched
from refault.memory.vma import Vma
from refault.memory.wait import RESCHEDULE, Signal, TaskState, Waits
from refault.wire import messages as wire

from ..service import Region
from ..tasks import PagerTask
from .request import (
    Request,
    attached_region,
    cause_of,
    deadline_timer,
    pairs,
    region_of,
    within,
)

__all__ = [
    "evict",
    "flush",
    "populate",
    "populate_ranges",
    "prefetch",
    "prefetch_ranges",
    "prefetched",
    "working_set",
]

TURN_RANGES = 64
"""So many ranges are begun in one turn of the loop; neighbours among them are read together."""


def populate(request: Request, message: wire.Populate | wire.Pin, fds: list[int]) -> None:
    region, vma = attached_region(request, message.region)
    client = request.client
    machine, mm = client.pager.machine, client.mm
    assert mm is not None
    pinning = isinstance(message, wire.Pin)
    what = "pin" if pinning else "populate"
    _check_fits(region, message.start, message.end, what)
    if pinning:
        _check_pins(region, message.start, message.end)
    foll = Foll.INTERRUPTIBLE | Foll.REMOTE | (Foll.WRITE if message.write else Foll(0))
    start, end = vma.start + message.start, min(vma.start + message.end, vma.end)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        timer = deadline_timer(request, region, task)
        try:
            yield from no_windows_of(request, region, *region.units(message.start, message.end))
            if pinning:
                outcome, request.pinned = yield from gup.pin(machine, mm, task, start, end, foll)
            else:
                outcome = yield from gup.fault_in(machine, mm, task, start, end, foll)
        finally:
            if timer is not None:
                timer.cancel()
        if outcome.done < end:
            pinned, request.pinned = request.pinned, []
            for held, index in pinned:
                held.mapping.unpin(index)
            raise _gup_failed(request, vma, outcome, what)
        return wire.Done(message.end - message.start)

    request.run(what, work)


def _begin_range(request: Request, vma: Vma, task: PagerTask, start: int, end: int) -> Waits[None]:
    if not (yield from vma.lock.down_read(task, TaskState.INTERRUPTIBLE)):
        return
    try:
        if not vma.detached:
            machine = request.client.pager.machine
            yield from gup.readahead(machine, vma, task, *vma.units(start, end))
    finally:
        vma.lock.up_read()


def populate_ranges(request: Request, message: wire.PopulateRanges, fds: list[int]) -> None:
    region, vma = attached_region(request, message.region)
    client = request.client
    machine, mm = client.pager.machine, client.mm
    assert mm is not None
    ranges = within(pairs(message.ranges), min(region.map_length, vma.end - vma.start))

    def work(task: PagerTask) -> Waits[wire.Reply]:
        timer = deadline_timer(request, region, task)
        try:
            for number, (start, end) in enumerate(ranges):
                yield from no_windows_of(request, region, *region.units(start, end))
                yield from _begin_range(request, vma, task, start, end)
                if number % TURN_RANGES == TURN_RANGES - 1:
                    yield RESCHEDULE
            for start, end in ranges:
                low, high = vma.start + start, vma.start + end
                foll = Foll.INTERRUPTIBLE | Foll.REMOTE
                outcome = yield from gup.fault_in(machine, mm, task, low, high, foll)
                if outcome.done < high:
                    raise _gup_failed(request, vma, outcome, "take")
        finally:
            if timer is not None:
                timer.cancel()
        return wire.Done(sum(end - start for start, end in ranges))

    request.run("take", work)


def _gup_failed(request: Request, vma: Vma, outcome: GupOutcome, what: str) -> Error:
    mapping = vma.mapping
    index = vma.index_of(min(outcome.done, vma.end - 1))
    start, end = mapping.index_bytes(index)
    error = mapping.errors.get(index)
    cause = error.cause if error is not None else None
    permanent = error is not None and error.permanent
    if outcome.interrupted:
        signal = request.task.signal if request.task is not None else None
        if signal is Signal.CLOSING:
            return UsageError(f"{what}: the region is being closed")
        why = "it was cancelled" if signal is Signal.CANCEL else "the time limit is over"
    elif cause is None:
        return UsageError(f"{what}: the access is not allowed; is the array read-only?")
    else:
        why = "the store cannot deliver it"
    detail = f": {cause_of(mapping, cause)}" if cause is not None else ""
    return StoreError(
        f"{what}: {mapping.name}, bytes {start} to {end}: {why}{detail}", permanent=permanent
    )


def _check_fits(region: Region, start: int, end: int, what: str) -> None:
    mapping = region.mapping
    first, last = region.units(start, end)
    needed = (last - first) * mapping.page_size
    room = mapping.budget.limit
    if room is None and mapping.budget.parent is not None:
        room = mapping.budget.parent.limit
    if room is not None and needed > room:
        raise UsageError(
            f"{what} needs {needed} bytes to be resident at once, and the budget is {room}; "
            f"do it piece by piece, or open the array with a larger resident"
        )


def _check_pins(region: Region, start: int, end: int) -> None:
    """Two units at least must stay free to move, or nobody else could touch anything."""
    mapping = region.mapping
    budget = mapping.budget
    limit = budget.limit
    if limit is None and budget.parent is not None:
        limit = budget.parent.limit
    if limit is None:
        return
    first, last = region.units(start, end)
    new = sum(index not in mapping.pins for index in range(first, last))
    pinned = (len(mapping.pins) + new) * mapping.page_size
    if pinned > limit - 2 * mapping.page_size:
        raise UsageError(
            f"pin: {pinned} bytes would be pinned, and the budget of {limit} needs two page units "
            f"of {mapping.page_size} left free; release a pin, or give a larger resident"
        )


def no_windows_of(request: Request, region: Region, first: int, last: int) -> Waits[None]:
    """Give back what the file itself is mapped over: these pages are meant to be ours."""
    vma = region.vma
    windows = request.client.windows.get(vma) if vma is not None else None
    if windows is not None:
        yield from windows.give_back(first, last)


def prefetch(request: Request, message: wire.Prefetch, fds: list[int]) -> None:
    region, vma = attached_region(request, message.region)
    client = request.client
    mm = client.mm
    assert mm is not None
    mapping = region.mapping
    end = min(message.end, region.map_length)
    room = mapping.budget.limit
    if room is not None:
        end = min(end, message.start + max(room // 2, mapping.page_size))

    def work(task: PagerTask) -> Waits[wire.Reply]:
        yield from gup.prefetch(
            client.pager.machine, mm, task, vma.start + message.start, vma.start + end
        )
        return wire.Done(max(0, end - message.start))

    request.run("prefetch", work)


def prefetch_ranges(request: Request, message: wire.PrefetchRanges, fds: list[int]) -> None:
    region, _ = attached_region(request, message.region)
    at = region.map_offset
    found = within(sorted(pairs(message.ranges)), min(region.map_length, region.mapping.size - at))
    ranges = [(at + start, at + end, 1) for start, end in found]
    value = request.client.pager.working_sets.prefetch(region.mapping, ranges)
    request.answer(wire.Done(value))


def prefetched(request: Request, message: wire.Prefetched, fds: list[int]) -> None:
    region, _ = attached_region(request, message.region)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        yield from request.client.pager.working_sets.wait(region.mapping, task)
        return wire.Done()

    request.run("prefetched", work)


def working_set(request: Request, message: wire.WorkingSet, fds: list[int]) -> None:
    region = region_of(request, message.region)
    mapping, at = region.mapping, region.map_offset
    first, _ = region.units(message.start, region.map_length)
    touched = Touched(mapping)

    def look() -> bytes:
        found = array("q")
        for start, end, _ in touched.ranges(first):
            if len(found) == 2 * wire.CHANGED_RANGES or start >= at + region.map_length:
                break
            found.extend((start - at, end - at))
        return found.tobytes()

    def work(task: PagerTask) -> Waits[wire.Reply]:
        pager = request.client.pager
        return wire.Done((yield from pager.in_thread(pager.helpers, look, task)))

    request.run("working set", work)


def evict(request: Request, message: wire.Evict, fds: list[int]) -> None:
    region = region_of(request, message.region)
    pager, mapping = request.client.pager, region.mapping

    def work(task: PagerTask) -> Waits[wire.Reply]:
        before = mapping.resident
        yield from no_windows_of(request, region, *region.units(message.start, message.end))
        first, last = region.units(message.start, message.end)
        units = sorted(index for index in mapping.working_set if first <= index < last)
        with mapping.holding():
            for at in range(0, len(units), 64):
                failed = yield from evict_units(
                    pager.machine, mapping, units[at : at + 64], task, ghost=False
                )
                if failed is not None:
                    raise StoreError(
                        f"evict: {mapping.name}: {cause_of(mapping, failed)}; the pages are kept"
                    )
        return wire.Done(max(0, before - mapping.resident))

    request.run("evict", work)


def flush(request: Request, message: wire.Flush, fds: list[int]) -> None:
    region = region_of(request, message.region)
    first, last = region.units(message.start, message.end)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        yield from request.client.pager.flush(region, first, last, task)
        return wire.Done()

    request.run("flush", work)

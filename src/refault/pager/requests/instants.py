"""Instants: snapshots, marks, what has changed between them."""

from __future__ import annotations

import functools
import os

from refault.errors import UsageError
from refault.memory.wait import Waits
from refault.wire import messages as wire

from ..copying import copy_ranges, shared_memory
from ..snapshots import SnapshotStore, snapshot_of
from ..tasks import PagerTask
from .request import Request, deadline_timer, pairs, region_of

__all__ = ["changed", "mark", "read_snapshot", "snapshot"]


def snapshot(request: Request, message: wire.Snapshot, fds: list[int]) -> None:
    snapshots = request.client.pager.snapshots
    mappings = [region_of(request, number).mapping for number in message.regions]
    request.region = None

    def work(task: PagerTask) -> Waits[wire.Reply]:
        snapshot = yield from snapshots.take(mappings, task)
        request.end = functools.partial(snapshots.release, snapshot)
        return wire.Done({"number": snapshot.number, "pause": snapshot.pause})

    request.run("snapshot", work)


def mark(request: Request, message: wire.Mark, fds: list[int]) -> None:
    snapshots = request.client.pager.snapshots
    mapping = region_of(request, message.region).mapping
    number = message.snapshot
    snapshot = None if number is None else snapshot_of(snapshots, number, mapping)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        mark = yield from snapshots.mark(mapping, snapshot, task)
        request.end = functools.partial(snapshots.unmark, mark)
        return wire.Done(mark.number)

    request.run("mark", work)


def changed(request: Request, message: wire.Changed, fds: list[int]) -> None:
    snapshots = request.client.pager.snapshots
    region = region_of(request, message.region)
    mapping = region.mapping
    mark, number = snapshots.marks.get(message.mark), message.snapshot
    if mark is None or mark.mapping is not mapping:
        raise UsageError("the mark is closed, or is one of another array; take another one")
    snapshot = None if number is None else snapshot_of(snapshots, number, mapping)
    first, last = region.units(message.start, region.map_length)
    found = snapshots.changed(mark, snapshot, first, last, wire.CHANGED_RANGES)
    for at, unit in enumerate(found):
        found[at] = (unit << mapping.page_shift) - region.map_offset
    request.answer(wire.Done(found.tobytes()))


def read_snapshot(request: Request, message: wire.ReadSnapshot, fds: list[int]) -> None:
    pager, region = request.client.pager, region_of(request, message.region)
    snapshots, mapping = pager.snapshots, region.mapping
    at = region.map_offset
    ranges = [(at + start, at + end) for start, end in pairs(message.ranges)]
    if not all(at <= start < end <= at + region.map_length for start, end in ranges):
        raise UsageError("what is to be read of the snapshot does not lie in the array")
    total = sum(end - start for start, end in ranges)
    if total > wire.READ_BYTES or len(ranges) > wire.READ_RANGES:
        raise UsageError(f"{total} bytes in {len(ranges)} parts are too many for one request")
    snapshot = snapshot_of(snapshots, message.snapshot, mapping)
    target = shared_memory(fds[0], message.at, total)
    os.close(fds.pop())
    store = SnapshotStore(snapshots, snapshot, mapping)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        timer = deadline_timer(request, region, task)
        try:
            yield from copy_ranges(pager, store, ranges, target, task)
        finally:
            store.close()
            if timer is not None:
                timer.cancel()
        return wire.Done()

    request.run("read snapshot", work)

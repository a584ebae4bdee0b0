"""What clients ask for, beside page faults; one function for each message."""

from __future__ import annotations

import functools
import os
import select
import socket
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from refault.errors import Error, StoreError, UsageError
from refault.fault import gup
from refault.fault.gup import Foll, GupOutcome
from refault.fault.reclaim import evict_units, sync_units
from refault.machine.linux import LinuxMapping
from refault.memory.mapping import Mapping
from refault.memory.touched import Touched
from refault.memory.vma import Vma
from refault.memory.wait import RESCHEDULE, Signal, TaskState, Waits
from refault.stores.base import Store
from refault.stores.file import FileStore
from refault.stores.fill import FillStore
from refault.stores.swapspace import SwapSpace
from refault.wire import messages as wire

from .copying import copy_ranges, shared_memory
from .patience import Patience
from .snapshots import SnapshotStore, snapshot_of
from .tasks import PagerTask
from .windows import AgentSocket, no_windows

if TYPE_CHECKING:
    from .client import Client
    from .service import Pager, Region

__all__ = ["Request", "handle"]

TURN_RANGES = 64
"""So many ranges are begun in one turn of the loop; neighbours among them are read together."""


class Request:
    """A request that is being served.

    Parameters
    ----------
    client
        Who asks.
    reply
        Where the answer goes; when its other end closes, the asker has given up.
    """

    def __init__(self, client: Client, reply: socket.socket) -> None:
        self.client = client
        self.reply = reply
        self.region: Region | None = None
        self.task: PagerTask | None = None
        self.pinned: list[tuple[Vma, int]] = []
        self.end: Callable[[], None] | None = None
        self.answered = False
        reply.setblocking(False)
        client.requests.add(self)
        client.pager.loop.add(
            reply.fileno(), lambda _: self.hang_up(), select.EPOLLRDHUP | select.EPOLLHUP
        )

    def answer(self, message: wire.Reply, fds: list[int] | None = None) -> None:
        """Send the answer; unless something lasts as long as the socket, that is the end of it."""
        self.answered = True
        try:
            wire.send(self.reply, message, fds)
        except OSError:
            pass
        if not self.pinned and self.end is None:
            self.close()

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        known = (
            error if isinstance(error, Error) else StoreError(f"{type(error).__name__}: {error}")
        )
        permanent = bool(getattr(error, "permanent", False))
        self.answer(wire.Failed(type(known).__name__, str(known), permanent))

    def hang_up(self) -> None:
        """Nobody waits for the answer, or holds the pin, any more."""
        if self.answered:
            self.close()
        elif self.task is not None:
            self.task.send_signal(Signal.CANCEL)

    def close(self) -> None:
        """Give back what lasts as long as the socket, and forget the request."""
        pinned, self.pinned = self.pinned, []
        end, self.end = self.end, None
        if end is not None:
            end()
        for vma, index in pinned:
            vma.mapping.unpin(index)
        if self in self.client.requests:
            self.client.requests.discard(self)
            self.client.pager.loop.remove(self.reply.fileno())
            self.reply.close()

    def run(self, name: str, work: Callable[[PagerTask], Waits[wire.Reply]]) -> None:
        """Serve it with a task; what `work` returns or raises is the answer."""
        scheduler = self.client.pager.loop.scheduler
        self.task = task = PagerTask(scheduler, name)

        def guarded() -> Waits[None]:
            try:
                message = yield from work(task)
            except (Error, OSError) as error:
                self.fail(error)
            else:
                self.answer(message)

        def done(result: Any) -> None:
            if not self.answered:
                self.fail(result if isinstance(result, BaseException) else Error("no answer"))

        scheduler.spawn(task, guarded(), done)


def handle(client: Client, message: Any, fds: list[int]) -> None:
    """Serve one message; its first descriptor is the reply socket."""
    request = Request(client, client.pager.socketpair_end(fds[0]))
    rest = fds[1:]
    try:
        _HANDLERS[type(message)](request, message, rest)
    except (Error, OSError, LookupError, ValueError) as error:
        for fd in rest:
            os.close(fd)
        request.fail(error)


def _region(request: Request, number: int) -> Region:
    region = request.client.regions.get(number)
    if region is None:
        raise UsageError(f"region {number} is closed; open it again")
    request.region = region
    return region


def _attached(request: Request, number: int) -> tuple[Region, Vma]:
    region = _region(request, number)
    if region.vma is None:
        raise UsageError(f"region {number} is not attached")
    return region, region.vma


def _hello(request: Request, message: wire.Hello, fds: list[int]) -> None:
    uffd, wakeup, lifeline = fds
    request.client.hello(message, uffd, wakeup, lifeline)
    request.answer(wire.Done())


def _map(request: Request, message: wire.Map, fds: list[int]) -> None:
    pager, client = request.client.pager, request.client
    source = message.source
    limit = message.resident
    if message.offset < 0:
        raise UsageError(f"offset={message.offset} is negative")

    def work(task: PagerTask) -> Waits[wire.Reply]:
        store: Store
        key: tuple[int, int] | None = None
        mapping = None
        size = None
        offset, length, page_size = message.offset, message.length, message.page_size
        swap: SwapSpace | None = None
        if isinstance(source, wire.FileSource):
            try:
                store = FileStore(fds[0], source.path, source.size, source.writable)
            except BaseException:
                os.close(fds[0])
                raise
            name, size = source.path, source.size
            mapping = pager.shared.get(store.key)
            if message.private:
                if mapping is not None:
                    yield from sync_units(pager.machine, mapping, 0, mapping.pages, task)
                mapping = None
            else:
                key = store.key
        elif isinstance(source, wire.FillSource):
            store, name = FillStore(source.size, source.pattern), "anonymous"
            if message.swap is not None:
                swap = yield from _open_swap(pager, message.swap, task)
        elif isinstance(source, wire.SnapshotSource):
            snapshots, other = pager.snapshots, _region(request, source.region)
            snapshot = snapshot_of(snapshots, source.snapshot, other.mapping)
            store = SnapshotStore(snapshots, snapshot, other.mapping)
            name, page_size = store.name, other.mapping.page_size
            offset = other.map_offset + other.data_offset
            length = other.data_length
        else:
            from refault.stores.objects import ObjectStore, load_object

            lane = pager.loop.workers.lane(1)
            try:
                loaded = yield from pager.in_thread(
                    lane,
                    lambda: ObjectStore(load_object(source.pickled, client.sys_path)),
                    task,
                )
            finally:
                lane.close()
            store, name = loaded, loaded.name
            if message.writable and not message.private and not loaded.writable:
                raise UsageError(
                    f"{name} has no write_from, so it cannot be opened for writing; "
                    f'open it with mode "r", or "c" for private changes'
                )
        size = store.size if size is None else size
        if length is None:
            length = size - offset
        if length <= 0 or offset + length > size:
            store_close(store)
            raise UsageError(f"{name} has {size} bytes; {length} from {offset} on are not in it")
        if mapping is not None:
            assert isinstance(source, wire.FileSource) and isinstance(mapping.store, FileStore)
            try:
                if message.page_size is not None:
                    yield from _give_page_size(request, mapping, message.page_size, task)
                pager.usable(limit, mapping.page_size)
            except BaseException:
                store_close(store)
                raise
            if source.writable and not mapping.writable:
                # What is changed from now on is in memory before it is in the file.
                try:
                    yield from no_windows(mapping)
                except BaseException:
                    store_close(store)
                    raise
                if mapping not in pager.references:
                    store_close(store)
                    raise StoreError(f"{name}: was closed meanwhile; open it again")
                mapping.use_file_windows(False)
                mapping.writable = True
                mapping.store.adopt(os.dup(fds[0]), True)
            store_close(store)
            if size > mapping.size:
                yield from pager.grow(mapping, size, task)
        else:
            try:
                mapping = pager.make_mapping(
                    store,
                    name=name,
                    size=size,
                    private=message.private,
                    writable=message.writable and not message.private,
                    page_size=page_size,
                    limit=limit,
                    readahead=message.readahead,
                    swap=swap,
                    key=key,
                )
            except BaseException:
                store_close(store)
                if swap is not None:
                    store_close(swap)
                raise
        region = pager.add_region(mapping, offset, length, message.deadline, limit)
        client.regions[region.number] = region
        if message.working_set is not None:
            region.prefetch = yield from pager.working_sets.load(mapping, message.working_set, task)
        request.answer(_mapped(region), [mapping.memfd])
        return wire.Done()

    request.run("map", work)


def _open_swap(pager: Pager, url: str, task: PagerTask) -> Waits[SwapSpace]:
    from refault.stores.redis.swap import RedisSwap

    lane = pager.loop.workers.lane(1)
    try:
        swap: SwapSpace = yield from pager.in_thread(lane, lambda: RedisSwap(url), task)
    finally:
        lane.close()
    return swap


def _give_page_size(
    request: Request, mapping: LinuxMapping, page_size: int, task: PagerTask
) -> Waits[None]:
    """A file that is open already is opened with a page size."""
    if mapping.page_size_given and mapping.page_size != page_size:
        raise UsageError(
            f"{mapping.name} is open with page_size={mapping.page_size}; all regions of one file "
            f"share their pages: leave page_size out or give the same"
        )
    given, mapping.page_size_given = mapping.page_size_given, True
    chooser, mapping.chooser = mapping.chooser, None
    try:
        yield from request.client.pager.units.fix(mapping, page_size, task)
    except BaseException:
        mapping.page_size_given, mapping.chooser = given, chooser
        raise


def store_close(store: Store | SwapSpace) -> None:
    """Close a store that has a `close`."""
    close = getattr(store, "close", None)
    if close is not None:
        close()


def _mapped(region: Region) -> wire.Mapped:
    return wire.Mapped(
        region.number,
        region.mapping.page_size,
        region.map_offset,
        region.map_length,
        region.data_offset,
        region.data_length,
    )


def _attach(request: Request, message: wire.Attach, fds: list[int]) -> None:
    region = _region(request, message.region)
    mm = request.client.mm
    assert mm is not None
    region.vma = Vma(
        mm,
        message.address,
        region.map_length,
        region.mapping,
        region.map_offset,
        writable=message.writable,
    )
    mm.insert(region.vma)
    request.client.attached(region.vma, region)
    ranges, region.prefetch = region.prefetch, []
    request.client.pager.working_sets.prefetch(region.mapping, ranges)
    request.answer(wire.Done())


def _agent(request: Request, message: wire.Agent, fds: list[int]) -> None:
    client = request.client
    client.agent = AgentSocket(client.pager.loop, client.pager.socketpair_end(fds[0]))
    request.answer(wire.Done())


def _share(request: Request, message: wire.Share, fds: list[int]) -> None:
    pager, client = request.client.pager, request.client
    region = client.inherited.pop(message.region, None)
    if region is None:
        # The parent opened it in another thread, between ExpectChild and its fork.
        parent = pager.regions.get(message.region)
        if parent is None:
            raise UsageError(f"region {message.region} is closed; the parent has closed it")
        region = pager.share_region(parent)
        client.regions[region.number] = region
    request.answer(_mapped(region), [region.mapping.memfd])


def _expect_child(request: Request, message: wire.ExpectChild, fds: list[int]) -> None:
    from .client import Client

    pager, parent = request.client.pager, request.client
    child = Client(pager, pager.socketpair_end(fds[0]))
    # From now on: the parent may be gone before the child has said a word.
    for number, region in parent.regions.items():
        child.inherited[number] = shared = pager.share_region(region)
        child.regions[shared.number] = shared
    request.answer(wire.Done())


def _detach(request: Request, message: wire.Detach, fds: list[int]) -> None:
    region = _region(request, message.region)
    client = request.client
    request.region = None
    client.stop_waiting(region, Signal.CLOSING)
    vma = region.vma

    def work(task: PagerTask) -> Waits[wire.Reply]:
        if vma is not None:
            yield from client.unmapped(vma)
        try:
            yield from client.pager.drop_region(region, task)
        finally:
            client.regions.pop(region.number, None)
        return wire.Done()

    request.run("detach", work)


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
    detail = f": {_cause(mapping, cause)}" if cause is not None else ""
    return StoreError(
        f"{what}: {mapping.name}, bytes {start} to {end}: {why}{detail}", permanent=permanent
    )


def _cause(mapping: Mapping, error: BaseException) -> str:
    """What an error says, without the name of the store, which is said already."""
    return str(error).removeprefix(f"{mapping.name}: ")


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


def _with_deadline(request: Request, region: Region, task: PagerTask) -> Any:
    if region.deadline is None:
        return None
    return request.client.pager.loop.call_later(
        region.deadline, lambda: task.send_signal(Signal.DEADLINE)
    )


def _populate(request: Request, message: wire.Populate | wire.Pin, fds: list[int]) -> None:
    region, vma = _attached(request, message.region)
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
        timer = _with_deadline(request, region, task)
        try:
            yield from _no_windows(request, region, *region.units(message.start, message.end))
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


def _pairs(packed: bytes) -> Iterator[tuple[int, int]]:
    """The ranges ``(start, end)`` of a message."""
    numbers = array("q", packed)
    return zip(numbers[::2], numbers[1::2], strict=True)


def _within(pairs: Iterable[tuple[int, int]], top: int) -> list[tuple[int, int]]:
    """What of ranges lies in ``[0, top)``."""
    return [(max(0, start), min(end, top)) for start, end in pairs if max(0, start) < min(end, top)]


def _populate_ranges(request: Request, message: wire.PopulateRanges, fds: list[int]) -> None:
    region, vma = _attached(request, message.region)
    client = request.client
    machine, mm = client.pager.machine, client.mm
    assert mm is not None
    ranges = _within(_pairs(message.ranges), min(region.map_length, vma.end - vma.start))

    def work(task: PagerTask) -> Waits[wire.Reply]:
        timer = _with_deadline(request, region, task)
        try:
            for number, (start, end) in enumerate(ranges):
                yield from _no_windows(request, region, *region.units(start, end))
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


def _no_windows(request: Request, region: Region, first: int, last: int) -> Waits[None]:
    """Give back what the file itself is mapped over: these pages are meant to be ours."""
    vma = region.vma
    windows = request.client.windows.get(vma) if vma is not None else None
    if windows is not None:
        yield from windows.give_back(first, last)


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


def _prefetch(request: Request, message: wire.Prefetch, fds: list[int]) -> None:
    region, vma = _attached(request, message.region)
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


def _prefetch_ranges(request: Request, message: wire.PrefetchRanges, fds: list[int]) -> None:
    region, _ = _attached(request, message.region)
    at = region.map_offset
    found = _within(
        sorted(_pairs(message.ranges)), min(region.map_length, region.mapping.size - at)
    )
    ranges = [(at + start, at + end, 1) for start, end in found]
    value = request.client.pager.working_sets.prefetch(region.mapping, ranges)
    request.answer(wire.Done(value))


def _prefetched(request: Request, message: wire.Prefetched, fds: list[int]) -> None:
    region, _ = _attached(request, message.region)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        yield from request.client.pager.working_sets.wait(region.mapping, task)
        return wire.Done()

    request.run("prefetched", work)


def _working_set(request: Request, message: wire.WorkingSet, fds: list[int]) -> None:
    region = _region(request, message.region)
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


def _evict(request: Request, message: wire.Evict, fds: list[int]) -> None:
    region = _region(request, message.region)
    pager, mapping = request.client.pager, region.mapping

    def work(task: PagerTask) -> Waits[wire.Reply]:
        before = mapping.resident
        yield from _no_windows(request, region, *region.units(message.start, message.end))
        first, last = region.units(message.start, message.end)
        units = sorted(index for index in mapping.working_set if first <= index < last)
        with mapping.holding():
            for at in range(0, len(units), 64):
                failed = yield from evict_units(
                    pager.machine, mapping, units[at : at + 64], task, ghost=False
                )
                if failed is not None:
                    raise StoreError(
                        f"evict: {mapping.name}: {_cause(mapping, failed)}; the pages are kept"
                    )
        return wire.Done(max(0, before - mapping.resident))

    request.run("evict", work)


def _flush(request: Request, message: wire.Flush, fds: list[int]) -> None:
    region = _region(request, message.region)
    first, last = region.units(message.start, message.end)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        yield from request.client.pager.flush(region, first, last, task)
        return wire.Done()

    request.run("flush", work)


def _snapshot(request: Request, message: wire.Snapshot, fds: list[int]) -> None:
    snapshots = request.client.pager.snapshots
    mappings = [_region(request, number).mapping for number in message.regions]
    request.region = None

    def work(task: PagerTask) -> Waits[wire.Reply]:
        snapshot = yield from snapshots.take(mappings, task)
        request.end = functools.partial(snapshots.release, snapshot)
        return wire.Done({"number": snapshot.number, "pause": snapshot.pause})

    request.run("snapshot", work)


def _mark(request: Request, message: wire.Mark, fds: list[int]) -> None:
    snapshots = request.client.pager.snapshots
    mapping = _region(request, message.region).mapping
    number = message.snapshot
    snapshot = None if number is None else snapshot_of(snapshots, number, mapping)

    def work(task: PagerTask) -> Waits[wire.Reply]:
        mark = yield from snapshots.mark(mapping, snapshot, task)
        request.end = functools.partial(snapshots.unmark, mark)
        return wire.Done(mark.number)

    request.run("mark", work)


def _changed(request: Request, message: wire.Changed, fds: list[int]) -> None:
    snapshots = request.client.pager.snapshots
    region = _region(request, message.region)
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


def _read_snapshot(request: Request, message: wire.ReadSnapshot, fds: list[int]) -> None:
    pager, region = request.client.pager, _region(request, message.region)
    snapshots, mapping = pager.snapshots, region.mapping
    at = region.map_offset
    ranges = [(at + start, at + end) for start, end in _pairs(message.ranges)]
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
        timer = _with_deadline(request, region, task)
        try:
            yield from copy_ranges(pager, store, ranges, target, task)
        finally:
            store.close()
            if timer is not None:
                timer.cancel()
        return wire.Done()

    request.run("read snapshot", work)


def _statistics(request: Request, message: wire.Statistics, fds: list[int]) -> None:
    pager = request.client.pager
    if message.region is not None:
        mappings = [_region(request, message.region).mapping]
        budget = mappings[0].budget
    else:
        mappings = list(pager.mappings())
        budget = pager.budget
    values: dict[str, int | float] = {}
    for mapping in mappings:
        counters = mapping.counters
        for name in counters.__slots__:
            value = getattr(counters, name)
            if name == "max_attempts":
                values[name] = max(values.get(name, 0), value)
            else:
                values[name] = values.get(name, 0) + value
        values["dirty"] = values.get("dirty", 0) + mapping.dirty * mapping.page_size
        values["pinned"] = values.get("pinned", 0) + len(mapping.pins) * mapping.page_size
        values["page_size"] = mapping.page_size
        values["windows"] = values.get("windows", 0) + sum(
            len(one.windows) for one in mapping.windows
        )
        values["window_bytes"] = values.get("window_bytes", 0) + mapping.window_bytes
    values["resident"] = budget.usage
    values["peak_resident"] = budget.peak
    values["budget"] = budget.limit if budget.limit is not None else -1
    values["regions"] = len(pager.regions)
    values["copies"] = pager.machine.copies.usage
    values["duplicate_messages"] = sum(client.duplicates for client in pager.clients)
    bursts = pager.placement.bursts()
    values["bursts"], values["bursts_ended"] = bursts.served, bursts.ended
    for name, number in pager.swap.statistics().items():
        values[f"swap_{name}"] = number
    request.answer(wire.Done(values))


def _configure(request: Request, message: wire.Configure, fds: list[int]) -> None:
    pager = request.client.pager
    pager.budget.set_limit(message.resident)
    pager.trim(pager.budget)
    request.answer(wire.Done())


def _handled(request: Request, message: wire.Handled, fds: list[int]) -> None:
    request.client.handled()
    request.answer(wire.Done())


def _shutdown(request: Request, message: wire.Shutdown, fds: list[int]) -> None:
    client = request.client

    def work(task: PagerTask) -> Waits[wire.Reply]:
        for region in list(client.regions.values()):
            mapping = region.mapping
            if mapping.private or not mapping.writable:
                continue
            stuck = StoreError(
                f"{mapping.name}: takes no changes; the pager goes on without the program, for a"
                " while, and says on stderr what became of them"
            )
            patience = Patience(
                client.pager.loop, mapping, region.deadline, functools.partial(request.fail, stuck)
            )
            try:
                failed = yield from sync_units(
                    client.pager.machine, mapping, 0, mapping.pages, task
                )
            finally:
                patience.cancel()
            if failed is not None:
                raise StoreError(f"{mapping.name}: {_cause(mapping, failed)}")
        for region in list(client.regions.values()):
            yield from client.pager.working_sets.save(region.mapping, task)
        return wire.Done()

    request.run("shutdown", work)


_HANDLERS: dict[type, Callable[[Request, Any, list[int]], None]] = {
    wire.Hello: _hello,
    wire.Map: _map,
    wire.Attach: _attach,
    wire.Share: _share,
    wire.ExpectChild: _expect_child,
    wire.Agent: _agent,
    wire.Detach: _detach,
    wire.Populate: _populate,
    wire.PopulateRanges: _populate_ranges,
    wire.Pin: _populate,
    wire.Prefetch: _prefetch,
    wire.PrefetchRanges: _prefetch_ranges,
    wire.Prefetched: _prefetched,
    wire.Evict: _evict,
    wire.Flush: _flush,
    wire.Snapshot: _snapshot,
    wire.Mark: _mark,
    wire.Changed: _changed,
    wire.ReadSnapshot: _read_snapshot,
    wire.Statistics: _statistics,
    wire.WorkingSet: _working_set,
    wire.Configure: _configure,
    wire.Handled: _handled,
    wire.Shutdown: _shutdown,
}

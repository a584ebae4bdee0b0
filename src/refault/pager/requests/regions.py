"""Regions come and go; and the clients that have them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from refault.errors import StoreError, UsageError
from refault.fault.reclaim import sync_units
from refault.machine.linux import LinuxMapping
from refault.memory.vma import Vma
from refault.memory.wait import Signal, Waits
from refault.stores.base import Store
from refault.stores.file import FileStore
from refault.stores.fill import FillStore
from refault.stores.swapspace import SwapSpace
from refault.wire import messages as wire

from ..snapshots import SnapshotStore, snapshot_of
from ..tasks import PagerTask
from ..windows import AgentSocket, no_windows
from .request import Request, region_of

if TYPE_CHECKING:
    from refault.stores.objects import ObjectStore

    from ..service import Pager, Region

__all__ = ["agent", "attach", "detach", "expect_child", "hello", "map_source", "share"]


def hello(request: Request, message: wire.Hello, fds: list[int]) -> None:
    uffd, wakeup, lifeline = fds
    request.client.hello(message, uffd, wakeup, lifeline)
    request.answer(wire.Done())


class _Asked(NamedTuple):
    """What is to be mapped.

    Attributes
    ----------
    offset, length
        Bytes of the store.
    page_size
        None: whatever fits.
    swap
        Where evicted pages go, if not to ours.
    key
        Of a file: those who open it share a mapping.
    """

    store: Store
    name: str
    offset: int
    length: int
    page_size: int | None
    swap: SwapSpace | None = None
    key: tuple[int, int] | None = None

    def close(self) -> None:
        """It is not mapped after all."""
        store_close(self.store)
        if self.swap is not None:
            store_close(self.swap)


def map_source(request: Request, message: wire.Map, fds: list[int]) -> None:
    pager, client = request.client.pager, request.client
    if message.offset < 0:
        raise UsageError(f"offset={message.offset} is negative")

    def work(task: PagerTask) -> Waits[wire.Reply]:
        asked = yield from _asked(request, message, fds, task)
        size = asked.store.size
        if asked.length <= 0 or asked.offset + asked.length > size:
            asked.close()
            raise UsageError(
                f"{asked.name} has {size} bytes; {asked.length} from {asked.offset} on are"
                " not in it"
            )
        mapping = pager.shared.get(asked.key) if asked.key is not None else None
        if mapping is None:
            mapping = _new_mapping(request, message, asked)
        else:
            yield from _use_shared(request, message, asked, mapping, fds[0], task)
        region = pager.add_region(
            mapping, asked.offset, asked.length, message.deadline, message.resident
        )
        client.regions[region.number] = region
        if message.working_set is not None:
            region.prefetch = yield from pager.working_sets.load(mapping, message.working_set, task)
        request.answer(_mapped(region), [mapping.memfd])
        return wire.Done()

    request.run("map", work)


def _asked(request: Request, message: wire.Map, fds: list[int], task: PagerTask) -> Waits[_Asked]:
    """Open what is to be mapped."""
    pager, source = request.client.pager, message.source
    page_size = message.page_size
    store: Store
    swap: SwapSpace | None = None
    key: tuple[int, int] | None = None
    if isinstance(source, wire.SnapshotSource):
        snapshots, other = pager.snapshots, region_of(request, source.region)
        snapshot = snapshot_of(snapshots, source.snapshot, other.mapping)
        instant = SnapshotStore(snapshots, snapshot, other.mapping)
        at = other.map_offset + other.data_offset
        length, page_size = other.data_length, other.mapping.page_size
        return _Asked(instant, instant.name, at, length, page_size)
    if isinstance(source, wire.FileSource):
        store = file = yield from _open_file(request, message, source, fds[0], task)
        name, key = file.name, None if message.private else file.key
    elif isinstance(source, wire.FillSource):
        store, name = FillStore(source.size, source.pattern), "anonymous"
        if message.swap is not None:
            swap = yield from _open_swap(pager, message.swap, task)
    else:
        store = loaded = yield from _open_object(request, source, task)
        name = loaded.name
        if message.writable and not message.private and not loaded.writable:
            store_close(loaded)
            raise UsageError(
                f"{name} has no write_from, so it cannot be opened for writing; "
                f'open it with mode "r", or "c" for private changes'
            )
    length = store.size - message.offset if message.length is None else message.length
    return _Asked(store, name, message.offset, length, page_size, swap, key)


def _open_file(
    request: Request, message: wire.Map, source: wire.FileSource, fd: int, task: PagerTask
) -> Waits[FileStore]:
    pager = request.client.pager
    try:
        store = FileStore(fd, source.path, source.size, source.writable)
    except BaseException:
        os.close(fd)
        raise
    if message.private and (mapping := pager.shared.get(store.key)) is not None:
        yield from sync_units(pager.machine, mapping, 0, mapping.pages, task)
    return store


def _new_mapping(request: Request, message: wire.Map, asked: _Asked) -> LinuxMapping:
    try:
        return request.client.pager.make_mapping(
            asked.store,
            name=asked.name,
            size=asked.store.size,
            private=message.private,
            writable=message.writable and not message.private,
            page_size=asked.page_size,
            limit=message.resident,
            readahead=message.readahead,
            swap=asked.swap,
            key=asked.key,
        )
    except BaseException:
        asked.close()
        raise


def _use_shared(
    request: Request,
    message: wire.Map,
    asked: _Asked,
    mapping: LinuxMapping,
    fd: int,
    task: PagerTask,
) -> Waits[None]:
    """A file that is open already is opened once more."""
    pager, store = request.client.pager, asked.store
    assert isinstance(store, FileStore) and isinstance(mapping.store, FileStore)
    try:
        if asked.page_size is not None:
            yield from _give_page_size(request, mapping, asked.page_size, task)
        pager.usable(message.resident, mapping.page_size)
        if store.writable and not mapping.writable:
            # What is changed from now on is in memory before it is in the file.
            yield from no_windows(mapping)
            if mapping not in pager.references:
                raise StoreError(f"{asked.name}: was closed meanwhile; open it again")
            mapping.use_file_windows(False)
            mapping.writable = True
            mapping.store.adopt(os.dup(fd), True)
    finally:
        store_close(store)
    if store.size > mapping.size:
        yield from pager.grow(mapping, store.size, task)


def _open_object(
    request: Request, source: wire.ObjectSource, task: PagerTask
) -> Waits[ObjectStore]:
    from refault.stores.objects import ObjectStore, load_object

    client = request.client
    loaded: ObjectStore = yield from client.pager.in_own_thread(
        lambda: ObjectStore(load_object(source.pickled, client.sys_path)), task
    )
    return loaded


def _open_swap(pager: Pager, url: str, task: PagerTask) -> Waits[SwapSpace]:
    from refault.stores.redis.swap import RedisSwap

    swap: SwapSpace = yield from pager.in_own_thread(lambda: RedisSwap(url), task)
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


def attach(request: Request, message: wire.Attach, fds: list[int]) -> None:
    region = region_of(request, message.region)
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


def agent(request: Request, message: wire.Agent, fds: list[int]) -> None:
    client = request.client
    client.agent = AgentSocket(client.pager.loop, client.pager.socketpair_end(fds[0]))
    request.answer(wire.Done())


def share(request: Request, message: wire.Share, fds: list[int]) -> None:
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


def expect_child(request: Request, message: wire.ExpectChild, fds: list[int]) -> None:
    from ..client import Client

    pager, parent = request.client.pager, request.client
    child = Client(pager, pager.socketpair_end(fds[0]))
    # From now on: the parent may be gone before the child has said a word.
    for number, region in parent.regions.items():
        child.inherited[number] = shared = pager.share_region(region)
        child.regions[shared.number] = shared
    request.answer(wire.Done())


def detach(request: Request, message: wire.Detach, fds: list[int]) -> None:
    region = region_of(request, message.region)
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

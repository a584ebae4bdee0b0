"""What clients ask for, beside page faults; one function for each message."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refault.errors import Error
from refault.wire import messages as wire

from . import instants, pages, process, regions
from .request import Request

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["Request", "handle"]

_HANDLERS: dict[type, Callable[[Request, Any, list[int]], None]] = {
    wire.Hello: regions.hello,
    wire.Map: regions.map_source,
    wire.Attach: regions.attach,
    wire.Share: regions.share,
    wire.ExpectChild: regions.expect_child,
    wire.Agent: regions.agent,
    wire.Detach: regions.detach,
    wire.Populate: pages.populate,
    wire.PopulateRanges: pages.populate_ranges,
    wire.Pin: pages.populate,
    wire.Prefetch: pages.prefetch,
    wire.PrefetchRanges: pages.prefetch_ranges,
    wire.Prefetched: pages.prefetched,
    wire.WorkingSet: pages.working_set,
    wire.Evict: pages.evict,
    wire.Flush: pages.flush,
    wire.Snapshot: instants.snapshot,
    wire.Mark: instants.mark,
    wire.Changed: instants.changed,
    wire.ReadSnapshot: instants.read_snapshot,
    wire.Statistics: process.statistics,
    wire.Configure: process.configure,
    wire.Handled: process.handled,
    wire.Shutdown: process.shutdown,
}


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

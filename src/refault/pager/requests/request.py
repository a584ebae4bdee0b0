"""A request, its answer, and what all requests ask of a region."""

from __future__ import annotations

import select
import socket
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from refault.errors import Error, StoreError, UsageError
from refault.memory.mapping import Mapping
from refault.memory.vma import Vma
from refault.memory.wait import Signal, Waits
from refault.wire import messages as wire

from ..tasks import PagerTask

if TYPE_CHECKING:
    from ..client import Client
    from ..service import Region

__all__ = [
    "Request",
    "attached_region",
    "cause_of",
    "deadline_timer",
    "pairs",
    "region_of",
    "within",
]


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


def region_of(request: Request, number: int) -> Region:
    region = request.client.regions.get(number)
    if region is None:
        raise UsageError(f"region {number} is closed; open it again")
    request.region = region
    return region


def attached_region(request: Request, number: int) -> tuple[Region, Vma]:
    region = region_of(request, number)
    if region.vma is None:
        raise UsageError(f"region {number} is not attached")
    return region, region.vma


def deadline_timer(request: Request, region: Region, task: PagerTask) -> Any:
    if region.deadline is None:
        return None
    return request.client.pager.loop.call_later(
        region.deadline, lambda: task.send_signal(Signal.DEADLINE)
    )


def pairs(packed: bytes) -> Iterator[tuple[int, int]]:
    """The ranges ``(start, end)`` of a message."""
    numbers = array("q", packed)
    return zip(numbers[::2], numbers[1::2], strict=True)


def within(pairs: Iterable[tuple[int, int]], top: int) -> list[tuple[int, int]]:
    """What of ranges lies in ``[0, top)``."""
    return [(max(0, start), min(end, top)) for start, end in pairs if max(0, start) < min(end, top)]


def cause_of(mapping: Mapping, error: BaseException) -> str:
    """What an error says, without the name of the store, which is said already."""
    return str(error).removeprefix(f"{mapping.name}: ")

"""Decoded blocks, so that neighbouring pages do not decode the same one again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

__all__ = ["BlockCache"]


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Block = TypeVar("Block", bound=Sized)


class BlockCache(Generic[Block]):
    """The blocks that were used last, up to so many bytes; for many threads.

    What one thread is decoding, others wait for: nothing is decoded twice at the same time.  Who
    needs several blocks begins with those that nobody else is decoding, so that several threads
    which need the same ones share the work.

    Parameters
    ----------
    limit
        The most bytes that are kept.  What is being decoded comes on top.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Block] = OrderedDict()
        self._used: dict[Hashable, int] = {}
        self._flights: dict[Hashable, Future[Block]] = {}

    def get_all(self, wanted: Iterable[tuple[Hashable, Callable[[], Block]]]) -> list[Block]:
        """Return blocks, in this order; decode those that nobody has and nobody is about to.

        Each is wanted by its key, and with what decodes it.
        """
        found = [self.get_unless_others_do(key, decode) for key, decode in wanted]
        return [block.result() if isinstance(block, Future) else block for block in found]

    def get_unless_others_do(
        self, key: Hashable, decode: Callable[[], Block]
    ) -> Block | Future[Block]:
        """Return a block, or what to wait for if somebody else is decoding it."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            flight = self._flights[key] = Future()
        try:
            block = decode()
        except BaseException as error:
            self._land(key, flight, None)
            flight.set_exception(error)
            raise
        self._land(key, flight, block)
        flight.set_result(block)
        return block

    def use_up(self, key: Hashable, nbytes: int) -> None:
        """So many bytes of a block will not be wanted again: it is forgotten when all are."""
        with self._lock:
            block = self._kept.get(key)
            if block is None:
                return
            self._used[key] = self._used.get(key, 0) + nbytes
            if self._used[key] >= block.nbytes:
                self._forget(key)

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Forget blocks that have changed; what is being decoded now is not kept either."""
        with self._lock:
            for key in keys:
                self._flights.pop(key, None)
                if key in self._kept:
                    self._forget(key)

    def _land(self, key: Hashable, flight: Future[Block], block: Block | None) -> None:
        """A flight is over; keep its block, unless it was dropped meanwhile."""
        with self._lock:
            if self._flights.get(key) is not flight:
                return
            del self._flights[key]
            if block is None or block.nbytes > self.limit:
                return
            self._kept[key] = block
            self.nbytes += block.nbytes
            while self.nbytes > self.limit:
                self._forget(next(iter(self._kept)))

    def _forget(self, key: Hashable) -> None:
        self.nbytes -= self._kept.pop(key).nbytes
        self._used.pop(key, None)

"""The loop: file descriptors, timers, finished jobs, tasks."""

from __future__ import annotations

import heapq
import select
import sys
import time
import traceback
from collections.abc import Callable

from refault.machine.server import Server

from .placement import placement
from .tasks import Scheduler
from .workers import Workers

__all__ = ["Loop", "Timer"]

STEPS = 16
MOST = 512
"""Faults that are served natively in one turn."""


class Timer:
    """Something to be called later, unless it is cancelled."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call it."""
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """One epoll loop.  Demand first: descriptors are looked at between any few task steps."""

    def __init__(self) -> None:
        self.epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self.placement = placement(self.epoll.fileno())
        self.server = Server.make(self.epoll.fileno(), self.placement.address)
        self.readers: dict[int, Callable[[int], None]] = {}
        self.timers: list[Timer] = []
        self.scheduler = Scheduler()
        self.workers = Workers()
        self.before_poll: list[Callable[[], None]] = []
        self.stopped = False
        self.add(self.workers.fd, lambda _: self.workers.finish())

    def add(self, fd: int, call: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call `call` with the events whenever `fd` has some."""
        self.readers[fd] = call
        self.epoll.register(fd, events)

    def remove(self, fd: int) -> None:
        """Watch `fd` no longer; before it is closed."""
        if self.readers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call `call` once, in so many seconds."""
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self.timers, timer)
        return timer

    def run(self) -> None:
        """Run until `stopped`.  No defect in a callback ends it."""
        readers, scheduler = self.readers, self.scheduler
        while not self.stopped:
            for call in self.before_poll:
                call()
            for fd, events in self._poll(self._timeout()):
                reader = readers.get(fd)
                if reader is None:
                    continue
                try:
                    reader(events)
                except Exception:
                    traceback.print_exc(file=sys.stderr)
            if self.timers:
                self._run_timers()
            if scheduler.ready:
                scheduler.run_ready(STEPS)

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        if self.server is None:
            return self.epoll.poll(timeout, 64)
        return self.server.poll(timeout, STEPS if self.scheduler.ready else MOST)

    def _timeout(self) -> float:
        if self.scheduler.ready:
            return 0
        while self.timers and self.timers[0].call is None:
            heapq.heappop(self.timers)
        if not self.timers:
            return -1
        return max(0.0, self.timers[0].when - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self.timers and (self.timers[0].call is None or self.timers[0].when <= now):
            call = heapq.heappop(self.timers).call
            if call is not None:
                try:
                    call()
                except Exception:
                    traceback.print_exc(file=sys.stderr)

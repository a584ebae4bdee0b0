"""Threads for what may take long: stores, compression, user code.

Every mapping has its own lane, so that a slow store never delays another one's
reads.  Threads are started when a lane has more work than threads, up to the
lane's width, and end when they have been idle for a while: 2,000 open regions cost
no thread.

In a lane, what somebody waits for goes first (`Urgency`), and some threads are left to it: all
the rest together never has the whole lane.  A read that was begun ahead and is waited for now
moves up (`Lane.hurry`).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from refault.machine.urgency import Urgency

__all__ = ["Job", "Lane", "Workers"]

IDLE_SECONDS = 2.0

LEFT_TO_DEMAND = 8
"""One thread in so many of a lane, and one at least, does only what is waited for."""

Done: TypeAlias = Callable[[Any, BaseException | None], None]


class Job:
    """Something to do in a thread, and who is told in the loop when it is done."""

    __slots__ = ("done", "error", "result", "taken", "urgency", "work")

    def __init__(
        self, work: Callable[[], Any], done: Done, urgency: Urgency = Urgency.DEMAND
    ) -> None:
        self.work = work
        self.done = done
        self.urgency = urgency
        self.taken = False
        self.result: Any = None
        self.error: BaseException | None = None


class Lane:
    """The queues of one mapping and the threads that serve them."""

    def __init__(self, workers: Workers, width: int) -> None:
        self.workers = workers
        self.width = width
        self.others_most = max(1, width - max(1, width // LEFT_TO_DEMAND))
        self.lock = threading.Lock()
        self.wakeup = threading.Condition(self.lock)
        self.queues: tuple[deque[Job], ...] = tuple(deque() for _ in Urgency)
        # Of what is not demand: how many wait, and how many run.
        self.others_waiting = 0
        self.others = 0
        self.threads = 0
        self.idle = 0
        self.closed = False

    def close(self) -> None:
        """No more work will come: let the threads end, each when it has nothing left to do."""
        with self.lock:
            self.closed = True
            self.wakeup.notify_all()

    def submit(self, work: Callable[[], Any], done: Done, urgency: Urgency = Urgency.DEMAND) -> Job:
        """Run `work` in a thread; then ``done(result, error)`` in the loop."""
        job = Job(work, done, urgency)
        with self.lock:
            self.queues[urgency].append(job)
            if urgency:
                self.others_waiting += 1
                if self.others + self.others_waiting > self.others_most:
                    return job
            self._find_thread()
        return job

    def hurry(self, job: Job) -> None:
        """Somebody waits for `job` now."""
        with self.lock:
            if job.taken or not job.urgency:
                return
            # It stays in the other queue as well, and is passed over there.
            job.urgency = Urgency.DEMAND
            self.others_waiting -= 1
            self.queues[Urgency.DEMAND].append(job)
            self._find_thread()

    def _find_thread(self) -> None:
        """One more job may be begun: let a thread do so, if there is one for it."""
        room = self.others_most - self.others
        ready = len(self.queues[Urgency.DEMAND]) + min(self.others_waiting, room)
        # Idle threads that have been woken already are still counted, and so are their jobs.
        if ready <= self.idle:
            self.wakeup.notify()
        elif self.threads < self.width:
            self.threads += 1
            threading.Thread(target=self._serve, name="refault-worker", daemon=True).start()

    def _take(self) -> Job | None:
        """The next job that may be begun."""
        for urgency in Urgency:
            if urgency and self.others == self.others_most:
                return None
            queue = self.queues[urgency]
            while queue:
                job = queue.popleft()
                if job.urgency is not urgency:
                    continue
                job.taken = True
                if urgency:
                    self.others_waiting -= 1
                    self.others += 1
                return job
        return None

    def _serve(self) -> None:
        os.sched_setaffinity(0, self.workers.cpus)
        job: Job | None = None
        while True:
            with self.lock:
                if job is not None and job.urgency:
                    self.others -= 1
                job = self._take()
                while job is None:
                    self.idle += 1
                    woken = not self.closed and self.wakeup.wait(IDLE_SECONDS)
                    self.idle -= 1
                    job = self._take()
                    if job is None and (self.closed or not woken):
                        self.threads -= 1
                        return
            try:
                job.result = job.work()
            except BaseException as error:
                job.error = error
            self.workers.post(job)


class Workers:
    """Makes lanes, and brings finished jobs back to the loop.

    Attributes
    ----------
    fd
        Readable when jobs have finished; then call `finish`.
    """

    def __init__(self) -> None:
        self.cpus = os.sched_getaffinity(0)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.finished: deque[Job] = deque()
        self.running = 0

    def lane(self, width: int) -> Lane:
        """Make a lane of at most `width` threads."""
        return Lane(self, width)

    def post(self, job: Job) -> None:
        """Called in a thread: the job has ended."""
        self.finished.append(job)
        os.eventfd_write(self.fd, 1)

    def call(self, call: Callable[[], None]) -> None:
        """Called in a thread: have the loop call `call`."""
        self.post(Job(_nothing, lambda _, __: call()))

    def finish(self) -> None:
        """Called in the loop: tell whoever waits for the jobs that have ended."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        while self.finished:
            job = self.finished.popleft()
            job.done(job.result, job.error)


def _nothing() -> None:
    """The work of a job that is only for the loop."""

"""Threads for what may take long: stores, compression, user code.

Every mapping has its own lane, so that a slow store never delays another one's
reads.  Threads are started when a lane has more work than threads, up to the
lane's width, and end when they have been idle for a while: 2,000 open regions cost
no thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Job", "Lane", "Workers"]

IDLE_SECONDS = 2.0

Done: TypeAlias = Callable[[Any, BaseException | None], None]


class Job:
    """Something to do in a thread, and who is told in the loop when it is done."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any], done: Done) -> None:
        self.work = work
        self.done = done
        self.result: Any = None
        self.error: BaseException | None = None


class Lane:
    """The queue of one mapping and the threads that serve it."""

    def __init__(self, workers: Workers, width: int) -> None:
        self.workers = workers
        self.width = width
        self.lock = threading.Lock()
        self.wakeup = threading.Condition(self.lock)
        self.jobs: deque[Job] = deque()
        self.threads = 0
        self.idle = 0
        self.closed = False

    def close(self) -> None:
        """No more work will come: let the threads end, each when it has nothing left to do."""
        with self.lock:
            self.closed = True
            self.wakeup.notify_all()

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """Run `work` in a thread; then ``done(result, error)`` in the loop."""
        job = Job(work, done)
        with self.lock:
            self.jobs.append(job)
            # Idle threads that have been woken already are still counted, and so are their jobs.
            if len(self.jobs) <= self.idle:
                self.wakeup.notify()
                return
            if self.threads >= self.width:
                return
            self.threads += 1
        threading.Thread(target=self._serve, name="refault-worker", daemon=True).start()

    def _serve(self) -> None:
        os.sched_setaffinity(0, self.workers.cpus)
        while True:
            with self.lock:
                while not self.jobs:
                    self.idle += 1
                    woken = not self.closed and self.wakeup.wait(IDLE_SECONDS)
                    self.idle -= 1
                    if (self.closed or not woken) and not self.jobs:
                        self.threads -= 1
                        return
                job = self.jobs.popleft()
            try:
                job.result = job.work()
            except BaseException as error:
                job.error = error
            self.workers.post(job)
            del job


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

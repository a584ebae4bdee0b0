"""Runs the generators of the fault path, one at a time.

A task runs until its generator yields a `Wait`; then it stands in that wait's
queue until the queue is woken or a signal arrives that the wait listens to.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from refault.memory.wait import Signal, Task, Wait

__all__ = ["PagerTask", "Scheduler"]


class PagerTask(Task):
    """A task of the pager: a generator, and what to do when it returns."""

    __slots__ = ("done", "generator", "on_wait", "scheduler", "waiting")

    def __init__(
        self, scheduler: Scheduler, name: str, on_wait: Callable[[PagerTask], None] | None = None
    ) -> None:
        super().__init__(name)
        self.scheduler = scheduler
        self.generator: Generator[Wait, None, Any] | None = None
        self.done: Callable[[Any], None] | None = None
        self.waiting: Wait | None = None
        self.on_wait = on_wait

    def wake(self) -> None:
        """The queue was woken: run at the next turn."""
        self.waiting = None
        self.scheduler.ready.append(self)

    def send_signal(self, signal: Signal) -> None:
        """Make a signal pending; if the task sleeps in a wait that listens, it runs."""
        super().send_signal(signal)
        wait = self.waiting
        if wait is not None and wait.queue is not None and self.interrupted(wait.state):
            wait.queue.tasks.remove(self)
            self.wake()


class Scheduler:
    """All tasks of the pager.

    Attributes
    ----------
    ready
        Tasks that can run, in order.
    alive
        Tasks that have not returned yet.
    """

    def __init__(self) -> None:
        self.ready: deque[PagerTask] = deque()
        self.alive: set[PagerTask] = set()

    def spawn(
        self,
        task: PagerTask,
        generator: Generator[Wait, None, Any],
        done: Callable[[Any], None] | None = None,
    ) -> None:
        """Run a generator at once up to its first wait; `done` gets what it returns."""
        task.generator = generator
        task.done = done
        self.run(task)

    def run_ready(self, steps: int) -> bool:
        """Give up to `steps` tasks a turn; whether some are still ready."""
        ready = self.ready
        for _ in range(min(steps, len(ready))):
            self.run(ready.popleft())
        return bool(ready)

    def run(self, task: PagerTask) -> None:
        """Run a task up to its next wait."""
        generator = task.generator
        assert generator is not None
        while True:
            try:
                wait = generator.send(None)
            except StopIteration as stop:
                self.alive.discard(task)
                task.generator = None
                if task.done is not None:
                    task.done(stop.value)
                return
            except Exception as error:
                # A defect of ours.  The page is not there, so the access must not succeed:
                # its thread stays where it is, and everybody is told.
                traceback.print_exception(error, file=sys.stderr)
                print(f"refault: pager: task {task.name} failed", file=sys.stderr, flush=True)
                self.alive.discard(task)
                task.generator = None
                if task.done is not None:
                    task.done(error)
                return
            if wait.queue is None:
                self.alive.add(task)
                self.ready.append(task)
                return
            if task.interrupted(wait.state):
                continue
            wait.queue.tasks.append(task)
            task.waiting = wait
            self.alive.add(task)
            if task.on_wait is not None:
                task.on_wait(task)
            return

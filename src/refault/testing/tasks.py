"""Tasks and locks that notice when a rule of the protocol is broken, at the moment it is.

The fault path does not know them: a task is told by the lock of a vma when it takes and
gives it up, and by the `World` when it sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from refault.machine.simulated import Violation
from refault.memory.rwsem import RwSemaphore, _Ticket
from refault.memory.wait import Signal, Task, TaskState, Wait, Waits

if TYPE_CHECKING:
    from .world import World

__all__ = ["SimulatedTask", "WatchedLock"]


class SimulatedTask(Task):
    """A task of the simulated pager.

    Parameters
    ----------
    world
        Where it runs.
    name
        For schedules.
    listens
        Which signals must keep it from trying again.

    Attributes
    ----------
    held
        The vma lock that it holds for reading.
    tries
        How often it has taken one.
    rested
        It has slept, or gone on to another page, since it last took one: it has a reason to
        try again.
    """

    __slots__ = (
        "done",
        "generator",
        "held",
        "listens",
        "rested",
        "tries",
        "waiting",
        "world",
    )

    def __init__(
        self,
        world: World,
        name: str,
        *,
        listens: TaskState = TaskState.UNINTERRUPTIBLE,
    ) -> None:
        super().__init__(name)
        self.world = world
        self.generator: Generator[Wait, None, Any] | None = None
        self.done: Callable[[Any], None] | None = None
        self.waiting: Wait | None = None
        self.held: WatchedLock | None = None
        self.listens = listens
        self.tries = 0
        self.rested = True

    def wake(self) -> None:
        self.waiting = None
        self.world.ready.append(self)

    def send_signal(self, signal: Signal) -> None:
        super().send_signal(signal)
        wait = self.waiting
        if wait is not None and wait.queue is not None and self.interrupted(wait.state):
            wait.queue.tasks.remove(self)
            self.wake()

    def took(self, lock: WatchedLock, *, asked: bool) -> None:
        """It holds a lock for reading now: a try begins.

        Parameters
        ----------
        asked
            It asked for the lock just now, and did not wait for it.
        """
        if self.held is not None:
            raise Violation(f"V1: {self.name} takes the lock and holds it already")
        self.held = lock
        self.tries += 1
        if not self.rested:
            raise Violation(f"V4, V10: {self.name} tries again, and waited for nothing in between")
        self.rested = False
        if asked and self.tries > 1 and self.interrupted(self.listens):
            raise Violation(f"V5: {self.name} tries again although a signal is pending")


class WatchedLock(RwSemaphore):
    """The lock of a vma, that knows who holds it."""

    __slots__ = ("world",)

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def down_read_trylock(self) -> bool:
        if not super().down_read_trylock():
            return False
        if self.waiters and any(ticket.write for ticket in self.waiters):
            raise Violation("V7: a reader overtakes a writer that waits")
        self.world.running().took(self, asked=True)
        return True

    def up_read(self) -> None:
        task = self.world.running()
        if task.held is not self:
            raise Violation(f"V1: {task.name} gives up a lock that it does not hold")
        task.held = None
        super().up_read()

    def _wait(self, ticket: _Ticket, task: Task, state: TaskState) -> Waits[bool]:
        ahead = [other for other in self.waiters if other.write]
        granted = yield from super()._wait(ticket, task, state)
        if granted and not ticket.write:
            if any(other in self.waiters for other in ahead):
                raise Violation("V7: a reader overtakes a writer that came before it")
            self.world.running().took(self, asked=False)
        return granted

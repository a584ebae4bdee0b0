"""Tasks, what they wait for, and the signals that end a wait.

A fault handler is a generator.  It runs until it must wait and then yields a
`Wait`.  Whoever drives it (the pager's loop, the explorer of the simulated
machine) puts the task on the wait queue, and sends ``None`` into the generator
once the queue was woken or a signal that the wait listens to is pending.  The
handler then looks for itself which of the two it was: a wake is a hint, never a
promise, as in the kernel.

Between two yields nothing else of the pager runs.  So a handler that finds a
condition false and yields the wait for it cannot miss the wake in between.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import Any, Final, TypeAlias, TypeVar

__all__ = [
    "RESCHEDULE",
    "Signal",
    "Task",
    "TaskState",
    "Wait",
    "WaitQueue",
    "WaitReason",
    "Waits",
]


class TaskState(enum.IntEnum):
    """What may end a wait, beside the wake it waits for.

    Source: ``TASK_UNINTERRUPTIBLE``, ``TASK_KILLABLE`` and
    ``TASK_INTERRUPTIBLE`` of the kernel's include/linux/sched.h.
    """

    UNINTERRUPTIBLE = 0
    KILLABLE = 1
    INTERRUPTIBLE = 2


class Signal(enum.IntEnum):
    """Why a task should stop before its next retry; the larger, the more final."""

    INTERRUPT = 1
    """The client caught a signal whose handler will raise (Ctrl-C)."""
    CANCEL = 2
    """The caller of an explicit request hung up."""
    DEADLINE = 3
    """The store has not answered in the time the region allows."""
    CLOSING = 8
    """The region is being unmapped.  Fatal."""
    KILL = 9
    """The client process is gone.  Fatal."""


class WaitReason(enum.StrEnum):
    """What a task waits for; statistics and ``refault explain`` use these words."""

    PAGE_LOCK = "page_lock"
    READ = "read"
    MEMORY = "memory"
    STORE_ERROR = "store_error"
    ADDRESS_SPACE = "address_space"
    WRITEBACK = "writeback"
    WRITE_PROTECT = "write_protect"
    RESCHEDULE = "reschedule"


class WaitQueue:
    """Tasks that wait for one condition, in the order they came."""

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def wake_all(self) -> None:
        """Let every waiting task look at its condition again."""
        if self.tasks:
            tasks, self.tasks = self.tasks, []
            for task in tasks:
                task.wake()


class Wait:
    """One wait: on which queue, what may end it, and why.

    Parameters
    ----------
    queue
        Woken when the condition may have changed.
    state
        Which signals end the wait early.
    reason
        What is waited for.
    """

    __slots__ = ("queue", "reason", "state")

    def __init__(self, queue: WaitQueue | None, state: TaskState, reason: WaitReason) -> None:
        self.queue = queue
        self.state = state
        self.reason = reason

    def __repr__(self) -> str:
        return f"<Wait {self.reason.value} {self.state.name}>"


RESCHEDULE: Final = Wait(None, TaskState.UNINTERRUPTIBLE, WaitReason.RESCHEDULE)
"""Yielded by long work to let others run; the task goes on at its next turn."""

T = TypeVar("T")
Waits: TypeAlias = Generator[Wait, None, T]
"""A generator that waits now and then and returns a `T`."""


class Task:
    """Who a fault is handled for: a thread of a client, or a caller of `pin`.

    Attributes
    ----------
    name
        For messages.
    signal
        The most final signal that is pending, or None.
    """

    __slots__ = ("name", "signal")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.signal: Signal | None = None

    def signal_pending(self) -> bool:
        """Whether any signal is pending."""
        return self.signal is not None

    def fatal_signal_pending(self) -> bool:
        """Whether a signal is pending that nothing can outlive."""
        return self.signal is not None and self.signal >= Signal.CLOSING

    def interrupted(self, state: TaskState) -> bool:
        """Whether a signal is pending that ends a wait of `state`."""
        if self.signal is None or state == TaskState.UNINTERRUPTIBLE:
            return False
        return state == TaskState.INTERRUPTIBLE or self.signal >= Signal.CLOSING

    def send_signal(self, signal: Signal) -> None:
        """Make `signal` pending, unless a more final one already is."""
        if self.signal is None or self.signal < signal:
            self.signal = signal

    def wake(self) -> None:
        """Called by a `WaitQueue`; drivers override it to make the task run."""

    def __repr__(self) -> str:
        signal: Any = self.signal.name if self.signal is not None else None
        return f"<{type(self).__name__} {self.name} signal={signal}>"

"""The lock that a fault holds while it looks at a vma.

The kernel's mail speaks of `mmap_sem`, one reader/writer lock for the whole
address space.  Since 6.4 the kernel takes a lock of the single vma instead
where it can (`FAULT_FLAG_VMA_LOCK`), because faults that sleep with the lock held
(every try but the first may) delay whoever wants to write, and behind the
writer everybody else.  We need the same for the same reason: a fault that
waits for a slow store must delay nobody in another region.  So every `Vma`
carries its own lock, faults take it for reading, and unmap, resize and
snapshot take it for writing.

It is fair: a reader that comes after a waiting writer waits behind it.  That
is what makes the politeness of the first try worth having, and what lets
writers in at all (V7).
"""

from __future__ import annotations

from collections import deque

from .wait import Task, TaskState, Wait, WaitQueue, WaitReason, Waits

__all__ = ["RwSemaphore"]


class _Ticket:
    __slots__ = ("granted", "queue", "write")

    def __init__(self, write: bool) -> None:
        self.write = write
        self.granted = False
        self.queue = WaitQueue()


class RwSemaphore:
    """A fair reader/writer lock for tasks.  Source: the kernel's rw_semaphore."""

    __slots__ = ("readers", "waiters", "writer")

    def __init__(self) -> None:
        self.readers = 0
        self.writer = False
        self.waiters: deque[_Ticket] = deque()

    def down_read_trylock(self) -> bool:
        """Take the lock for reading if nobody holds or awaits it for writing."""
        if self.writer or self.waiters:
            return False
        self.readers += 1
        return True

    def down_read(self, task: Task, state: TaskState) -> Waits[bool]:
        """Take the lock for reading; False if a signal ended the wait."""
        if self.down_read_trylock():
            return True
        return (yield from self._wait(_Ticket(write=False), task, state))

    def up_read(self) -> None:
        """Give up a lock held for reading."""
        if self.readers <= 0:
            raise AssertionError("up_read of a lock that nobody reads")
        self.readers -= 1
        self._grant()

    def down_write_trylock(self) -> bool:
        """Take the lock for writing if nobody holds or awaits it."""
        if self.writer or self.readers or self.waiters:
            return False
        self.writer = True
        return True

    def down_write(self, task: Task, state: TaskState) -> Waits[bool]:
        """Take the lock for writing; False if a signal ended the wait."""
        if self.down_write_trylock():
            return True
        return (yield from self._wait(_Ticket(write=True), task, state))

    def up_write(self) -> None:
        """Give up a lock held for writing."""
        if not self.writer:
            raise AssertionError("up_write of a lock that nobody writes")
        self.writer = False
        self._grant()

    def _wait(self, ticket: _Ticket, task: Task, state: TaskState) -> Waits[bool]:
        self.waiters.append(ticket)
        while not ticket.granted:
            if task.interrupted(state):
                self.waiters.remove(ticket)
                self._grant()
                return False
            yield Wait(ticket.queue, state, WaitReason.ADDRESS_SPACE)
        return True

    def _grant(self) -> None:
        while self.waiters and not self.writer:
            ticket = self.waiters[0]
            if ticket.write:
                if self.readers:
                    return
                self.writer = True
            else:
                self.readers += 1
            self.waiters.popleft()
            ticket.granted = True
            ticket.queue.wake_all()

"""Copying parts of a snapshot to memory that a client has asked us to fill.

A save needs every byte of what changed once.  Through page faults each would be copied three times:
to the memory of the snapshot's array, into it, and out of it; and that memory would have to be
freed again.  Here it is copied once.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refault.errors import StoreError, UsageError
from refault.memory.wait import RESCHEDULE, Task, TaskState, Wait, WaitQueue, WaitReason, Waits

from .snapshots import SnapshotStore

if TYPE_CHECKING:
    from .service import Pager

__all__ = ["copy_ranges", "shared_memory"]

TURN = 256 << 10
"""Bytes that are copied before faults are looked at again."""
PIECE = 256 << 10
"""Bytes that a thread reads at a time."""
WIDTH = 8
"""Threads that read for one request."""


def shared_memory(fd: int, at: int, length: int) -> memoryview:
    """Map a part of a memfd for writing.

    Raises
    ------
    UsageError
        It is too short, or could become so: to write behind its end would kill the pager.
    """
    sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    if not sealed or at < 0 or os.fstat(fd).st_size < at + length:
        raise UsageError(f"there is no memory for {length} bytes from {at} on that cannot shrink")
    low = at % mmap.PAGESIZE
    mapped = mmap.mmap(
        fd,
        low + max(length, 1),
        mmap.MAP_SHARED | mmap.MAP_POPULATE,
        mmap.PROT_WRITE | mmap.PROT_READ,
        offset=at - low,
    )
    return memoryview(mapped)[low : low + length]


def copy_ranges(
    pager: Pager,
    store: SnapshotStore,
    ranges: Sequence[tuple[int, int]],
    target: memoryview,
    task: Task,
) -> Waits[None]:
    """Copy ranges of a store to `target`, one behind the other.

    What is in memory is copied in the loop, a turn at a time.  What is not is read by threads,
    side by side.

    Raises
    ------
    StoreError
        Something could not be read, or a signal came first.
    """
    away: list[tuple[int, memoryview]] = []
    at = turn = 0
    for start, end in ranges:
        while start < end:
            part = target[at : at + min(end - start, TURN - turn)]
            done = store.read_start(start, part)
            if done < len(part):
                # To the end of that unit.
                missing = min(len(part) - done, store.unit_end(start + done) - start - done)
                away.append((start + done, part[done : done + missing]))
                done += missing
            start, at, turn = start + done, at + done, turn + done
            if turn >= TURN:
                turn = 0
                yield RESCHEDULE
                if task.signal_pending():
                    raise StoreError(f"{store.name}: not read: it was cancelled")
    if away:
        yield from _read_away(pager, store, away, task)


def _read_away(
    pager: Pager, store: SnapshotStore, parts: list[tuple[int, memoryview]], task: Task
) -> Waits[None]:
    queue = WaitQueue()
    waiting = 0
    errors: list[BaseException] = []

    def work(some: list[tuple[int, memoryview]]) -> None:
        for offset, part in some:
            if not errors:
                store.read_into(offset, part)

    def done(_: Any, error: BaseException | None) -> None:
        nonlocal waiting
        waiting -= 1
        if error is not None:
            errors.append(error)
        queue.wake_all()

    # Threads of its own: what a save reads is not to delay the program's faults.
    lane = pager.loop.workers.lane(WIDTH)
    try:
        for some in _pieces(parts):
            waiting += 1
            lane.submit(lambda some=some: work(some), done)  # type: ignore[misc]
        while waiting and not errors:
            yield Wait(queue, TaskState.INTERRUPTIBLE, WaitReason.READ)
            if task.signal_pending():
                errors.append(StoreError(f"{store.name}: interrupted while its store was busy"))
    finally:
        lane.close()
    if errors:
        raise errors[0]


def _pieces(parts: list[tuple[int, memoryview]]) -> list[list[tuple[int, memoryview]]]:
    """Parts that a thread reads one after the other."""
    pieces: list[list[tuple[int, memoryview]]] = []
    length = PIECE
    for part in parts:
        if length >= PIECE:
            pieces.append([])
            length = 0
        pieces[-1].append(part)
        length += len(part[1])
    return pieces

"""The copies that snapshots need: in memory up to a bound, and then in a temporary file.

A copy is made in the loop, while a writer waits for it, so it goes to memory.  Threads move the
oldest ones on to a swap of their own once half of the bound is used.  If they are too slow, there
is no room for a moment, and writers wait.

Native code, which makes most of them, is lent memory for the next ones (`Slots`).  It counts as
used, and is taken back with the last copy.

If the disk is full there will be no room, and the program must not stand still for a snapshot: its
writers may hold the GIL, and then nobody could even close it.  So a copy is not made then, and the
snapshot has lost the page: who reads it there gets an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from refault.errors import StoreError
from refault.memory.mapping import Mapping
from refault.memory.protection import Image
from refault.memory.wait import WaitQueue
from refault.stores.swap import Swap
from refault.stores.swapspace import Key, load_part

from .slots import MOST, Slots

__all__ = ["Copies"]

MEMORY_BYTES = 24 << 20
SWAP_BYTES = 8 << 20
"""Of what threads have compressed, so much stays in memory."""
LENT_BYTES = 3 << 20
LENT_ONCE_BYTES = 1 << 20
LENT_FIRST = 4
"""Slots of each size at first, and twice as many every time they are used up."""
MOVES = 2
AT_ONCE_BYTES = 1 << 20
PAUSE_SECONDS = 1.0


class Threads(Protocol):
    """What copies need of the process they are in."""

    def run_in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run `work` in a thread, then `done` in the loop."""

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        """Call `call` in the loop after so many seconds."""


class Copies:
    """Where the content of an `Image` is.

    Parameters
    ----------
    services
        Threads and timers.
    tell
        How to say that they cannot be moved.
    limit
        Bytes of copies in memory.

    Attributes
    ----------
    usage
        Bytes of copies in memory now.
    lent
        Bytes of memory for copies that native code has.
    slots
        Where it has them.
    freed
        Woken when there is room again.
    """

    def __init__(
        self, services: Threads, tell: Callable[[str], None], limit: int = MEMORY_BYTES
    ) -> None:
        self.services = services
        self.tell = tell
        self.limit = limit
        self.usage = 0
        self.lent = 0
        self.slots = Slots()
        self.freed = WaitQueue()
        self.swap = Swap(SWAP_BYTES)
        self._oldest: dict[Image, None] = {}
        self._moving = 0
        self._error: BaseException | None = None
        self._made = 0
        self._lend_next: dict[int, int] = {}

    def copy(self, memfd: int, mapping: Mapping, index: int) -> Image | WaitQueue:
        """Copy a unit of a mapping that is in its memfd; or when to try again.

        Of a disk that is full, the copy is an error.
        """
        start, end = mapping.index_bytes(index)
        length = end - start
        if self.usage and not self._room(length):
            return self.freed if self._error is None else Image(self._error)
        content = bytearray(length)
        if os.preadv(memfd, [content], start) != length:
            raise AssertionError(f"unit {index} of {mapping.name} is uptodate but not there")
        image = self._keep(content)
        self._move()
        return image

    def native_copies(self) -> Iterator[tuple[int, int, Image]]:
        """What native code has copied since the last time: mapping's number, unit, copy."""
        for number, index, content in self.slots.copies():
            self.lent -= len(content)
            yield number, index, self._keep(content)
        self._move()

    def lend(self, rows: int) -> None:
        """Lend memory to native code, which has none left in these rows of slots (a bit each).

        Not before there is a copy: with the last one it is taken back.
        """
        if not self.usage:
            return
        for row in range(rows.bit_length()):
            if rows >> row & 1:
                self.slots.fill(row, list(self._lend(row)))

    def _lend(self, row: int) -> Iterator[bytearray]:
        """More at a time from once to once: fresh memory is slow, and a writer waits for it."""
        length = self.slots.size(row)
        most = min(self._lend_next.get(row, LENT_FIRST), MOST)
        self._lend_next[row] = 2 * most
        for _ in range(max(1, min(most, LENT_ONCE_BYTES // length))):
            if self._error is not None or self.lent + length > LENT_BYTES or not self._room(length):
                break
            self.lent += length
            yield bytearray(length)

    def _room(self, length: int) -> bool:
        return self.usage + self.lent + length <= self.limit

    def _keep(self, content: bytearray) -> Image:
        self.usage += len(content)
        image = Image(content)
        self._oldest[image] = None
        return image

    def load_nowait(self, image: Image, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from a copy, if that needs no waiting."""
        content = image.content
        if not isinstance(content, bytearray):
            return False
        buffer[:] = content[offset : offset + len(buffer)]
        return True

    def load(self, image: Image, length: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a copy of `length` bytes; in any thread.

        Raises
        ------
        StoreError
            It could not be kept, or cannot be read from the disk any more.
        """
        if isinstance(image.content, BaseException):
            raise StoreError(
                f"a snapshot has lost what was changed since: {image.content}; make room on the"
                " disk (TMPDIR says which), and take another one",
                permanent=True,
            )
        if self.load_nowait(image, offset, buffer):
            return
        load_part(self.swap, image.content, length, offset, buffer)

    def free(self, image: Image) -> None:
        """Nobody needs a copy any more."""
        content, image.content = image.content, None
        self._oldest.pop(image, None)
        if isinstance(content, bytearray):
            self._forget(len(content))
        elif isinstance(content, tuple):
            self.swap.discard(content)

    def _forget(self, length: int) -> None:
        self.usage -= length
        if not self.usage:
            self.lent -= self.slots.empty()
            self._lend_next.clear()
        self.freed.wake_all()

    def _move(self) -> None:
        """Move copies out of memory while there are too many of them."""
        while self.usage > self.limit // 2 and self._moving < MOVES and self._error is None:
            some: list[tuple[Image, bytearray, Key]] = []
            size = 0
            while self._oldest and size < AT_ONCE_BYTES:
                image = next(iter(self._oldest))
                del self._oldest[image]
                self._made += 1
                some.append((image, image.content, (0, self._made)))
                size += len(image.content)
            if not some:
                return
            self._moving += 1
            self._start(some)

    def _start(self, some: list[tuple[Image, bytearray, Key]]) -> None:
        def work() -> None:
            for _, content, key in some:
                self.swap.store(key, memoryview(content))

        def done(_: None, error: BaseException | None) -> None:
            self._moving -= 1
            for image, content, key in some:
                if error is not None or image.content is not content:
                    self.swap.discard(key)
                else:
                    image.content = key
                    self._forget(len(content))
            if error is not None:
                kept = [image for image, content, _ in some if image.content is content]
                self._oldest = dict.fromkeys([*kept, *self._oldest])
                self._pause(error)
            self._move()

        self.services.run_in_thread(work, done)

    def _pause(self, error: BaseException) -> None:
        if self._error is not None:
            return
        self._error = error
        told = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        self.tell(
            f"what a snapshot needs cannot be put on the disk: {told}; once {self.limit >> 20} MiB"
            " of memory are used up, the snapshot will be incomplete"
        )
        self.freed.wake_all()

        def over() -> None:
            self._error = None
            self._move()

        self.services.call_later(PAUSE_SECONDS, over)

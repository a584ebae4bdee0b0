"""Copies before a write: how much memory they take, and what native code is lent of it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from refault.machine.copies import LENT_BYTES, Copies
from refault.machine.slots import MOST, SIZES, RoomRecord, SlotRecord
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping
from refault.memory.protection import Image, Images, Protection
from refault.memory.wait import WaitQueue

MIB = 1 << 20
ROW = 4
UNIT = 64 << 10


class Threads:
    """Nothing is done until the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []
        self.later: list[Callable[[], None]] = []

    def run_in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        self.work.append((work, done))

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.later.append(call)

    def finish(self, error: BaseException | None = None) -> None:
        while self.work:
            work, done = self.work.pop(0)
            if error is None:
                work()
            done(None, error)


class Native:
    """Takes slots as ``serve.c`` does."""

    def __init__(self, copies: Copies) -> None:
        self.rooms = (RoomRecord * SIZES).from_address(copies.slots.address)
        self.copies = copies

    def copy(self, index: int, content: bytes) -> bool:
        room = self.rooms[ROW]
        if room.taken == room.count:
            return False
        slot = (SlotRecord * MOST).from_address(room.slots)[room.taken]
        ctypes.memmove(slot.bytes, content, len(content))
        slot.number, slot.index = 7, index
        room.taken += 1
        return True

    def fill_all(self) -> Iterator[Image]:
        """Copy as long as there is room."""
        index = 0
        while True:
            self.copies.lend(1 << ROW)
            if not self.copy(index, bytes([index & 255]) * UNIT):
                return
            index += 1
            while self.copy(index, bytes([index & 255]) * UNIT):
                index += 1
            assert self.copies.usage + self.copies.lent <= self.copies.limit
            assert self.copies.lent <= LENT_BYTES
            for number, _, image in self.copies.native_copies():
                assert number == 7
                yield image


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def copies(threads: Threads, told: list[str]) -> Copies:
    return Copies(threads, told.append, limit=8 * MIB)


@pytest.fixture
def first(copies: Copies) -> Image:
    """A copy that was made by Python."""
    found = copy(copies, 4096)
    assert isinstance(found, Image)
    return found


def copy(copies: Copies, size: int) -> Image | WaitQueue:
    mapping = Mapping(7, "x", size, size, Budget(None), private=True, writable=True)
    memfd = os.memfd_create("units")
    os.ftruncate(memfd, size)
    found = copies.copy(memfd, mapping, 0)
    os.close(memfd)
    return found


@pytest.mark.usefixtures("first")
def test_copies_of_native_code_are_copies(copies: Copies) -> None:
    native = Native(copies)
    assert not native.copy(3, b"")
    copies.lend(1 << ROW)
    assert native.copy(3, b"\3" * UNIT) and native.copy(4, b"\4" * UNIT)
    found = {index: image for _, index, image in copies.native_copies()}
    assert list(found) == [3, 4]
    assert copies.usage == 2 * UNIT + 4096
    assert not list(copies.native_copies()), "each of them once"
    buffer = bytearray(100)
    copies.load(found[4], UNIT, 50, memoryview(buffer))
    assert buffer == b"\4" * 100
    assert native.copy(5, b"\5" * UNIT)
    (fifth,) = (image for _, _, image in copies.native_copies())
    copies.load(fifth, UNIT, 0, memoryview(buffer))
    copies.load(found[4], UNIT, 0, memoryview(buffer))
    assert buffer == b"\4" * 100, "no slot is used twice"


def test_the_last_copy_takes_back_what_was_lent(copies: Copies) -> None:
    native = Native(copies)
    copies.lend(1 << ROW | 1)
    assert not copies.lent, "nobody would take it back"
    first = copy(copies, 4096)
    assert isinstance(first, Image)
    copies.lend(1 << ROW | 1)
    assert native.copy(3, bytes(UNIT))
    ((_, _, image),) = copies.native_copies()
    assert copies.lent
    copies.free(image)
    assert copies.lent
    copies.free(first)
    assert (copies.usage, copies.lent) == (0, 0)
    assert not native.copy(4, bytes(UNIT))
    assert not list(copies.native_copies())


def test_what_is_lent_counts(copies: Copies, threads: Threads, first: Image) -> None:
    """Copies never take more than the limit, and go on once threads have made room."""
    native = Native(copies)
    images = list(native.fill_all())
    assert len(images) * UNIT > copies.limit - LENT_BYTES
    assert threads.work
    assert copy(copies, MIB) is copies.freed
    threads.finish()
    image = copy(copies, MIB)
    assert isinstance(image, Image)
    images += native.fill_all()
    buffer = bytearray(UNIT)
    copies.load(images[5], UNIT, 0, memoryview(buffer))
    assert buffer == bytes([5]) * UNIT
    threads.finish()
    for one in [first, *images, image]:
        copies.free(one)
    assert (copies.usage, copies.lent) == (0, 0)


@pytest.mark.usefixtures("first")
def test_nothing_is_lent_while_the_disk_is_full(
    copies: Copies, threads: Threads, told: list[str]
) -> None:
    """Python must be asked: it says that the snapshot has lost a page."""
    native = Native(copies)
    list(native.fill_all())
    threads.finish(OSError("full"))
    assert "incomplete" in told[0]
    while native.copy(0, bytes(UNIT)):
        pass
    list(copies.native_copies())
    copies.lend(1 << ROW)
    assert not native.copy(0, bytes(UNIT))
    threads.later.pop()()
    threads.finish()
    copies.lend(1 << ROW)
    assert native.copy(0, bytes(UNIT))


def test_the_table_is_what_the_newest_snapshot_has() -> None:
    protection = Protection()

    def agrees() -> bool:
        copied = protection.copied
        return copied is None or all(bool(copied[i]) != protection.holds(i) for i in range(8))

    def begin() -> Images:
        images = Images(1)
        protection.begin(images)
        assert protection.copied is None
        return images

    old = begin()
    protection.save(1, Image(None))
    protection.make_table(bytearray, 8)
    assert protection.copied == b"\0\1\0\0\0\0\0\0"
    protection.save(2, Image(None))
    assert protection.copied and agrees()
    new = begin()
    protection.make_table(bytearray, 8)
    protection.save(3, Image(None))
    assert protection.copied == b"\0\0\0\1\0\0\0\0"
    protection.end(new)
    assert protection.copied is None, "another one is the newest"
    protection.make_table(bytearray, 8)
    assert protection.copied == b"\0\1\1\1\0\0\0\0" and agrees()
    begin()
    protection.make_table(bytearray, 8)
    protection.end(old)
    assert protection.copied == bytes(8) and agrees()

"""Stores on a local file for the tests of stores, right and wrong ones.

In a module of their own, because the pager must be able to import them.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["BROKEN", "OnFile", "Versioned"]


class OnFile:
    """Right, and as simple as can be.

    Parameters
    ----------
    path
        Of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.size = os.path.getsize(path)

    @property
    def name(self) -> str:
        return self.path

    def read_into(self, offset: int, buffer: memoryview) -> None:
        data = self.data(offset, len(buffer))
        if len(data) != len(buffer):
            raise OSError(f"there are {len(data)} bytes at {offset}")
        buffer[:] = data

    def write_from(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise OSError(f"{self.path} ends at {self.size}")
        self.put(offset, buffer)

    def flush(self) -> None:
        pass

    def data(self, offset: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)


class Versioned(OnFile):
    """One of several files that go by the same name; counts how often it is asked."""

    name = "versioned"

    def __init__(self, path: str | Path, version: object) -> None:
        super().__init__(path)
        self.version = version
        self.asked = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.asked += 1
        super().read_into(offset, buffer)


class WrongSize(OnFile):
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.size += 1


class NoName(OnFile):
    name = "two\nlines"


class FillsHalf(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        half = (len(buffer) + 1) // 2
        super().read_into(offset, buffer[:half])


class ZerosBehindTheEnd(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data(offset, len(buffer)).ljust(len(buffer), b"\0")


class ShortAtTheEnd(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        data = self.data(offset, len(buffer))
        buffer[: len(data)] = data


class WholePagesOnly(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset // 4096 * 4096, buffer)


class LosesTheLastByte(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        if offset + len(buffer) == self.size:
            buffer[-1] = 0


class WrongAtABoundary(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        if offset < 65536 < offset + len(buffer):
            buffer[65536 - offset] = 0


class ReadsOnce(OnFile):
    """A stream: what was read is gone."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.seen: set[int] = set()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        if offset in self.seen:
            buffer[:] = b"\1" * len(buffer)
        self.seen.add(offset)


class CachesTheBuffer(OnFile):
    """Takes the buffer of the last read for a cache of its own."""

    last: tuple[int, int] | None = None
    cached: memoryview

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self.last == (offset, len(buffer)):
            buffer[:] = self.cached
            return
        super().read_into(offset, buffer)
        self.last, self.cached = (offset, len(buffer)), memoryview(buffer)


class OneCursor(OnFile):
    """Seeks and reads as if it were alone."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.at = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.at = offset
        time.sleep(0)
        super().read_into(self.at, buffer)


class ClaimsNowait(OnFile):
    def read_nowait(self, offset: int, buffer: memoryview) -> bool:
        return True


class NowaitBehindTheEnd(OnFile):
    def read_nowait(self, offset: int, buffer: memoryview) -> bool:
        data = self.data(offset, len(buffer))
        buffer[: len(data)] = data
        return True


class NowaitSaysLength(OnFile):
    def read_nowait(self, offset: int, buffer: memoryview) -> int:
        self.read_into(offset, buffer)
        return len(buffer)


class Elsewhere(OnFile):
    """Says that its bytes are had from a file of zeros."""

    def where(self, page_size: int) -> Any:
        from refault.stores.base import Bytes

        return Bytes(constant=bytes(page_size))


class HoldsALock(OnFile):
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()


class HoldsALockOnceUsed(OnFile):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.lock = threading.Lock()
        super().read_into(offset, buffer)


class ForgetsWhereItIs(OnFile):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "path": os.devnull}


OPENED: set[str] = set()


class OnlyWhereItWasMade(OnFile):
    """Needs something of the process that made it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        OPENED.add(self.path)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        if self.path not in OPENED:
            buffer[:] = b"\1" * len(buffer)


class NoWrites(OnFile):
    writable = False


class LosesWrites(OnFile):
    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        pass


class WritesWholePages(OnFile):
    """Fills up the rest of the page with zeros."""

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        end = min(-(-(offset + len(data)) // 4096) * 4096, self.size)
        super().put(offset, bytes(data).ljust(end - offset, b"\0"))


class FirstWriteWins(OnFile):
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.done: set[int] = set()

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if offset not in self.done:
            super().put(offset, data)
        self.done.add(offset)


class Grows(OnFile):
    def write_from(self, offset: int, buffer: memoryview) -> None:
        self.put(offset, buffer)


class CutsWrites(OnFile):
    """Takes what fits, and says nothing of the rest."""

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self.put(offset, buffer[: max(0, self.size - offset)])


class LosesUpdates(OnFile):
    """Reads a block, changes it and writes it, and has no lock."""

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        start = offset // 65536 * 65536
        end = min(-(-(offset + len(data)) // 65536) * 65536, self.size)
        block = bytearray(self.data(start, end - start))
        time.sleep(0)
        block[offset - start : offset - start + len(data)] = data
        super().put(start, block)


class BlanksWhileWriting(OnFile):
    """Empties a block before it writes it anew."""

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        start = offset // 65536 * 65536
        end = min(-(-(offset + len(data)) // 65536) * 65536, self.size)
        block = bytearray(self.data(start, end - start))
        block[offset - start : offset - start + len(data)] = data
        super().put(start, bytes(end - start))
        time.sleep(0)
        super().put(start, block)


class KeepsChanges(OnFile):
    """Never writes them to the file."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.changes: list[tuple[int, bytes]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "changes": []}

    def data(self, offset: int, length: int) -> bytes:
        found = bytearray(super().data(offset, length))
        for start, data in self.changes:
            first, last = max(start, offset), min(start + len(data), offset + length)
            if first < last:
                found[first - offset : last - offset] = data[first - start : last - start]
        return bytes(found)

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.changes.append((offset, bytes(data)))


class FlushNeedsChanges(OnFile):
    def flush(self) -> None:
        raise OSError("there is nothing to flush")


BROKEN: list[tuple[type[OnFile], str]] = [
    (WrongSize, "test_size_is_the_number_of_bytes"),
    (NoName, "test_name_is_one_line"),
    (NoWrites, "test_writes_are_tested_if_there_are_any"),
    (FillsHalf, "test_reads_everything_at_once"),
    (FillsHalf, "test_reads_page_after_page"),
    (WholePagesOnly, "test_reads_any_part"),
    (WrongAtABoundary, "test_reads_around_boundaries"),
    (LosesTheLastByte, "test_reads_the_end"),
    (ReadsOnce, "test_reads_the_same_again"),
    (CachesTheBuffer, "test_lets_go_of_the_buffer"),
    (ZerosBehindTheEnd, "test_raises_behind_the_end"),
    (ShortAtTheEnd, "test_raises_behind_the_end"),
    (OneCursor, "test_reads_in_many_threads"),
    (ClaimsNowait, "test_read_nowait_is_all_or_nothing"),
    (NowaitBehindTheEnd, "test_read_nowait_is_all_or_nothing"),
    (NowaitSaysLength, "test_read_nowait_is_all_or_nothing"),
    (Elsewhere, "test_bytes_had_without_asking_are_the_same"),
    (HoldsALock, "test_travels_to_the_pager"),
    (ForgetsWhereItIs, "test_travels_to_the_pager"),
    (HoldsALockOnceUsed, "test_travels_after_it_was_used"),
    (OnlyWhereItWasMade, "test_paged_array_is_right"),
    (LosesUpdates, "test_writes_in_many_threads"),
    (LosesWrites, "test_reads_what_was_written"),
    (LosesWrites, "test_writes_everything_at_once"),
    (WritesWholePages, "test_writes_touch_nothing_else"),
    (FirstWriteWins, "test_later_writes_win"),
    (Grows, "test_never_writes_behind_the_end"),
    (CutsWrites, "test_never_writes_behind_the_end"),
    (BlanksWhileWriting, "test_reads_while_others_write"),
    (KeepsChanges, "test_flushed_is_what_others_read"),
    (FlushNeedsChanges, "test_flushes_when_nothing_was_written"),
    (KeepsChanges, "test_paged_changes_are_kept"),
    (WritesWholePages, "test_any_order_of_calls"),
]
"""Stores that are wrong in one way each, and a test of the suite that must say so."""

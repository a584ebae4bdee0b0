"""Free memory for copies before a write, for native code to take.

For each size of a page unit there is a row of slots.  Native code takes the next one, puts a copy
into it, and writes down beside it of what; the server's loop takes them over before anything else
runs.  A row that has come to its end is filled again.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator
from ctypes import Structure, c_int64, c_void_p

__all__ = ["SIZES", "RoomRecord", "SlotRecord", "Slots"]

SMALLEST_SHIFT = 12
SIZES = 10
"""Page units are from 4 KiB to 2 MiB, powers of two."""
MOST = 256
"""Slots in a row."""


class SlotRecord(Structure):
    """One slot: where it is, and of which unit of which mapping it has got a copy."""

    _fields_ = (("bytes", c_void_p), ("number", c_int64), ("index", c_int64))


class RoomRecord(Structure):
    """A row of slots of one size; those before `taken` have copies."""

    _fields_ = (("slots", c_void_p), ("count", c_int64), ("taken", c_int64))


class Slots:
    """All rows.

    Attributes
    ----------
    address
        Of the rows, for native code.
    """

    def __init__(self) -> None:
        self._rooms = (RoomRecord * SIZES)()
        self._records = [(SlotRecord * MOST)() for _ in range(SIZES)]
        self._buffers: list[deque[bytearray]] = [deque() for _ in range(SIZES)]
        self._entered = [0] * SIZES
        for room, records in zip(self._rooms, self._records, strict=True):
            room.slots = ctypes.addressof(records)
        self.address = ctypes.addressof(self._rooms)

    @staticmethod
    def size(row: int) -> int:
        """Bytes of a slot."""
        return 1 << SMALLEST_SHIFT + row

    def copies(self) -> Iterator[tuple[int, int, bytearray]]:
        """What has been copied since the last time: mapping's number, unit, content."""
        for row, room in enumerate(self._rooms):
            for at in range(self._entered[row], room.taken):
                record = self._records[row][at]
                yield record.number, record.index, self._buffers[row].popleft()
            self._entered[row] = room.taken

    def fill(self, row: int, buffers: list[bytearray]) -> None:
        """Fill a row whose slots have all been taken over; at most `MOST`."""
        room, records = self._rooms[row], self._records[row]
        if self._buffers[row]:
            raise AssertionError("slots that nobody has taken over are lost")
        for record, buffer in zip(records, buffers, strict=False):
            record.bytes = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._buffers[row].extend(buffers)
        self._entered[row] = room.taken = 0
        room.count = len(buffers)

    def empty(self) -> int:
        """Take all slots back, none of which has a copy; how many bytes they had."""
        found = 0
        for row, room in enumerate(self._rooms):
            found += (room.count - room.taken) * self.size(row)
            self._buffers[row].clear()
            self._entered[row] = room.count = room.taken = 0
        return found

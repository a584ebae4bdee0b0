"""The lists of units by native code, ``native/lists.c``: the same memory and the same steps."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable
from ctypes import Structure, c_int64, c_void_p
from typing import Final

from refault.memory.unitlists import FREE, LEVELS, UnitLists
from refault.native import library

__all__ = ["FEW", "NativeUnitLists", "unit_lists"]

FEW: Final = 8
"""For fewer units it costs less to do it in Python."""


class _Lists(Structure):
    _fields_ = (
        ("nodes", c_void_p),
        ("places", c_void_p),
        ("counts", c_void_p),
        ("newest", c_int64),
    )


class NativeUnitLists(UnitLists):
    """`UnitLists` of a mapping whose units all have a place in an array."""

    __slots__ = ("_found", "_native", "_pointer", "_record")

    def __init__(self, pages: int, *, dense: bool) -> None:
        self._native = None
        super().__init__(pages, dense=dense)
        self._found = array("q")
        self._record = _Lists()
        self._pointer = ctypes.addressof(self._record)
        self._native = library() if isinstance(self.places, array) else None
        self._moved()

    def _moved(self) -> None:
        """Arrays may be elsewhere in memory."""
        if self._native is not None and isinstance(self.places, array):
            self._record.nodes = self.nodes.buffer_info()[0]
            self._record.places = self.places.buffer_info()[0]
            self._record.counts = self.counts.buffer_info()[0]

    def grow(self, pages: int) -> None:
        super().grow(pages)
        if self.nodes.typecode != "I":
            self._native = None
        self._moved()

    def _make(self, count: int) -> None:
        super()._make(count)
        self._moved()

    def enter(self, indexes: Iterable[int]) -> list[int]:
        numbers = array("q", indexes)
        if self._native is None or len(numbers) < FEW:
            return super().enter(numbers)
        if self.counts[FREE] < len(numbers):
            self._make(len(numbers))
        had = array("q", [0] * LEVELS)
        self._record.newest = self.newest
        self._native.rf_lists_enter(
            self._pointer, numbers.buffer_info()[0], len(numbers), had.buffer_info()[0]
        )
        self.newest = self._record.newest
        return had.tolist()

    def leave(self, indexes: Iterable[int], *, ghost: bool) -> None:
        numbers = array("q", indexes)
        if self._native is None or len(numbers) < FEW:
            super().leave(numbers, ghost=ghost)
        else:
            self._native.rf_lists_leave(
                self._pointer, numbers.buffer_info()[0], len(numbers), ghost
            )

    def forget(self, count: int, high: int) -> int:
        if self._native is None or count < FEW:
            return super().forget(count, high)
        return int(self._native.rf_lists_forget(self._pointer, count, high))

    def hand_down(self, level: int, count: int) -> None:
        if self._native is None or count < FEW:
            super().hand_down(level, count)
        else:
            self._native.rf_lists_hand_down(self._pointer, level, count)

    def oldest(self, count: int) -> Iterable[int]:
        count = min(count, self.resident)
        if self._native is None or count < FEW:
            return super().oldest(count)
        found = array("q", bytes(8 * count))
        many = self._native.rf_lists_oldest(self._pointer, found.buffer_info()[0], count)
        return found[:many]


def unit_lists() -> type[UnitLists]:
    """The lists to use: native ones, if there is a library."""
    return UnitLists if library() is None else NativeUnitLists

"""The lists of units by native code, ``native/lists.c``: the same memory and the same steps."""

from __future__ import annotations

import ctypes
import sys
from array import array
from collections.abc import Iterable
from ctypes import Structure, c_int64, c_void_p
from typing import Final

from refault.memory.unitlists import FREE, LEVELS, NARROW, NODE, Places, UnitLists
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
        ("mask", c_int64),
    )


class _Hashed:
    """Places of which most are 0, in a hash table: 8 to 16 bytes a unit, where a dict has 150."""

    __slots__ = ("_native", "_pointer", "table")

    def __init__(self, native: ctypes.CDLL, pointer: int) -> None:
        self._native = native
        self._pointer = pointer
        self.table = array("I")

    def __getitem__(self, index: int, /) -> int:
        return int(self._native.rf_lists_find(self._pointer, index))

    def __setitem__(self, index: int, place: int, /) -> None:
        self._native.rf_lists_put(self._pointer, index, place)


class NativeUnitLists(UnitLists):
    """`UnitLists` whose steps are native code's.

    Attributes
    ----------
    few
        For fewer units a step is done in Python.
    native
        The library.
    pointer
        Address of what it knows of these lists.
    """

    __slots__ = ("_record", "few", "native", "pointer")

    def __init__(self, pages: int, *, dense: bool) -> None:
        native = library()
        assert native is not None
        self.native = native
        self.few = FEW
        self._record = _Lists()
        self.pointer = ctypes.addressof(self._record)
        super().__init__(pages, dense=dense)
        self._moved()

    def sparse(self) -> Places:
        return _Hashed(self.native, self.pointer)

    def _moved(self) -> None:
        """Arrays may be elsewhere in memory."""
        record, places = self._record, self.places
        record.nodes = self.nodes.buffer_info()[0]
        record.counts = self.counts.buffer_info()[0]
        if isinstance(places, array):
            record.places = places.buffer_info()[0]
        nodes = len(self.nodes) // NODE
        if isinstance(places, _Hashed) and len(places.table) < 2 * nodes:
            size = 1 << (2 * nodes).bit_length()
            places.table = array("I", [0]) * size
            record.places, record.mask = places.table.buffer_info()[0], size - 1
            self.native.rf_lists_find_places(self.pointer, nodes)

    def grow(self, pages: int) -> None:
        super().grow(pages)
        if pages > NARROW:
            self.few = sys.maxsize
            if isinstance(self.places, _Hashed):
                self.places = super().sparse()
                self.find_places()
        self._moved()

    def _make(self, count: int) -> None:
        super()._make(count)
        self._moved()

    def enter(self, indexes: Iterable[int]) -> list[int]:
        numbers = array("q", indexes)
        if len(numbers) < self.few:
            return super().enter(numbers)
        if self.counts[FREE] < len(numbers):
            self._make(len(numbers))
        had = array("q", [0] * LEVELS)
        self._record.newest = self.newest
        self.native.rf_lists_enter(
            self.pointer, numbers.buffer_info()[0], len(numbers), had.buffer_info()[0]
        )
        self.newest = self._record.newest
        return had.tolist()

    def leave(self, indexes: Iterable[int], *, ghost: bool) -> None:
        numbers = array("q", indexes)
        if len(numbers) < self.few:
            super().leave(numbers, ghost=ghost)
        else:
            self.native.rf_lists_leave(self.pointer, numbers.buffer_info()[0], len(numbers), ghost)

    def forget(self, count: int, high: int) -> int:
        if count < self.few:
            return super().forget(count, high)
        return int(self.native.rf_lists_forget(self.pointer, count, high))

    def hand_down(self, level: int, count: int) -> None:
        if count < self.few:
            super().hand_down(level, count)
        else:
            self.native.rf_lists_hand_down(self.pointer, level, count)

    def oldest(self, count: int) -> Iterable[int]:
        count = min(count, self.resident)
        if count < self.few:
            return super().oldest(count)
        found = array("q", bytes(8 * count))
        many = self.native.rf_lists_oldest(self.pointer, found.buffer_info()[0], count)
        return found[:many]


def unit_lists(pages: int, *, dense: bool) -> UnitLists:
    """The lists to use: native ones, if there is a library, and numbers of units fit."""
    if library() is None or pages > NARROW:
        return UnitLists(pages, dense=dense)
    return NativeUnitLists(pages, dense=dense)

"""From an index expression to the range of bytes it selects, without touching one.

An index that numpy would answer with a copy (a list of positions, a mask) reads
what it selects, and one that selects a single element reads that element.  So
only basic indexing is taken, and always with an Ellipsis, which makes numpy
answer with a view even then.
"""

from __future__ import annotations

import operator
from types import EllipsisType
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from refault.errors import UsageError

__all__ = ["Where", "byte_bounds", "select"]

Where: TypeAlias = (
    SupportsIndex
    | slice
    | EllipsisType
    | tuple[SupportsIndex | slice | EllipsisType, ...]
    | npt.NDArray[Any]
    | None
)
"""None: everything.  Otherwise an index as in numpy, or a view of the region's memory."""

FORMS = "give an integer, a slice, a tuple of them, or a view such as array[10:20]"


def select(array: npt.NDArray[Any], where: Where) -> npt.NDArray[Any]:
    """Return the part of `array` that `where` means, as a view.

    Raises
    ------
    UsageError
        `where` is not basic indexing.
    IndexError
        It does not fit the shape.
    """
    if where is None:
        return array
    if isinstance(where, np.ndarray):
        return where
    items = where if isinstance(where, tuple) else (where,)
    for item in items:
        if not _is_basic(item):
            raise UsageError(f"{item!r} does not select one range of the array; {FORMS}")
    if not any(item is Ellipsis for item in items):
        items = (*items, Ellipsis)
    view: npt.NDArray[Any] = array[items]
    return view


def byte_bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    """Return the first address of the elements of `array`, and the one after the last.

    Of an array without elements: its data pointer, twice.
    """
    low = high = array.__array_interface__["data"][0]
    if array.size == 0:
        return low, high
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def _is_basic(item: object) -> bool:
    if item is Ellipsis or isinstance(item, slice):
        return True
    if isinstance(item, bool | np.bool_ | np.ndarray):
        return False
    try:
        operator.index(item)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True

"""Parameters that all ways to make a region have."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from refault.errors import UsageError
from refault.sizes import Size, parse_size

__all__ = ["Options", "Shape", "check_dtype", "check_offset", "check_order", "check_shape"]

Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]

SMALLEST_PAGE = 4 << 10
LARGEST_PAGE = 2 << 20
SWAP_SCHEMES = ("redis://", "rediss://", "unix://")


class Options(NamedTuple):
    """How a region is paged, as the pager takes it."""

    resident: int | None
    page_size: int | None
    deadline: float | None
    readahead: bool
    swap: str | None = None
    working_set: str | None = None

    @classmethod
    def of(
        cls,
        *,
        resident: Size | None,
        page_size: Size | None,
        deadline: float | None = None,
        readahead: bool = True,
        swap: str | None = None,
    ) -> Options:
        """Check what the user gave.

        Raises
        ------
        UsageError
            A value makes no sense.
        """
        page = None if page_size is None else _page_size(page_size)
        return cls(
            _resident(resident, page), page, _deadline(deadline), bool(readahead), _swap(swap)
        )


def _page_size(value: Size) -> int:
    page = parse_size(value, name="page_size")
    if not SMALLEST_PAGE <= page <= LARGEST_PAGE or page & (page - 1):
        raise UsageError(f"page_size={value!r} is not a power of two from '4KiB' to '2MiB'")
    return page


def _resident(value: Size | None, page: int | None) -> int | None:
    if value is None:
        return None
    resident = parse_size(value, name="resident")
    least = page or SMALLEST_PAGE
    if resident < least:
        raise UsageError(
            f"resident={value!r} is less than one page of {least} bytes; give more, or a smaller"
            " page_size"
        )
    return resident


def _deadline(value: float | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool | str) or not seconds > 0:
        raise UsageError(f"deadline={value!r} is not a time; give seconds, or None for no limit")
    return None if math.isinf(seconds) else seconds


def _swap(value: str | None) -> str | None:
    if value is not None and not str(value).startswith(SWAP_SCHEMES):
        raise UsageError(
            f"swap={value!r} is no URL of a Redis or Valkey server; give redis://HOST:PORT/DB, or"
            " None for memory and disk of this machine"
        )
    return value


def check_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return `dtype` as numpy would use it for a new array.

    Raises
    ------
    UsageError
        It has Python objects, or no size.
    """
    # "S" and "U" get the length one in an array.
    found: np.dtype[Any] = np.empty(0, dtype).dtype
    if found.hasobject:
        raise UsageError(
            f"dtype={dtype!r} holds Python objects, which cannot live in such memory; use a"
            " plain dtype"
        )
    if not found.itemsize:
        raise UsageError(f"dtype={dtype!r} has no size; give its length, as in 'S8'")
    return found


def check_shape(shape: Shape) -> tuple[int, ...]:
    """Return `shape` as a tuple.

    Raises
    ------
    UsageError
        It is no shape.
    """
    try:
        try:
            # A tuple or list is meant as such, even if it could be an integer.
            found: tuple[int, ...] = (operator.index(shape),)  # type: ignore[arg-type]
        except TypeError:
            found = tuple(operator.index(length) for length in shape)  # type: ignore[union-attr]
    except TypeError:
        raise UsageError(f"shape={shape!r} is no integer and no sequence of integers") from None
    if any(length < 0 for length in found):
        raise UsageError(f"shape={shape!r} has a negative length; give all lengths")
    return found


def check_order(order: str) -> Literal["C", "F"]:
    """Return `order`.

    Raises
    ------
    UsageError
        It is neither "C" nor "F".
    """
    if order == "C":
        return "C"
    if order == "F":
        return "F"
    raise UsageError(f"order={order!r} is neither 'C' (rows together) nor 'F' (columns together)")


def check_offset(offset: SupportsIndex) -> int:
    """Return `offset`.

    Raises
    ------
    UsageError
        It is no integer, or negative.
    """
    try:
        found = operator.index(offset)
    except TypeError:
        raise UsageError(f"offset={offset!r} is not a whole number of bytes") from None
    if found < 0:
        raise UsageError(f"offset={offset!r} is negative; give bytes from the beginning")
    return found

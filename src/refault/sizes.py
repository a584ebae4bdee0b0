"""Sizes in bytes, as people write them."""

from __future__ import annotations

import operator
import re
from fractions import Fraction
from typing import SupportsIndex, TypeAlias

from refault.errors import UsageError

__all__ = ["Size", "format_size", "parse_size"]

Size: TypeAlias = str | SupportsIndex
"""A number of bytes, or text such as "2GiB"."""

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
SHORT = {"k", "m", "g", "t"}
TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
FORMS = "give a whole number of bytes, or text such as '2GiB', '512 MiB', '64KiB' or '4GB'"


def parse_size(size: Size, *, name: str = "size") -> int:
    """Return `size` in bytes.

    Parameters
    ----------
    size
        A whole number of bytes, or a number with a unit: KiB, MiB, GiB, TiB (powers
        of 1024) or kB, MB, GB, TB (powers of 1000), in upper or lower case.
    name
        The parameter that messages speak of.

    Raises
    ------
    UsageError
        It is negative, not a number, or not whole.  "4G" is refused as well: half of
        the world's tools take it for 4 GiB, the other half for 4 GB.
    """
    if isinstance(size, str):
        return _parse_text(size, name)
    if isinstance(size, bool):
        raise UsageError(f"{name}={size!r} is not a size; {FORMS}")
    try:
        number = operator.index(size)
    except TypeError:
        raise UsageError(f"{name}={size!r} is not a size; {FORMS}") from None
    if number < 0:
        raise UsageError(f"{name}={size!r} is negative; {FORMS}")
    return number


def _parse_text(text: str, name: str) -> int:
    match = TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"{name}={text!r} is not a size; {FORMS}")
    digits, unit = match.groups()
    if unit.lower() in SHORT:
        letter = unit.upper()
        raise UsageError(
            f"{name}={text!r} can be meant in two ways; write {digits}{letter}iB (powers of 1024)"
            f" or {digits}{letter}B (powers of 1000)"
        )
    factor = UNITS.get(unit.lower())
    if factor is None:
        raise UsageError(f"{name}={text!r} has an unknown unit; {FORMS}")
    number = Fraction(digits) * factor
    if number.denominator != 1:
        raise UsageError(f"{name}={text!r} is not a whole number of bytes; {FORMS}")
    return int(number)


def format_size(number: int) -> str:
    """Write a number of bytes for people: the largest unit that it fills, one decimal."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = UNITS[unit.lower()]
        if number >= factor:
            return f"{number / factor:.1f} {unit}".replace(".0 ", " ")
    return f"{number} B"

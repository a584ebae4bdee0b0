"""What a ``.safetensors`` file says of itself, believed only where it can be true.

A file begins with the length of its header, eight bytes, little-endian; then the header, JSON: for
each tensor its dtype, shape and place in what follows.  The tensors fill all of the rest, without
gaps and without overlaps.  We are as strict as the library of the format is, and read the header
ourselves since it wants a local file or all the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from refault.errors import UsageError

__all__ = ["BITS", "LENGTH_BYTES", "Tensor", "header_length", "parse_header", "parse_json"]

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
"""The format's own limit."""

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element of each dtype of the format."""


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes
    ----------
    start, end
        Its bytes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_length(first: bytes, size: int, name: str) -> int:
    """The length of the header, from the first bytes of a file of `size` bytes.

    Raises
    ------
    UsageError
        That cannot be.
    """
    if len(first) < LENGTH_BYTES:
        raise _refuse(name, f"it has only {size} bytes")
    length = int.from_bytes(first, "little")
    if LENGTH_BYTES + length > size:
        raise _refuse(name, f"its header would be {length} bytes long, and the file has {size}")
    if length > MAX_HEADER:
        raise _refuse(name, f"its header of {length} bytes is longer than the {MAX_HEADER} allowed")
    return length


def parse_header(header: bytes, size: int, name: str) -> dict[str, Tensor]:
    """Read a header.

    Parameters
    ----------
    header
        Without its length.
    size
        Bytes of the whole file.
    name
        For messages.

    Raises
    ------
    UsageError
        It is damaged, or contradicts itself or the file.
    """
    if not header.startswith(b"{"):
        raise _refuse(name, "its header does not begin with '{'")
    fields = parse_json(header, lambda reason: _refuse(name, reason))
    metadata = fields.pop("__metadata__", None) or {}
    if not _is_dict(metadata) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refuse(name, "its __metadata__ is not a table of texts")
    begin = LENGTH_BYTES + len(header)
    tensors = {key: _tensor(key, value, begin, name) for key, value in fields.items()}
    _check_places(tensors, begin, size, name)
    return tensors


def parse_json(text: bytes, refuse: Callable[[str], UsageError]) -> dict[str, Any]:
    """Read a JSON object in which no key stands twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        fields = json.loads(text.decode(), object_pairs_hook=unique)
        "".join(fields).encode()  # names with half a character are no text
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not valid JSON: {error}") from error
    if not _is_dict(fields):
        raise refuse("is not a JSON object")
    found: dict[str, Any] = fields
    return found


def _tensor(key: str, value: Any, begin: int, name: str) -> Tensor:
    what = f"tensor {key!r}"
    if not _is_dict(value) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise _refuse(name, f"{what} lacks a dtype, a shape or data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _refuse(name, f"{what} has dtype {dtype!r}, which is not known")
    if not _are_sizes(shape):
        raise _refuse(name, f"{what} has shape {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _refuse(name, f"{what} has data_offsets {offsets!r}")
    bits = math.prod(shape) * BITS[dtype]
    low, high = offsets
    if bits != (high - low) * 8:
        raise _refuse(
            name, f"{what}, {dtype}{shape}, takes {bits / 8:g} bytes, and has {high - low}"
        )
    return Tensor(dtype, tuple(shape), begin + low, begin + high)


def _check_places(tensors: dict[str, Tensor], begin: int, size: int, name: str) -> None:
    end = begin
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.end > size:
            raise _refuse(
                name, f"tensor {key!r} ends at {tensor.end}, and the file has {size} bytes"
            )
        if tensor.start != end:
            how = "overlaps another one" if tensor.start < end else "leaves a gap before it"
            raise _refuse(name, f"tensor {key!r} {how}, at {tensor.start}")
        end = tensor.end
    if end != size:
        raise _refuse(name, f"its tensors end at {end}, and the file has {size} bytes")


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 63 for one in value)


def _refuse(name: str, reason: str) -> UsageError:
    return UsageError(
        f"{name} is not a valid safetensors file: {reason}; check that it is complete"
    )

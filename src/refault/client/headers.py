"""Headers of ``.npy`` files; numpy's own functions read and write them."""

from __future__ import annotations

import ast
from typing import IO, Any, NamedTuple

import numpy as np

from refault.errors import UsageError

__all__ = ["MAGIC", "Header", "read_header", "write_file"]

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""What numpy's functions take as well: the text goes through `ast.literal_eval`."""


class Header(NamedTuple):
    """What the header of a ``.npy`` file says.

    Attributes
    ----------
    offset
        Where the data begins in the file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str
    offset: int


def read_header(file: IO[bytes], name: str) -> Header:
    """Read the header at the beginning of `file`.

    Raises
    ------
    UsageError
        There is none, it is damaged, or the array holds Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, MAX_HEADER)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, MAX_HEADER)
        elif version == (3, 0):
            shape, fortran, dtype = _read_3_0(file)
        else:
            raise ValueError(f"version {version} is not known")
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UsageError(
            f"{name}: no valid .npy header ({error}); for a file of bare numbers give another"
            " name, or an offset"
        ) from error
    if dtype.hasobject:
        raise UsageError(
            f"{name}: holds Python objects, which cannot be mapped; save it with a plain dtype"
        )
    return Header(dtype, shape, "F" if fortran else "C", file.tell())


def _read_3_0(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """As 2.0, in UTF-8: numpy has no public function for it."""
    length = int.from_bytes(file.read(4), "little")
    if length > MAX_HEADER:
        raise ValueError(f"the header has {length} bytes")
    fields = ast.literal_eval(file.read(length).decode())
    return (
        tuple(fields["shape"]),
        bool(fields["fortran_order"]),
        np.lib.format.descr_to_dtype(fields["descr"]),
    )


def write_file(path: str, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> None:
    """Create or truncate a ``.npy`` file of zeros (sparse, where the file system can)."""
    # Nothing is touched here: the mapping that numpy returns is dropped at once.
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape, fortran_order=order == "F")

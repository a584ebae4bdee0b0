"""What a user wants of a file or store, and how it becomes an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from refault.client import fork
from refault.client.connection import connect
from refault.client.headers import Header
from refault.client.memory import Memory
from refault.client.options import Options
from refault.client.region import Layout, Mode
from refault.errors import UsageError
from refault.wire import messages

__all__ = ["Wanted", "check_agreement", "check_header", "check_length", "fit", "map_memory"]


class Wanted(NamedTuple):
    """The parameters of `refault.open`, checked."""

    mode: Mode
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] | None
    offset: int
    order: Literal["C", "F"]
    options: Options

    @property
    def nothing_said(self) -> bool:
        """Whether it is left to the file to say what it holds."""
        return self.dtype is None and self.shape is None and self.offset == 0


def fit(wanted: Wanted, size: int, name: str) -> Layout:
    """Lay an array over `size` bytes; it may be longer if `Wanted.shape` is given."""
    dtype = np.dtype(np.uint8) if wanted.dtype is None else wanted.dtype
    if wanted.shape is not None:
        return Layout(dtype, wanted.shape, wanted.order)
    available = size - wanted.offset
    if available < 0:
        raise UsageError(f"{name}: offset={wanted.offset} is behind its end at {size} bytes")
    if available % dtype.itemsize:
        raise UsageError(
            f"{name}: Size of available data is not a multiple of the data-type size ({available}"
            f" bytes from offset {wanted.offset} on, {dtype.itemsize} each); give shape, or"
            " another dtype or offset"
        )
    return Layout(dtype, (available // dtype.itemsize,), wanted.order)


def check_header(wanted: Wanted, header: Header, size: int, name: str) -> Layout:
    """Return the array of a ``.npy`` file.

    Raises
    ------
    UsageError
        The header contradicts what is wanted, or the file.
    """
    layout = Layout(header.dtype, header.shape, "F" if header.order == "F" else "C")
    check_agreement(wanted, layout, name, "the .npy header")
    if not layout.dtype.itemsize:
        raise UsageError(f"{name}: dtype {header.dtype} has no size; save it with another one")
    check_length(header.offset + layout.nbytes, size, name)
    return layout


def check_agreement(wanted: Wanted, found: Layout, name: str, said_by: str) -> None:
    """See that what is wanted does not contradict what a header or store says.

    Raises
    ------
    UsageError
        It does.
    """
    said: list[tuple[str, object, object]] = [
        ("dtype", wanted.dtype, found.dtype),
        ("shape", wanted.shape, found.shape),
    ]
    # One axis is in both orders, and "C" is what one gets who says nothing.
    if wanted.order == "F" and len(found.shape) > 1:
        said.append(("order", wanted.order, found.order))
    for parameter, value, other in said:
        if value is not None and value != other:
            raise UsageError(
                f"{name}: {parameter}={value!r}, but {said_by} says {other!r}; leave {parameter}"
                " out"
            )


def check_length(needed: int, size: int, name: str) -> None:
    """See that the array ends within its file or store."""
    if needed > size:
        raise UsageError(
            f"{name}: has {size} bytes, and the array needs {needed}; give a smaller shape, or"
            " check that the file is complete"
        )


def map_memory(
    source: messages.FileSource
    | messages.FillSource
    | messages.ObjectSource
    | messages.SnapshotSource,
    fds: Sequence[int],
    *,
    mode: Mode,
    private: bool,
    offset: int,
    length: int,
    options: Options,
    file: tuple[int, int] | None = None,
) -> Memory | None:
    """Have the pager make a region of `length` bytes, and map it; None for no bytes."""
    if length == 0:
        return None
    fork.install()
    request = messages.Map(
        source=source,
        private=private,
        writable=mode != "r",
        offset=offset,
        length=length,
        **options._asdict(),
    )
    connection = connect()
    if isinstance(source, messages.FileSource) and mode == "r":
        connection.start_agent()
    return Memory(connection, request, fds, file=file)

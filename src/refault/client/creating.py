"""`empty`, `zeros`, `full`: memory without a file, larger than memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refault.client.options import Options, Shape, check_dtype, check_order, check_shape
from refault.client.region import Layout, Region
from refault.client.source import map_memory
from refault.errors import UsageError
from refault.sizes import Size
from refault.wire import messages

__all__ = ["empty", "full", "zeros"]


def zeros(
    shape: Shape,
    dtype: npt.DTypeLike = float,
    order: str = "C",
    *,
    resident: Size | None = None,
    page_size: Size | None = None,
    swap: str | None = None,
) -> npt.NDArray[Any]:
    """Return an array of zeros that need not fit into memory.

    What is evicted is compressed, and spilled to a file if need be, or kept by a server.

    Parameters
    ----------
    shape, dtype, order
        As in `numpy.zeros`.
    resident, page_size
        As in `refault.open`.
    swap
        ``redis://HOST:PORT/DB`` of a Redis or Valkey server, or of a node of a cluster, that
        keeps what is evicted, compressed.  None: memory, and then the disk, of this machine.

    Returns
    -------
    numpy.ndarray
        `refault.region` gives what else can be done with it.

    Raises
    ------
    UsageError
        The parameters make no sense.
    StoreError
        The server of `swap` does not answer.
    KernelError
        The kernel or the pager refuses; ``refault doctor`` tells what is missing.

    Examples
    --------
    >>> import refault
    >>> x = refault.zeros((1 << 20, 1 << 10), "f4", resident="64MiB")
    >>> x[1000, 5] = 7
    >>> x[999:1002, 5]
    array([0., 7., 0.], dtype=float32)
    """
    return _filled(b"\0", shape, check_dtype(dtype), order, resident, page_size, swap, "zeros")


def empty(
    shape: Shape,
    dtype: npt.DTypeLike = float,
    order: str = "C",
    *,
    resident: Size | None = None,
    page_size: Size | None = None,
    swap: str | None = None,
) -> npt.NDArray[Any]:
    """Return an array that need not fit into memory; its content is zeros.

    Parameters
    ----------
    shape, dtype, order
        As in `numpy.empty`.
    resident, page_size, swap
        As in `refault.zeros`.

    Returns
    -------
    numpy.ndarray
        As from `refault.zeros`, which see.
    """
    return _filled(b"\0", shape, check_dtype(dtype), order, resident, page_size, swap, "empty")


def full(
    shape: Shape,
    fill_value: Any,
    dtype: npt.DTypeLike | None = None,
    order: str = "C",
    *,
    resident: Size | None = None,
    page_size: Size | None = None,
    swap: str | None = None,
) -> npt.NDArray[Any]:
    """Return an array whose elements all have one value; it need not fit into memory.

    Parameters
    ----------
    shape, dtype, order
        As in `numpy.full`: without `dtype`, that of `fill_value`.
    fill_value
        A single value.
    resident, page_size, swap
        As in `refault.zeros`.

    Returns
    -------
    numpy.ndarray
        As from `refault.zeros`, which see.

    Raises
    ------
    UsageError
        `fill_value` is more than one value, or the parameters make no sense.
    """
    if dtype is None:
        dtype = np.asarray(fill_value).dtype
    found = check_dtype(dtype)
    try:
        value = np.full((), fill_value, found)
    except ValueError as error:
        raise UsageError(
            f"full: fill_value={fill_value!r} is not a single value of {found} ({error}); make"
            " the array with zeros, and assign to it"
        ) from error
    pattern = value.tobytes()
    if not any(pattern):
        pattern = b"\0"
    return _filled(pattern, shape, found, order, resident, page_size, swap, "full")


def _filled(
    pattern: bytes,
    shape: Shape,
    dtype: np.dtype[Any],
    order: str,
    resident: Size | None,
    page_size: Size | None,
    swap: str | None,
    name: str,
) -> npt.NDArray[Any]:
    layout = Layout(dtype, check_shape(shape), check_order(order))
    memory = map_memory(
        messages.FillSource(size=layout.nbytes, pattern=pattern),
        (),
        mode="w+",
        private=True,
        offset=0,
        length=layout.nbytes,
        options=Options.of(resident=resident, page_size=page_size, swap=swap),
    )
    return Region(memory, layout, "w+", name).array

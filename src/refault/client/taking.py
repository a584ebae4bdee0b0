"""`take`: elements from many places, read side by side.

An index with a list of places (``x[rows]``) touches one page after the other, and each that is not
there costs a round trip to its store.  No pager can do better: the thread that could say what comes
next stands still.  Here the places are known before anything is touched.

The places are visited in the order of their addresses, in batches of a part of what may be
resident.  So each page is read once, however little memory there is, and however often the
places name it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from refault.client.indexing import byte_bounds
from refault.client.region import Region, region
from refault.errors import UsageError
from refault.wire import messages

__all__ = ["take"]

BATCH_PART = 4
"""What is read at a time is one part in so many of what may be resident."""

BATCH_BYTES = 64 << 20
"""What is read at a time, at most."""


def take(
    a: npt.NDArray[Any], indices: npt.ArrayLike, axis: SupportsIndex | None = None
) -> npt.NDArray[Any]:
    """Return elements from many places, as `numpy.take` does, but read side by side.

    Parameters
    ----------
    a
        An array of refault, or a view of one.
    indices
        Which elements; negative ones count from the end.
    axis
        Along which axis.  None: of the flattened array.

    Returns
    -------
    numpy.ndarray
        A copy in ordinary memory, of the shape that `numpy.take` gives it.

    Raises
    ------
    IndexError
        There is no such element.
    StoreError
        A page could not be read.
    UsageError
        `a` is not of refault; or no `axis` is given, and `a` cannot be flattened without a copy.

    Notes
    -----
    The places are visited in the order of their addresses, in batches of a quarter of what may be
    resident (64 MiB at most).  All pages of a batch are asked for before the first one is waited
    for, as many at a time as suits the store (`refault.stores.Policy`).  Who waits here waits
    without the GIL, and can be interrupted.

    Examples
    --------
    >>> import refault
    >>> x = refault.full((1000, 4), 7)
    >>> refault.take(x, [2, 500, -1], axis=0).sum(axis=1)
    array([28, 28, 28])
    """
    source = region(a)
    if axis is None:
        if not a.flags.c_contiguous:
            raise UsageError(
                "take: this array cannot be flattened without a copy of all of it; give an axis"
            )
        a, along = a.reshape(-1), 0
    else:
        along = operator.index(axis)
        if not -a.ndim <= along < a.ndim:
            raise UsageError(f"take: axis={along} of an array with {a.ndim} axes")
        along %= a.ndim
    wanted = _positions(indices, a.shape[along], along)
    result = np.empty(a.shape[:along] + wanted.shape + a.shape[along + 1 :], a.dtype)
    flat = wanted.reshape(-1)
    rows = result.reshape((*a.shape[:along], flat.size, *a.shape[along + 1 :]))
    if result.size:
        _Taking(source).take(np.moveaxis(a, along, 0), np.moveaxis(rows, along, 0), flat)
    return result


def _positions(indices: npt.ArrayLike, length: int, axis: int) -> npt.NDArray[np.intp]:
    found = np.asarray(indices)
    if found.size and found.dtype.kind not in "iu":
        raise UsageError(
            f"take: indices of type {found.dtype}; give integers (of a mask: numpy.flatnonzero(it))"
        )
    for bad in found[(found < -length) | (found >= length)].reshape(-1)[:1] if found.size else ():
        raise IndexError(f"index {bad} is out of bounds for axis {axis} with size {length}")
    positions = found.astype(np.intp)
    return np.where(positions < 0, positions + length, positions)


class _Taking:
    """One call of `take`.

    Attributes
    ----------
    page_size, room
        Bytes of a page unit, and that may be read at a time.
    """

    def __init__(self, source: Region) -> None:
        assert source._memory is not None
        self.memory = source._memory
        self.page_size = source.page_size
        self.room = BATCH_BYTES
        for number in (self.memory.number, None):
            counted = self.memory.connection.call(messages.Statistics(number)).value
            assert isinstance(counted, dict)
            if counted["budget"] >= 0:
                self.room = min(self.room, int(counted["budget"]) // BATCH_PART)

    def take(
        self, there: npt.NDArray[Any], here: npt.NDArray[Any], flat: npt.NDArray[np.intp]
    ) -> None:
        """Copy ``there[flat]`` to `here`."""
        axis = max(
            range(there.ndim), key=lambda one: (there.shape[one] > 1) * abs(there.strides[one])
        )
        low, high = byte_bounds(there)
        if axis and high - low > self.room:
            # Each of the places lies all over the array: one part of the array after the other.
            step = max(1, self.room // abs(there.strides[axis]))
            for at in range(0, there.shape[axis], step):
                block = (slice(None),) * axis + (slice(at, at + step),)
                self.take(there[block], here[block], flat)
            return
        for part, ranges in self._batches(there, flat):
            # What does not fit at once is read as by an index, in order.
            if (ranges[:, 1] - ranges[:, 0]).sum() <= 2 * self.room:
                self._populate(ranges)
            here[part] = there[flat[part]]

    def _batches(
        self, there: npt.NDArray[Any], flat: npt.NDArray[np.intp]
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]]:
        """Which places to visit together, and the byte ranges ``(start, end)`` they lie in."""
        page_size, stride = self.page_size, there.strides[0]
        offsets, length = _runs(there, page_size)
        origin = there.__array_interface__["data"][0] - self.memory.address
        order = np.argsort(flat if stride >= 0 else -flat, kind="stable")
        starts = flat[order, None] * stride + (offsets + origin)
        first, last = starts // page_size, (starts + length - 1) // page_size
        first[1:] = np.maximum(first[1:], last[:-1] + 1)
        pages = np.cumsum(np.maximum(last - first + 1, 0).sum(axis=1))
        batch = (pages - 1) // max(1, self.room // page_size)
        for rows in np.split(np.arange(flat.size), np.flatnonzero(np.diff(batch)) + 1):
            begins = np.unique(starts[rows])
            apart = np.flatnonzero(np.diff(begins) >= length + page_size)
            lows = begins[np.concatenate(([0], apart + 1))]
            highs = begins[np.concatenate((apart, [begins.size - 1]))] + length
            yield order[rows], np.stack((lows, highs), axis=1)

    def _populate(self, ranges: npt.NDArray[np.int64]) -> None:
        """Have byte ranges of the mapped range read side by side, and wait until they are there."""
        for at in range(0, len(ranges), messages.CHANGED_RANGES):
            part = ranges[at : at + messages.CHANGED_RANGES].tobytes()
            self.memory.connection.call(messages.PopulateRanges(self.memory.number, part))


def _runs(there: npt.NDArray[Any], page_size: int) -> tuple[npt.NDArray[np.int64], int]:
    """The bytes of ``there[0]``: where runs of them begin, from its first element, and how long.

    Gaps that are smaller than a page unit belong to the run.
    """
    offsets, length = np.zeros(1, np.int64), there.itemsize
    shape, strides = there.shape[1:], there.strides[1:]
    for count, stride in sorted(zip(shape, strides, strict=True), key=lambda one: abs(one[1])):
        if abs(stride) < length + page_size:
            offsets += min(0, (count - 1) * stride)
            length += (count - 1) * abs(stride)
        else:
            offsets = (offsets[:, None] + np.arange(count) * stride).reshape(-1)
    return offsets, length

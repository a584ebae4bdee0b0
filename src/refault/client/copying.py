"""Having the pager copy parts of a snapshot to memory that it shares with us."""

from __future__ import annotations

import array as arrays
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from refault.errors import UsageError
from refault.wire import messages

if TYPE_CHECKING:
    from refault.client.marks import Ranges
    from refault.client.snapshot import Snapshot

__all__ = ["SharedBuffer", "read_snapshot"]


class SharedBuffer:
    """Memory that the pager may write to; it ends with the last object that uses it.

    Parameters
    ----------
    length
        Bytes.

    Attributes
    ----------
    data
        What is in it.
    """

    def __init__(self, length: int) -> None:
        self.fd = os.memfd_create("refault-buffer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, max(length, 1))
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self.data = memoryview(mmap.mmap(self.fd, max(length, 1)))[:length]
        except BaseException:
            os.close(self.fd)
            raise

    def __len__(self) -> int:
        return len(self.data)

    def __del__(self) -> None:
        if hasattr(self, "data"):
            os.close(self.fd)


def read_snapshot(
    snapshot: Snapshot, array: npt.NDArray[Any], ranges: Ranges, buffer: SharedBuffer
) -> None:
    """Copy parts of what an array was at an instant, one behind the other.

    Each is copied once, and no page of ``snapshot[array]`` comes: for who wants all of many parts.

    Parameters
    ----------
    snapshot, array
        The instant, and one of the arrays that it is of.
    ranges
        Bytes ``[start, end)`` of the array, as it lies in memory, as `Snapshot.changed` returns
        them.
    buffer
        Where to.

    Raises
    ------
    StoreError
        A page could not be read.
    UsageError
        The snapshot is closed or is not of this array, a range is not in it, or the buffer is
        too small.
    """
    source = snapshot._source(array)
    bounds = source._range(array)[1]
    memory = source._memory
    if memory is None or bounds is None:
        first = end = 0
    else:
        first, end = bounds
    if any(not 0 <= low <= high <= end - first for low, high in ranges):
        raise UsageError(f"a range is not in the {end - first} bytes of the array")
    if sum(high - low for low, high in ranges) > len(buffer):
        raise UsageError(f"the ranges do not fit into a buffer of {len(buffer)} bytes")
    if memory is None:
        return
    for at, pairs in _requests(first, ranges):
        request = messages.ReadSnapshot(snapshot._number, memory.number, pairs.tobytes(), at)
        memory.connection.call(request, [buffer.fd])


def _requests(first: int, ranges: Ranges) -> Iterator[tuple[int, arrays.array[int]]]:
    """Cut ranges into what one request may ask for, and say where in the buffer each begins."""
    at = length = 0
    pairs = arrays.array("q")
    for low, high in ranges:
        while low < high:
            part = min(high - low, messages.READ_BYTES - length)
            pairs.extend((first + low, first + low + part))
            low, length = low + part, length + part
            full = length == messages.READ_BYTES or len(pairs) == 2 * messages.READ_RANGES
            if full:
                yield at, pairs
                at, length, pairs = at + length, 0, arrays.array("q")
    if pairs:
        yield at, pairs

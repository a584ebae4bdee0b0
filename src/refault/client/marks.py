"""`Mark`: an instant of an array, to ask later what was written since."""

from __future__ import annotations

import weakref
from array import array
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy.typing as npt

from refault.client.held import Held
from refault.errors import UsageError
from refault.wire import messages

if TYPE_CHECKING:
    from typing import Any

    from refault.client.region import Region

__all__ = ["Mark", "Ranges", "changed", "new_mark"]

Ranges: TypeAlias = list[tuple[int, int]]
"""Bytes ``[start, end)``, in order."""


class Mark:
    """An instant of one array, to ask later what was written since.

    Made by `Region.mark` and `Snapshot.mark`.  It costs a fault for each page unit that is written
    again after it.  It ends with `close`, or with the object; a context manager.

    Attributes
    ----------
    region
        Whose instant it is; None when that is gone, which the mark does not keep alive.
    """

    def __init__(self, region: Region, held: Held | None) -> None:
        self._region = weakref.ref(region)
        self._held = held
        self._closed = False

    @property
    def region(self) -> Region | None:
        return self._region()

    @property
    def closed(self) -> bool:
        """Whether the mark has ended."""
        return self._closed

    def close(self) -> None:
        """End it; a second call does nothing."""
        self._closed = True
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_mark(source: Region) -> Mark:
    """Take an instant of one region, and keep it as a mark."""
    memory = source._memory
    if memory is None:
        return Mark(source, None)
    return Mark(source, Held(memory.connection, messages.Mark(memory.number)))


def changed(source: Region, view: npt.NDArray[Any], since: Mark, snapshot: int | None) -> Ranges:
    """What was written to a part of a region since a mark, and before a snapshot or now."""
    if since.closed:
        raise UsageError("the mark is closed; take another one")
    if since.region is not source:
        raise UsageError(f"the mark is one of {since.region!r}, not of {source!r}")
    bounds = source._range(view)[1]
    memory, held = source._memory, since._held
    if memory is None or held is None or bounds is None:
        return []
    number = held.value
    assert isinstance(number, int)
    found: Ranges = []
    start, end = bounds
    at: int = start
    while at < end:
        done = memory.connection.call(messages.Changed(memory.number, number, snapshot, at))
        assert isinstance(done.value, bytes)
        pairs = array("q", done.value)
        for low, high in zip(pairs[::2], pairs[1::2], strict=True):
            low, high = max(low, start), min(high, end)
            if low < high:
                found.append((low - start, high - start))
        if len(pairs) < 2 * messages.CHANGED_RANGES:
            break
        at = pairs[-1]
    return found

"""When to read ahead, and how far.

Source: the kernel's on-demand readahead (mm/readahead.c).  The first three touches of a sequence
open a small window before it (two may be neighbours by chance: of 20,000 units that are touched
in a random order, some dozen are); each time the reader arrives at the window's marker, the next
window, twice as large up to a bound, is begun.  The marker is the unit of the newest window that
the reader comes to first: it is read but not mapped, so that touching it is seen.

What is different from the kernel's: a mapping has several readers, and some go backwards.  A
sort reads from both ends of its array at once, and a matrix product from two places.  So there
are several *streams*, each with its own window.  A fault that belongs to none of them is the
beginning of one, in the place of the oldest beginning.  With its third touch it is a stream, in
the place of the one that was not used for longest.  So touches in no order, however many, end no
stream.

A store that is far away answers late, and what it was asked for side by side often comes all
at once: if nothing else was asked for until then, nothing is under way for as long as an answer
takes.  So once the windows are as large as they get, two are open ahead of the one that is
read, and each is begun when the reader comes to the one before the newest.  And since each
touch that only shows where the reader goes costs as long as an answer takes, the beginning
of an object is taken for that of a sequence, as in the kernel, and windows grow faster.

Neighbours are joined to one read up to some size, and a window that is as large ends at a multiple
of it: so reads in order begin and end where the blocks of a store do that keeps its content in
blocks, and no two of them need the same one.

A window that was read in vain, because its units were evicted before anybody touched
them, was too large for the memory there is: the bound is halved, and doubles again with each
window that is used.

The windows of a stream can be a large part of a mapping, and then many touches fall into them by
chance.  So a touch belongs to a stream only where its reader must come by: at the ends, and at the
marker, or one of the next few units if that was mapped already.

The bounds ``[low, high]`` of the streams and their markers lie in one array of numbers, `heads`,
which native code reads and writes as well: what it must know is only whether a fault belongs to a
stream, and how a new one begins.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

__all__ = ["BEGINNINGS", "MAX_BYTES", "STREAMS", "Readahead", "Window"]

INITIAL_BYTES = 256 << 10
MAX_BYTES = 2 << 20
FAR_PART = 16
"""The first window of a store that is far away is so small a part of what is asked for ahead."""
FAR_GROWTH = 8
AT_BEGINNING = 1
"""The unit before it often comes with the header, when the object is opened."""
FILE_WINDOW_BYTES = 128 << 20
"""The largest window if it need not be read, because the file itself can be mapped there."""
BEGINNINGS = 8
STREAMS = 16
"""Beginnings included: they are the first ones."""

NEAR = 8
"""So many units after the marker may be mapped already."""

_NEXT = 3 * STREAMS
_NOWHERE = -4
_NEW = -1


class Window(NamedTuple):
    """Units ``[first, last)`` to begin to read; the reader goes up (`way` 1) or down (-1)."""

    first: int
    last: int
    way: int


class Readahead:
    """The sequences that the readers of one mapping seem to follow.

    Parameters
    ----------
    page_size
        Bytes of a page unit.
    budget
        Bytes that may be resident; a window takes at most an eighth of it.
    file_windows
        Whether windows can be mapped instead of read (`refault.pager.windows`).
    far
        Bytes of two windows of the largest size, if the store is far away: so much is always asked
        for ahead.  0: it is not.
    run_bytes
        Neighbouring units are joined to reads of so many bytes at most.  0: they are not.

    Attributes
    ----------
    align
        Units that are joined to one read.
    heads
        ``low`` and ``high`` of each stream and its marker, or -1 if it is new, one after the other,
        and which stream is the next to be given up.
    ahead
        How many of the largest windows are open ahead of the one that is read.
    growth
        How many times as large as the one before a window is.
    largest
        Units of the largest window; 0: nothing is read ahead.
    """

    __slots__ = (
        "ahead",
        "align",
        "bound",
        "grown",
        "growth",
        "heads",
        "initial",
        "largest",
        "size",
        "start",
        "used",
        "uses",
        "way",
    )

    def __init__(
        self,
        page_size: int,
        budget: int | None,
        *,
        file_windows: bool = False,
        far: int = 0,
        run_bytes: int = 0,
    ) -> None:
        most = FILE_WINDOW_BYTES if file_windows else max(MAX_BYTES, far // 2)
        room = most if budget is None else min(most, budget // 8)
        self.largest = self.bound = room // page_size
        first = max(INITIAL_BYTES, far // FAR_PART)
        self.initial = min(max(first // page_size, 1), self.largest)
        self.growth = FAR_GROWTH if far else 2
        self.ahead = 2 if far else 1
        self.align = max(1, run_bytes // page_size)
        self.heads = array("q", [_NOWHERE, _NOWHERE, _NEW] * STREAMS + [0])
        # Of each stream that is not new: whether it goes up (1) or down (-1); its newest window,
        # where the reader comes to it, and its size, 0 if there is none yet; and what that
        # would be if the window did not end where a read does.
        self.way = [0] * STREAMS
        self.start = [0] * STREAMS
        self.size = [0] * STREAMS
        self.grown = [0] * STREAMS
        # When it was used, in uses of all.
        self.used = [0] * STREAMS
        self.uses = 0

    def windows(self, index: int) -> list[Window]:
        """Note a fault at `index`; what to begin to read, in this order."""
        heads = self.heads
        for stream in reversed(range(STREAMS)):
            low, high = heads[3 * stream], heads[3 * stream + 1]
            if low <= index <= high:
                near = abs(index - heads[3 * stream + 2]) <= NEAR
                return self._follow(stream, index) if near or index in (low, high) else []
        if index <= AT_BEGINNING and self.ahead > 1 and self.largest:
            return self._establish(index, 1)
        stream = heads[_NEXT]
        heads[_NEXT] = (stream + 1) % BEGINNINGS
        self._begin(stream, index)
        return []

    def shorten(self, window: Window, last: int) -> None:
        """Only ``[window.first, last)`` of a window that goes up is begun."""
        for stream in range(BEGINNINGS, STREAMS):
            if (self.start[stream], self.way[stream]) == (window.first, 1):
                self.size[stream] = self.grown[stream] = last - window.first
                self._expect(stream, self.heads[3 * stream], last)

    def wasted(self) -> None:
        """A unit that was read ahead has been evicted, and nobody had touched it."""
        self.bound = max(self.bound // 2, self.initial)

    def _begin(self, stream: int, index: int) -> None:
        self._expect(stream, index - 1, index + 1)
        self.heads[3 * stream + 2] = _NEW

    def _end(self, stream: int) -> None:
        """Nothing belongs to the stream any more."""
        self._expect(stream, _NOWHERE, _NOWHERE)
        self.heads[3 * stream + 2] = _NEW
        self.used[stream] = 0

    def _expect(self, stream: int, one: int, other: int) -> None:
        """Faults between these two belong to the stream."""
        self.heads[3 * stream] = min(one, other)
        self.heads[3 * stream + 1] = max(one, other)

    def _follow(self, stream: int, index: int) -> list[Window]:
        mark = self.heads[3 * stream + 2]
        if mark == _NEW:
            step = index - self.heads[3 * stream] - 1
            if step:  # else it is the same unit again
                self.heads[3 * stream + 2] = index
                self.way[stream], self.start[stream], self.size[stream] = step, index, 0
                self._expect(stream, index, index + step)
            return []
        way, start, size = self.way[stream], self.start[stream], self.size[stream]
        if not size:
            if index == start:
                return []
            if not self.largest:
                self._begin(stream, index)
                return []
            self._end(stream)
            return self._establish(index, way)
        if (index - mark) * way < 0:
            return []  # in the window before, on the way to the marker
        end = start + size * way
        self.bound = min(self.bound * 2, self.largest)
        size = min(self.grown[stream] * self.growth, self.bound)
        found = self._open(stream, mark, end + way * (index == end), size)
        if self.ahead > 1 and size == self.bound and found:
            first = self.start[stream]
            if mark == start:
                found += self._open(stream, mark, first + self.size[stream] * way, size)
                self.heads[3 * stream + 2] = first
            else:
                self.heads[3 * stream + 2] = start
        return found

    def _establish(self, index: int, way: int) -> list[Window]:
        """There is a stream, in the place of the one that was not used for longest."""
        stream = min(range(BEGINNINGS, STREAMS), key=self.used.__getitem__)
        self.way[stream] = way
        return self._open(stream, index, index + way, self.initial)

    def _open(self, stream: int, near: int, start: int, size: int) -> list[Window]:
        """Open a window of `size` units from `start` on; faults from `near` on belong to it."""
        way = self.way[stream]
        if way < 0:
            size = min(size, start + 1)
            if size <= 0:
                self._end(stream)
                return []
        self.grown[stream] = size
        if size >= self.align:
            end = start + size * way
            beyond = (end if way > 0 else ~end) % self.align
            size -= beyond if beyond < size else 0
        self.uses += 1
        self.used[stream] = self.uses
        self.heads[3 * stream + 2] = start
        self.start[stream], self.size[stream] = start, size
        end = start + size * way
        self._expect(stream, near, end)
        return [Window(start, end, 1) if way > 0 else Window(end + 1, start + 1, -1)]

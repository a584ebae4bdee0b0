"""`snapshot`: arrays as they were at one instant, while the program goes on writing."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from refault.client.closing import Closing
from refault.client.held import Held
from refault.client.marks import Mark, Ranges, changed
from refault.client.memory import Memory
from refault.client.options import Options
from refault.client.region import Region, region
from refault.client.source import map_memory
from refault.errors import UsageError
from refault.sizes import Size
from refault.wire import messages

__all__ = ["Snapshot", "snapshot"]

RESIDENT = 16 << 20
"""So much of one array of a snapshot is in memory, beside what the array itself has there."""


class Snapshot(Closing):
    """Arrays at one instant.

    Made by `refault.snapshot`; a context manager.  ``snap[x]`` is what `x` was at that instant: a
    read-only array whose pages come when they are touched.

    Attributes
    ----------
    pause
        Seconds for which no fault was served, so that the instant is one.
    """

    def __init__(self, regions: list[Region], resident: Size | None) -> None:
        self._resident = resident
        self._regions = regions
        self._views: dict[Region, weakref.ref[Region]] = {}
        self._closed = False
        self.pause = 0.0
        self._held: Held | None = None
        memories = [memory for one in regions if (memory := one._memory) is not None]
        if not memories:
            return
        connection = memories[0].connection
        numbers = list(dict.fromkeys(memory.number for memory in memories))
        self._held = Held(connection, messages.Snapshot(numbers))
        answer = self._held.value
        assert isinstance(answer, dict)
        self._number = int(answer["number"])
        self.pause = float(answer["pause"])

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def __getitem__(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What an array was at the instant.

        Parameters
        ----------
        array
            One of those that the snapshot is of, or a view of one.

        Returns
        -------
        numpy.ndarray
            Read-only, with the same shape, dtype and strides.

        Raises
        ------
        UsageError
            The snapshot is closed, or is not of this array.
        """
        source = self._source(array)
        if source._memory is None or array.size == 0:
            empty = np.empty(array.shape, array.dtype)
            empty.flags.writeable = False
            return empty
        export: Any = self._view(source).array
        while isinstance(export, np.ndarray):
            export = export.base
        start = source._memory.data_address + source._layout.offset
        offset = array.__array_interface__["data"][0] - start
        return np.ndarray(array.shape, array.dtype, np.asarray(export), offset, array.strides)

    def mark(self, array: npt.NDArray[Any]) -> Mark:
        """Keep the instant of an array, to ask later what was written since.

        Parameters
        ----------
        array
            One of those that the snapshot is of.

        Returns
        -------
        Mark
            It outlives the snapshot.
        """
        source = self._source(array)
        if source._memory is None:
            return Mark(source, None)
        memory = source._memory
        request = messages.Mark(memory.number, self._number)
        return Mark(source, Held(memory.connection, request))

    def changed(self, array: npt.NDArray[Any], since: Mark) -> Ranges:
        """What was written between an earlier mark and the instant of this snapshot.

        Parameters
        ----------
        array
            One of those that the snapshot is of.
        since
            A mark of the same array.

        Returns
        -------
        list of (int, int)
            Bytes ``[start, end)`` of the array, as it lies in memory: whole page units, cut to
            the array.  What was written with the value that it had counts as well.
        """
        source = self._source(array)
        number = None if source._memory is None else self._number
        return changed(source, array, since, number)

    def close(self) -> None:
        """Give everything back; a second call does nothing.

        Raises
        ------
        UsageError
            There are arrays of it.  Nothing has been done.
        """
        if self._closed:
            return
        for reference in self._views.values():
            view = reference()
            if view is not None:
                view.close()
        self._closed = True
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def __repr__(self) -> str:
        closed = " closed" if self._closed else ""
        return f"<refault.Snapshot of {len(self._regions)} arrays{closed}>"

    def _source(self, array: npt.NDArray[Any]) -> Region:
        if self._closed:
            raise UsageError("the snapshot is closed; take another one")
        source = region(array)
        if source not in self._regions:
            raise UsageError(
                f"{source!r} is not part of the snapshot; give its array to refault.snapshot"
            )
        return source

    def _view(self, source: Region) -> Region:
        reference = self._views.get(source)
        view = None if reference is None else reference()
        if view is None or view.closed:
            memory = None if source._memory is None else self._map(source._memory)
            view = Region(memory, source._layout, "r", f"{source._name} (a snapshot)")
            # The pager keeps the instant as long as the region is open, and so do we.
            view.keeps = self
            self._views[source] = weakref.ref(view)
        return view

    def _map(self, memory: Memory) -> Memory | None:
        resident = self._resident
        if resident is None:
            resident = max(RESIDENT, 4 * memory.page_size)
        return map_memory(
            messages.SnapshotSource(self._number, memory.number),
            (),
            mode="r",
            private=False,
            offset=0,
            length=memory.data_length,
            options=Options.of(resident=resident, page_size=None),
        )


def snapshot(*arrays: npt.NDArray[Any], resident: Size | None = None) -> Snapshot:
    """Take a consistent snapshot of arrays, while other threads go on writing to them.

    There is one instant for all of them: if the snapshot has something that was written to one, it
    has all that was written before, to any of them.  Nothing is copied but what is changed
    afterwards, before it is; who writes to a page for the first time after the instant waits for
    that copy.

    Parameters
    ----------
    *arrays
        Arrays of refault, or views of them; always the whole region is meant.
    resident
        How much of each array of the snapshot may be in memory, beside what the array itself
        has there; 16 MiB by default.

    Returns
    -------
    Snapshot

    Raises
    ------
    UsageError
        Something is no array of refault.
    KernelError
        The pager is gone.

    Notes
    -----
    Copies go to memory, and beyond about 32 MiB to a temporary file.  If that disk is full the
    snapshot loses pages, and to read them there fails; the program goes on.  What a device writes
    directly to memory (O_DIRECT, RDMA) after the instant is not noticed.

    Examples
    --------
    >>> import refault
    >>> x = refault.zeros(1000, "i8")
    >>> with refault.snapshot(x) as snap:
    ...     x[:] = 7
    ...     print(snap[x][3], x[3])
    0 7
    """
    if not arrays:
        raise UsageError("snapshot: give at least one array")
    return Snapshot(list(dict.fromkeys(region(array) for array in arrays)), resident)

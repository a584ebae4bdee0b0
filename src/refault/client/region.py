"""`Region`: what stands behind an array."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from refault.client import registry
from refault.client.closing import Closing
from refault.client.held import Held
from refault.client.indexing import Where, byte_bounds, select
from refault.client.marks import Mark, Ranges, changed, new_mark
from refault.client.memory import NOWHERE, Export, Memory
from refault.client.pin import Pin
from refault.client.statistics import RegionStatistics
from refault.client.workingsets import begin, used
from refault.errors import UsageError
from refault.sizes import format_size
from refault.wire import messages

if TYPE_CHECKING:
    from refault.client.handles import Handle

__all__ = ["Layout", "Mode", "Origin", "Region", "region"]

Mode: TypeAlias = Literal["r", "r+", "w+", "c"]


class Layout(NamedTuple):
    """How the bytes of a region make an array.

    Attributes
    ----------
    offset
        Where the array begins in the bytes that were asked for.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Origin(NamedTuple):
    """What `refault.open` was called with.

    Attributes
    ----------
    source
        A path, absolute; a URL; or the object itself.
    parameters
        The others, by name, without `mode` and what is None anyway.
    version
        Of its bytes at that time; empty if they may change, or nobody can tell.
    unit
        Bytes that are written as a whole; None: not known, more than a page.
    """

    source: object
    parameters: dict[str, Any]
    version: str
    unit: int | None


class Region(Closing):
    """Memory whose pages come when they are touched, and what can be done with it.

    Regions are made by `refault.open`, `refault.empty`, `refault.zeros` and
    `refault.full`, which return the array; `refault.region` finds the region of an
    array.  It lives as long as the region object, an array on it, or a view of one.
    Then what is dirty is written back, and the memory is given back.

    Wherever a method takes `where`, this is ``None`` for everything, an index into
    `array` as in numpy (integers and slices: ``region.prefetch(slice(0, 100))``), or a
    view of the memory (``region.prefetch(x[:100, 3])``).  What is meant is the smallest
    range of bytes that holds the elements, extended to whole pages.

    Methods that wait do so without the GIL, and Ctrl-C interrupts them.
    """

    def __init__(self, memory: Memory | None, layout: Layout, mode: Mode, name: str) -> None:
        self._memory = memory
        self._layout = layout
        self._mode: Mode = mode
        self._name = name
        self._closed = False
        self.keeps: object = None
        self.origin: Origin | None = None
        self._export: weakref.ref[Export] | None = None
        if memory is not None:
            memory.region = weakref.ref(self)

    @property
    def array(self) -> npt.NDArray[Any]:
        """An array on the memory; each time a new one, always on the same memory.

        Raises
        ------
        UsageError
            The region is closed.
        """
        self._check_open()
        layout = self._layout
        export = None if self._export is None else self._export()
        if export is None:
            if self._memory is None:
                export = Export(self, NOWHERE, 0, writable=self._mode != "r")
            else:
                address = self._memory.data_address + layout.offset
                export = Export(self, address, layout.nbytes, writable=self._mode != "r")
            self._export = weakref.ref(export)
        return np.ndarray(layout.shape, layout.dtype, buffer=np.asarray(export), order=layout.order)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self._layout.nbytes

    @property
    def page_size(self) -> int:
        """Bytes that come and go together; 0 if the array has no elements.

        If it was not given, it changes with how the array is used: see `refault.open`.
        """
        return 0 if self._memory is None else self._memory.page_size

    @property
    def mode(self) -> Mode:
        """As in `refault.open`; "w+" for memory without a file."""
        return self._mode

    @property
    def handle(self) -> Handle:
        """What another process needs to open the same array: see `refault.handle`."""
        from refault.client.handles import handle

        return handle(self.array)

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def prefetch(self, where: Where | Ranges = None) -> int:
        """Begin to read pages, and wait for none of them.

        Parameters
        ----------
        where
            See the class.  Or a list of ranges of bytes, from the beginning of the array, such as
            `working_set` returns: they are read behind whatever else is needed, evict nothing,
            and count as used only when they are touched.

        Returns
        -------
        int
            Bytes whose reading has begun; less than asked for if they are there
            already, or if the budget has no room.
        """
        if isinstance(where, list):
            return begin(self, where)
        return self._request(messages.Prefetch, where)

    def wait_for_prefetch(self) -> None:
        """Wait until what was begun to be read in the background is there, or given up.

        That is what the working set of the last run named (`refault.open`), and what `prefetch` was
        given as a list; not readahead.  Pages for which there is no room, and those that the store
        fails to deliver, are read when they are touched, as ever.
        """
        self._check_open()
        if self._memory is not None:
            self._memory.connection.call(messages.Prefetched(self._memory.number))

    def working_set(self, where: Where = None) -> Ranges:
        """What the program has used since the array was opened.

        Parameters
        ----------
        where
            See the class.

        Returns
        -------
        list of (int, int)
            Bytes ``[start, end)``, from the beginning of what is meant: page units, cut to it.
            What was read ahead and never touched is not there; what was mapped together with
            a page that was touched is, and so is what `populate`, `pin` or `prefetch` was
            called for.
        """
        return used(self, self._range(where)[1])

    def populate(self, where: Where = None, *, write: bool = False) -> None:
        """Make pages present, and wait until they are.

        Parameters
        ----------
        where
            See the class.
        write
            Make them writable as well: writing to them then faults no more, and they
            count as changed.

        Raises
        ------
        StoreError
            A page could not be read.
        """
        self._check_writable(write)
        self._request(functools.partial(messages.Populate, write=write), where)

    def pin(self, where: Where = None, *, write: bool = False) -> Pin:
        """Make pages present, and keep them so.

        Parameters
        ----------
        where
            See the class.
        write
            As in `populate`.

        Returns
        -------
        Pin
            The pages stay until its `Pin.release`, or the end of the ``with`` block.

        Raises
        ------
        StoreError
            A page could not be read.
        UsageError
            They do not fit the budget.
        """
        self._check_writable(write)
        view, bounds = self._range(where)
        if self._memory is None or bounds is None:
            return Pin(None, view)
        request = messages.Pin(self._memory.number, *bounds, write=write)
        return Pin(Held(self._memory.connection, request), view)

    def evict(self, where: Where = None) -> int:
        """Write back what is dirty, and drop pages from memory.

        Parameters
        ----------
        where
            See the class.

        Returns
        -------
        int
            Bytes dropped; pinned pages stay, and what is being read at this moment comes in
            afterwards.
        """
        return self._request(messages.Evict, where)

    def flush(self, where: Where = None) -> None:
        """Write changed pages to the store and make them durable.

        Does nothing for modes "r" and "c" and for memory without a file, as in
        `numpy.memmap`.

        Parameters
        ----------
        where
            See the class.

        Raises
        ------
        StoreError
            The store did not take them.
        """
        self._request(messages.Flush, where)

    def mark(self) -> Mark:
        """Mark this instant, to ask `dirty` later what was written since.

        Returns
        -------
        Mark
            While it is open, a page unit that is written costs one fault more, once.
        """
        self._check_open()
        return new_mark(self)

    def dirty(self, where: Where = None, *, since: Mark) -> Ranges:
        """What was written since a mark.

        Parameters
        ----------
        where
            See the class.
        since
            Of this region: what `mark` returned, or `Snapshot.mark`.

        Returns
        -------
        list of (int, int)
            Bytes ``[start, end)``, from the beginning of what is meant: page units, cut to it.
            What was written with the value that it had counts as well.

        Raises
        ------
        UsageError
            The mark is closed, or is not of this region.
        """
        return changed(self, self._range(where)[0], since, None)

    def statistics(self) -> RegionStatistics:
        """What has happened to the region so far."""
        self._check_open()
        if self._memory is None:
            return RegionStatistics()
        done = self._memory.connection.call(messages.Statistics(self._memory.number))
        return RegionStatistics.of(done.value if isinstance(done.value, dict) else {})

    def close(self) -> None:
        """Write back what is dirty and give the memory back; a second call does nothing.

        Raises
        ------
        UsageError
            There are arrays on it, or pins.  Nothing has been done.
        StoreError
            The store did not take what was dirty.
        """
        if self._closed:
            return
        if self._export is not None and self._export() is not None:
            raise UsageError(
                f"{self!r} cannot be closed while arrays, views or pins of it exist: delete them"
                " first (del x), or do not close it: it ends with the last of them"
            )
        self._closed = True
        if self._memory is not None:
            self._memory.release()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __repr__(self) -> str:
        layout = self._layout
        closed = " closed" if self._closed else ""
        return (
            f"<refault.Region {self._name} mode={self._mode!r} {layout.dtype}"
            f"{list(layout.shape)} {format_size(layout.nbytes)}{closed}>"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self!r} is closed; open the array again")

    def _check_writable(self, write: bool) -> None:
        if write and self._mode == "r":
            raise UsageError(f"{self!r} is read-only; leave out write=True, or open it with 'r+'")

    def _range(self, where: Where) -> tuple[npt.NDArray[Any], tuple[int, int] | None]:
        """Return the view that is meant, and its bytes in the mapped range; None: no bytes."""
        view = select(self.array, where)
        memory = self._memory
        low, high = byte_bounds(view)
        if memory is None or low == high:
            return view, None
        start, end = low - memory.address, high - memory.address
        if not 0 <= start < end <= memory.length:
            raise UsageError(
                f"the array does not lie in {self!r}; give an index, or a view of that region"
            )
        return view, (start, end)

    def _request(self, make: Callable[[int, int, int], messages.Request], where: Where) -> int:
        # The view keeps the range mapped while we wait.
        view, bounds = self._range(where)
        if self._memory is None or bounds is None:
            return 0
        value = self._memory.connection.call(make(self._memory.number, *bounds)).value
        del view
        return value if isinstance(value, int) else 0


def region(array: object) -> Region:
    """Find the region that an array lies in.

    Parameters
    ----------
    array
        An array of refault, or anything that shares its memory: a view, a
        `memoryview`, a tensor.

    Returns
    -------
    Region

    Raises
    ------
    UsageError
        It lies elsewhere: a copy, for example.
    """
    base = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, Export):
        return base.region
    try:
        # A tensor of torch may have a dtype that numpy has not.
        pointer = getattr(array, "data_ptr", None)
        address = pointer() if pointer else np.asarray(array).__array_interface__["data"][0]
    except Exception as error:
        raise UsageError(
            f"{type(array).__name__} is no array ({error}); give what refault.open returned, or a"
            " view of it"
        ) from error
    memory = registry.find(address)
    found = None if memory is None or memory.region is None else memory.region()
    if found is None:
        raise UsageError(
            "the array does not lie in memory of refault: it is a copy, or was made elsewhere;"
            " give what refault.open, empty, zeros or full returned, or a view of it"
        )
    return found

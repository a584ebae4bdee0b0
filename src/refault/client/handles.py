"""`Handle`: what another process needs to open the same array, and none of its bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from refault.client import opening
from refault.client.indexing import byte_bounds
from refault.client.region import Mode, region
from refault.errors import StoreError, UsageError
from refault.sizes import Size
from refault.stores.base import store_name
from refault.stores.remote import public

__all__ = ["Handle", "handle"]


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Handle:
    """Where an array, or a view of one, comes from; small when it is pickled.

    Made by `refault.handle` and `Region.handle`.

    Attributes
    ----------
    source
        A path, a URL, or a store.
    mode
        As in `refault.open`; "r+" for an array that was opened with "w+".
    parameters
        The others of `refault.open`.  `working_set` is not among them: each worker would write
        its own part there.
    version
        Of the bytes, when the array was opened with "r" or "c"; empty: they may change.
    unit
        Bytes that are written back as a whole; None: not known, more than a page.
    dtype, shape, strides, start
        The view: its first element is `start` bytes behind the beginning of the array.
    """

    source: object
    mode: Mode
    parameters: dict[str, Any]
    version: str
    unit: int | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def open(self, *, mode: str | None = None, resident: Size | None = None) -> npt.NDArray[Any]:
        """Open the array here; nothing is read before it is touched.

        Parameters
        ----------
        mode
            Another one than that of the handle; "w+" is refused.
        resident
            Another budget: that of the handle is for each process.

        Returns
        -------
        numpy.ndarray
            The view.  `refault.region` gives what else can be done with it.

        Raises
        ------
        StoreError
            The bytes are others than those the handle was made of.
        UsageError
            It would be written to, and shares page units with what lies beside it.
        OSError, UsageError, StoreError, KernelError
            As `refault.open`.
        """
        if mode in ("w+", "write"):
            raise UsageError(f"{self!r}: mode {mode!r} would empty it; open it with 'r+'")
        parameters = dict(self.parameters)
        if resident is not None:
            parameters["resident"] = resident
        whole: npt.NDArray[Any] = opening.open(self.source, mode or self.mode, **parameters)  # type: ignore[arg-type]
        found = region(whole).origin
        if self.version and found is not None and found.version not in ("", self.version):
            raise StoreError(
                f"{self!r}: has changed since the handle was made; make the handle anew",
                permanent=True,
            )
        if region(whole).mode == "r+":
            self._check_writable(whole)
        return self._view(whole)

    def _check_writable(self, whole: npt.NDArray[Any]) -> None:
        """See that other processes can write what lies beside the view.

        Pages are written back as a whole, so two processes that each write a part of one undo
        what the other did.
        """
        found = region(whole)
        memory = found._memory
        if memory is None or 0 in self.shape:
            return
        unit = self.unit
        first = found.array.__array_interface__["data"][0]
        low, high = byte_bounds(self._view(whole))
        at = memory.offset + first - memory.data_address
        start, end = low - first, high - first
        if unit is None:
            if (start, end) != (0, whole.nbytes):
                raise UsageError(
                    f"{self!r}: is a part of what is written in chunks or as one object, and"
                    " several processes cannot write parts of it; open the handle with mode='r'"
                )
        elif (start and (at + start) % unit) or (end != whole.nbytes and (at + end) % unit):
            raise UsageError(
                f"{self!r}: bytes {at + start} to {at + end} of it are no whole pages of {unit}"
                " bytes, and pages are written as a whole: what another process writes beside"
                " them could be lost. Make parts that begin and end at such multiples, open the"
                " array with page_size='4KiB', or the handle with mode='r'"
            )

    def _view(self, whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
        flat = (whole if whole.flags.c_contiguous else whole.T).reshape(-1).view(np.uint8)
        return np.ndarray(self.shape, self.dtype, flat, self.start, self.strides)

    def __repr__(self) -> str:
        source = public(self.source) if isinstance(self.source, str) else store_name(self.source)
        return f"<refault.Handle {source!r} mode={self.mode!r} {self.dtype}{list(self.shape)}>"


def handle(array: npt.NDArray[Any]) -> Handle:
    """Say where an array comes from, for another process, perhaps on another machine.

    Parameters
    ----------
    array
        What `refault.open` returned, or a view of it.  If it can be changed, what was changed so
        far is written to the file first.

    Returns
    -------
    Handle
        Pickle it, and call `Handle.open` there.

    Raises
    ------
    UsageError
        There is nothing that another process could open: memory without a file, a snapshot; or
        the changes of an array of mode "c".
    StoreError
        The store did not take what was changed.

    Examples
    --------
    >>> import numpy, pickle, refault, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> numpy.save(folder.name + "/numbers.npy", numpy.arange(10.0))
    >>> x = refault.open(folder.name + "/numbers.npy")
    >>> pickled = pickle.dumps(refault.handle(x[::-3]))
    >>> pickle.loads(pickled).open()
    array([9., 6., 3., 0.])
    """
    found = region(array)
    origin = found.origin
    if origin is None:
        raise UsageError(
            f"{found!r} has no handle, since there is no file or store that another process could"
            " open: save it (numpy.save), and open that file"
        )
    view = np.asarray(array)
    found._range(view)
    if found.mode == "c":
        statistics = found.statistics()
        if statistics.dirty or statistics.swap_writes:
            raise UsageError(
                f"{found!r} has changes of its own, which no other process can see: save it, or"
                " make the handle before the first change"
            )
    found.flush(view)
    first = found.array.__array_interface__["data"][0]
    return Handle(
        source=origin.source,
        mode="r+" if found.mode == "w+" else found.mode,
        parameters=origin.parameters,
        version=origin.version,
        unit=origin.unit,
        dtype=view.dtype,
        shape=view.shape,
        strides=view.strides,
        start=view.__array_interface__["data"][0] - first,
    )

"""HDF5 datasets, through h5py.

Some facts about HDF5
---------------------
* The library does one thing at a time, whoever calls it, and h5py lets go of the GIL meanwhile.
* It has a cache of chunks of its own, 1 MiB for a dataset: too small for large chunks, and of no
  use beside ours.  So it is off.
* It locks files: one that is open for writing anywhere cannot be opened for reading elsewhere.
  So our own handle, in the pager, holds the lock as long as the region lives.
* A dataset that is neither in chunks nor compressed lies in the file as in memory, at
  ``get_offset()``.  Then HDF5 is not needed to read it.
* Filters that are not its own are known to a process that has imported hdf5plugin; the pager has
  not, whatever the program has.  So it does, when it meets one.
* Errors have an errno only where the operating system gave one; a damaged chunk has none.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refault.errors import UsageError

from .arrays import Empty, Facts, FileVersion, check_dtype, require, wrong_key
from .grid import Rectangle, extents

__all__ = [
    "Hdf5Array",
    "Hdf5Place",
    "Plain",
    "find_dataset",
    "opened",
    "place_of_hdf5",
    "plain_part",
]


class Hdf5Place(NamedTuple):
    """A dataset of a file."""

    path: str
    key: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.key}"

    @property
    def far(self) -> bool:
        return False

    def open(self, *, writable: bool) -> Hdf5Array:
        """Open it."""
        return Hdf5Array(self, writable=writable)


class Hdf5Array:
    """See `ChunkedArray`."""

    def __init__(self, place: Hdf5Place, *, writable: bool) -> None:
        self._path = place.path
        self._file = _open(place.path, "r+" if writable else "r")
        self._version = None if writable else FileVersion(place.path)
        try:
            h5py = require("h5py", "hdf5")
            self.dataset = find_dataset(h5py, self._file, place.key, place.path)
            self.facts = _facts_of(self.dataset, place.name, self._version)
        except BaseException:
            self._file.close()
            raise
        self._closing = threading.Lock()

    def read(self, rectangle: Rectangle, empty: Empty = np.empty) -> npt.NDArray[Any]:
        out = empty(extents(rectangle), self.facts.dtype)
        self.read_into(rectangle, out)
        return out

    def read_into(self, rectangle: Rectangle, out: npt.NDArray[Any]) -> None:
        if out.ndim:
            self.dataset.read_direct(out, rectangle)
        else:
            out[...] = self.dataset[()]
        if self._version is not None:
            self._version.check()

    def write(self, rectangle: Rectangle, values: npt.NDArray[Any]) -> None:
        self.dataset[rectangle] = values

    def flush(self) -> None:
        self._file.flush()
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        with self._closing:
            self._file.close()

    def is_permanent(self, error: BaseException) -> bool:
        return not (isinstance(error, MemoryError) or getattr(error, "errno", None))


def _open(path: str, mode: str) -> Any:
    h5py = require("h5py", "hdf5")
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        return h5py.File(path, mode, rdcc_nbytes=0)
    except OSError as error:
        what = "for writing " if mode == "r+" else ""
        raise UsageError(
            f"{path}: cannot be opened {what}as HDF5: {error}; if it is open elsewhere, close it"
            " there first"
        ) from error


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """The file, open for reading.

    Raises
    ------
    UsageError
        It cannot be, or this process has it open for writing.
    """
    file = _open(path, "r")
    h5f = require("h5py", "hdf5").h5f
    same = os.path.realpath(path)
    for other in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE):
        if os.path.realpath(os.fsdecode(other.name)) == same and other.get_intent() & h5f.ACC_RDWR:
            file.close()
            raise UsageError(_open_for_writing(path))
    try:
        yield file
    finally:
        file.close()


def _facts_of(dataset: Any, name: str, version: FileVersion | None) -> Facts:
    """What a dataset says of itself.

    Raises
    ------
    UsageError
        It has no elements that could be paged.
    """
    if dataset.shape is None:
        raise UsageError(f"{name}: is an empty dataset, without even a shape; give another key")
    dtype = check_dtype(dataset.dtype, name)
    _check_filters(dataset, name)
    # Without chunks there is no least part.
    chunks = dataset.chunks or (1,) * len(dataset.shape)
    return Facts(
        dtype, dataset.shape, chunks, chunks, version=None if version is None else str(version)
    )


def _check_filters(dataset: Any, name: str) -> None:
    """See that HDF5 can decode a dataset.

    Raises
    ------
    UsageError
        It was encoded with a filter that is not here.
    """
    missing = _missing_filters(dataset)
    if missing:
        with contextlib.suppress(ImportError):
            importlib.import_module("hdf5plugin")
            missing = _missing_filters(dataset)
    if missing:
        raise UsageError(
            f"{name}: is encoded with {', '.join(missing)}, which HDF5 has not got here;"
            " pip install hdf5plugin, or say with HDF5_PLUGIN_PATH where it is"
        )


def _missing_filters(dataset: Any) -> list[str]:
    available = require("h5py", "hdf5").h5z.filter_avail
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number) for number in range(plist.get_nfilters())]
    return [
        f"{name.decode(errors='replace').partition(';')[0] or 'a filter'} ({code})"
        for code, _, _, name in filters
        if not available(code)
    ]


def find_dataset(h5py: Any, group: Any, key: str | None, name: str) -> Any:
    """The dataset `key` of a file or group; without a key, the only one there is.

    Raises
    ------
    UsageError
        There is none.
    """
    if key is not None:
        found = group.get(key)
        if isinstance(found, h5py.Dataset):
            return found
    names: list[str] = []
    group.visititems(lambda name, one: names.append(name) if hasattr(one, "shape") else None)
    if key is None and len(names) == 1:
        return group[names[0]]
    raise UsageError(wrong_key(name, key, names))


def place_of_hdf5(dataset: Any, *, writable: bool) -> Hdf5Place:
    """Where a dataset of the caller's is.

    Raises
    ------
    UsageError
        Another process cannot open it as it is.
    """
    file = dataset.file
    path = str(file.filename)
    if file.driver not in ("sec2", "stdio") or dataset.name is None:
        raise UsageError(
            f"{path}: this dataset is not one that another process can open by its path (driver"
            f" {file.driver!r}, name {dataset.name!r}); save the file to a disk, and open it by"
            " its path"
        )
    if file.mode != "r":
        raise UsageError(_open_for_writing(path))
    if writable:
        raise UsageError(
            f"{path}: is open in this process, and HDF5 lets nobody else write to it; close it,"
            f" then refault.open({path!r}, mode='r+', key={dataset.name!r})"
        )
    return Hdf5Place(os.path.abspath(path), dataset.name)


def _open_for_writing(path: str) -> str:
    return (
        f"{path}: is open for writing in this process, and HDF5 lets nobody else read it; close it"
        " there first, then open it by its path and key"
    )


class Plain(NamedTuple):
    """Where in a file elements lie as in memory."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def plain_part(place: Hdf5Place) -> Plain | None:
    """Where the elements lie, if HDF5 is not needed to read them."""
    h5py = require("h5py", "hdf5")
    array = Hdf5Array(place, writable=False)
    try:
        dataset, (dtype, shape, *_) = array.dataset, array.facts
        if dataset.chunks or dataset.external or dataset.is_virtual or not dataset.size:
            return None
        offset = dataset.id.get_offset()
        in_memory = h5py.h5t.py_create(dtype, logical=True)
        if offset is None or offset % dtype.alignment or dataset.id.get_type() != in_memory:
            return None
        return Plain(int(offset), dtype, shape)
    finally:
        array.close()

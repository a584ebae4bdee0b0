"""`open`: an array whose pages come from a file or a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy.typing as npt

from refault.client.files import open_file
from refault.client.options import (
    Options,
    Shape,
    check_dtype,
    check_offset,
    check_order,
    check_shape,
)
from refault.client.region import Mode, Origin, region
from refault.client.source import Wanted
from refault.client.urls import local_path, open_url, scheme
from refault.client.userstores import open_store
from refault.client.workingsets import place
from refault.errors import UsageError
from refault.sizes import Size
from refault.stores.base import Store, store_version
from refault.stores.file import file_version
from refault.stores.recognizing import is_chunked, library_of

__all__ = ["open"]

LARGEST_UNIT = 256 << 10
"""What the pager chooses at most if no page size is given."""

MODES: dict[str, Mode] = {
    "r": "r",
    "r+": "r+",
    "w+": "w+",
    "c": "c",
    "readonly": "r",
    "readwrite": "r+",
    "write": "w+",
    "copyonwrite": "c",
}


def open(
    path_or_store: str | os.PathLike[str] | Store,
    mode: str = "r",
    *,
    dtype: npt.DTypeLike | None = None,
    shape: Shape | None = None,
    offset: SupportsIndex = 0,
    order: str = "C",
    resident: Size | None = None,
    page_size: Size | None = None,
    deadline: float | None = 60.0,
    readahead: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    key: str | None = None,
    chunk_cache: Size | None = None,
    working_set: str | os.PathLike[str] | None = None,
) -> npt.NDArray[Any]:
    """Return an array whose pages are read when they are first touched.

    Parameters
    ----------
    path_or_store
        A file; a URL of an object (``s3:``, ``gs:``, ``az:``, ``https:``, or whatever fsspec
        knows); an array in chunks or its path (a `zarr.Array`, an `h5py.Dataset`, a
        `blosc2.NDArray`; ``data.zarr``, ``data.h5`` with `key`, ``data.b2nd``); or a store: an
        object with a ``size`` and a method ``read_into(offset, buffer)`` (see
        `refault.stores.base.Store`).  The store is pickled and used in the pager process.
    mode
        As in `numpy.memmap`.  "r": read only.  "r+": changes go to the file.  "w+":
        the same, and the file is created or emptied first.  "c": changes stay in
        this process.
    dtype, shape, order, offset
        As in `numpy.memmap`: `dtype` is uint8 by default, and `shape` what the file has
        room for; with "r+" and "w+" a file that is too short for `shape` grows.  Of
        a ``.npy`` file (known by its name or its first bytes, if `offset` is 0) the
        header has all this, and what is given must agree with it.  The same holds for a store that
        has attributes `dtype` and `shape`.  An array in chunks can be had in the order "F", too.
    resident
        How much of the array may be in memory, as bytes or as "2GiB"; None: bounded by
        `refault.configure` alone.
    page_size
        Bytes that come and go together: a power of two, "4KiB" to "2MiB".  None: 64 KiB
        (less, if `resident` is small); of a file that is not opened with mode "c" they become 4 KiB
        or 256 KiB while it is used, if that fits better, and `Region.page_size` says what they are.
        All regions of one file have the same; of a file that is open already, they become
        what is given here.
    deadline
        Seconds that a touch waits for a store that fails; then the program gets a
        SIGBUS.  None: for ever.
    readahead
        Whether pages are read before they are touched, when touches are in order.
    storage_options
        For a URL: credentials, endpoint and the like, as in pandas and xarray.  What is not given
        is taken from the environment, as the library does that reads the URL.
    key
        Of a Zarr group or an HDF5 file: which array of it.  It may be left out if there is only
        one.
    chunk_cache
        Of an array in chunks: how many bytes of decoded chunks the pager keeps, beside what
        `resident` allows.  None: what a read in order needs, at least 64 MiB, at most a sixteenth
        of the machine's memory.
    working_set
        A file that remembers which pages a run used: what stands there is read in the background
        as soon as the array is open, and when its last region ends the file is
        written anew.  "auto": beside the data, or in the user's cache folder (see
        docs/working-sets.md).  None: nothing is remembered.

    Returns
    -------
    numpy.ndarray
        `refault.region` gives what else can be done with it.

    Raises
    ------
    UsageError
        The parameters make no sense, or do not fit the file.  It is a ValueError.
    OSError
        The file cannot be opened (FileNotFoundError, PermissionError, ...).
    StoreError
        The store could not be read when its first bytes were needed.
    KernelError
        The kernel or the pager refuses; ``refault doctor`` tells what is missing.

    Examples
    --------
    >>> import numpy, refault, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> numpy.save(folder.name + "/numbers.npy", numpy.arange(10.0))
    >>> x = refault.open(folder.name + "/numbers.npy", resident="64MiB")
    >>> x[3:5]
    array([3., 4.])
    """
    try:
        checked = MODES[mode]
    except (KeyError, TypeError):
        raise UsageError(f"mode={mode!r} is none of {', '.join(map(repr, MODES))}") from None
    if key is not None and not isinstance(key, str):
        raise UsageError(f"key={key!r} is no name of an array; give text, as '/group/dataset'")
    wanted = Wanted(
        mode=checked,
        dtype=None if dtype is None else check_dtype(dtype),
        shape=None if shape is None else check_shape(shape),
        offset=check_offset(offset),
        order=check_order(order),
        options=Options.of(
            resident=resident, page_size=page_size, deadline=deadline, readahead=readahead
        )._replace(working_set=place(working_set, path_or_store, key)),
    )
    chunked = None
    if key is not None or chunk_cache is not None or _may_be_chunked(path_or_store):
        from refault.client.chunked import open_chunked

        chunked = open_chunked(
            path_or_store,
            wanted,
            key=key,
            chunk_cache=chunk_cache,
            storage_options=storage_options or {},
        )
    array: npt.NDArray[Any]
    unit: int | None = wanted.options.page_size or LARGEST_UNIT
    if chunked is not None:
        array, (source, version), unit = chunked, _local(path_or_store), None
    elif isinstance(path_or_store, str | os.PathLike):
        path = os.fspath(path_or_store)
        kind = scheme(path)
        if kind not in (None, "file", "local"):
            store = open_url(path, storage_options or {})
            array, source, version = open_store(store, wanted), path, store_version(store)
            unit = None
        elif storage_options:
            raise UsageError(f"{path}: is a local file, and takes no storage_options")
        else:
            path = local_path(path) if kind else path
            array, (source, version) = open_file(path, wanted), _local(path)
    elif hasattr(path_or_store, "read_into"):
        array, source = open_store(path_or_store, wanted), path_or_store
        version = store_version(path_or_store)
    else:
        raise UsageError(
            f"{path_or_store!r} is neither a path nor a store; a store has a size and a method"
            " read_into(offset, buffer)"
        )
    parameters = {
        "dtype": wanted.dtype,
        "shape": wanted.shape,
        "offset": wanted.offset,
        "order": wanted.order,
        "resident": resident,
        "page_size": page_size,
        "deadline": deadline,
        "readahead": readahead,
        "storage_options": storage_options,
        "key": key,
        "chunk_cache": chunk_cache,
    }
    if wanted.mode in ("r+", "w+"):
        version = ""
    region(array).origin = Origin(source, parameters, version, unit)
    return array


def _may_be_chunked(thing: object) -> bool:
    if isinstance(thing, str | os.PathLike):
        return is_chunked(os.fsdecode(thing), None)
    return library_of(thing) is not None


def _local(thing: object) -> tuple[object, str]:
    """What another process opens in place of a path or an object, and the version of a file."""
    if not isinstance(thing, str | bytes | os.PathLike):
        return thing, ""
    path = os.fsdecode(thing)
    if scheme(path) is not None:
        return path, ""
    return os.path.abspath(path), file_version(path) if os.path.isfile(path) else ""

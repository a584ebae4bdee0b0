"""`open`: an array whose pages come from a file or a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

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
from refault.client.urls import is_local, local_path, open_url, scheme
from refault.client.userstores import open_store
from refault.client.workingsets import place
from refault.errors import UsageError
from refault.sizes import Size
from refault.stores.base import Store, store_version
from refault.stores.file import file_version
from refault.stores.recognizing import is_chunked, library_of

if TYPE_CHECKING:
    from refault.client.handles import Handle

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
    path_or_store: str | os.PathLike[str] | Store | Handle,
    mode: str | None = None,
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
    cache: str | os.PathLike[str] | None = None,
    cache_size: Size | None = None,
) -> npt.NDArray[Any]:
    """Return an array whose pages are read when they are first touched.

    Parameters
    ----------
    path_or_store
        A file; a URL of an object (``s3:``, ``gs:``, ``az:``, ``https:``, or whatever fsspec
        knows) or of an array in Redis (``redis://HOST:PORT/DB?key=NAME``); an array in chunks or
        its path (a `zarr.Array`, an `h5py.Dataset`, a `blosc2.NDArray`; ``data.zarr``, ``data.h5``
        with `key`, ``data.b2nd``); or a store: an object with a ``size`` and a method
        ``read_into(offset, buffer)`` (see `refault.stores.base.Store`).  The store is pickled and
        used in the pager process.  Or a `Handle`, which says all the rest but `resident`.
    mode
        As in `numpy.memmap`; None: "r", or that of the handle.  "r": read only.  "r+": changes go
        to the file.  "w+":
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
    cache
        A folder on a local disk in which `refault.stores.DiskCache` keeps what was read from a URL
        or a store; other arrays and programs may share it.  With "r" and "c" only.
    cache_size
        What all that is kept in that folder may take up together; None: 10 GiB.

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
    thing: Any = path_or_store
    if not isinstance(thing, str | os.PathLike):
        from refault.client.handles import Handle

        if isinstance(thing, Handle):
            given = (dtype, shape, page_size, storage_options, key, chunk_cache, working_set, cache)
            usual = (offset, order, deadline, readahead) == (0, "C", 60.0, True)
            if not usual or any(one is not None for one in (*given, cache_size)):
                raise UsageError(f"{thing!r}: says how it is opened; give mode and resident alone")
            return thing.open(mode=mode, resident=resident)
    if key is not None and not isinstance(key, str):
        raise UsageError(f"key={key!r} is no name of an array; give text, as '/group/dataset'")
    wanted = Wanted(
        mode=_mode(mode),
        dtype=None if dtype is None else check_dtype(dtype),
        shape=None if shape is None else check_shape(shape),
        offset=check_offset(offset),
        order=check_order(order),
        options=Options.of(
            resident=resident, page_size=page_size, deadline=deadline, readahead=readahead
        )._replace(working_set=place(working_set, thing, key)),
    )
    if cache is not None:
        cache = os.path.abspath(os.fsdecode(cache))
    elif cache_size is not None:
        raise UsageError(f"cache_size={cache_size!r}: there is no cache; give its folder as cache")
    array: npt.NDArray[Any]
    source, version = thing, ""
    unit: int | None = wanted.options.page_size or LARGEST_UNIT
    if _is_chunked(thing, key, wanted.offset):
        from refault.client.chunked import open_chunked

        if cache is not None:
            raise UsageError(f"{thing!r}: is in chunks; give chunk_cache instead of cache")
        array = open_chunked(
            thing,
            wanted,
            key=key,
            chunk_cache=chunk_cache,
            storage_options=storage_options or {},
        )
        (source, version), unit = _local(thing), None
    elif key is not None or chunk_cache is not None:
        raise UsageError(
            f"{thing!r}: is neither Zarr nor HDF5 nor Blosc2; leave key and chunk_cache out"
        )
    elif isinstance(thing, str | os.PathLike) and is_local(os.fspath(thing)):
        if storage_options or cache is not None:
            left = "storage_options" if storage_options else "cache"
            raise UsageError(f"{thing}: is a local file, and takes no {left}")
        path = local_path(os.fspath(thing))
        array, (source, version) = open_file(path, wanted), _local(path)
    elif isinstance(thing, str) or hasattr(thing, "read_into"):
        store = thing
        if isinstance(thing, str):
            store, unit = open_url(thing, storage_options or {}), None
        if cache is not None:
            from refault.stores.diskcache import DEFAULT_SIZE, DiskCache

            store = DiskCache(store, cache, DEFAULT_SIZE if cache_size is None else cache_size)
        array, version = open_store(store, wanted), store_version(store)
    else:
        raise UsageError(
            f"{thing!r} is neither a path nor a store; a store has a size and a method"
            " read_into(offset, buffer)"
        )
    told: dict[str, Any] = {
        "dtype": wanted.dtype,
        "shape": wanted.shape,
        "offset": wanted.offset,
        "order": wanted.order,
        "resident": resident,
        "page_size": page_size,
        "readahead": readahead,
        "storage_options": storage_options,
        "key": key,
        "chunk_cache": chunk_cache,
        "cache": cache,
        "cache_size": cache_size,
    }
    parameters = {name: value for name, value in told.items() if value is not None}
    parameters["deadline"] = deadline
    if wanted.mode in ("r+", "w+"):
        version = ""
    region(array).origin = Origin(source, parameters, version, unit)
    return array


def _mode(mode: str | None) -> Mode:
    try:
        return MODES["r" if mode is None else mode]
    except (KeyError, TypeError):
        raise UsageError(f"mode={mode!r} is none of {', '.join(map(repr, MODES))}") from None


def _is_chunked(thing: object, key: str | None, offset: int) -> bool:
    if not isinstance(thing, str | os.PathLike):
        return library_of(thing) is not None
    # An offset is one into the bytes of a file, whatever it is.
    return is_chunked(os.fsdecode(thing), key) and not (offset and key is None)


def _local(thing: object) -> tuple[object, str]:
    """What another process opens in place of a path or an object, and the version of a file."""
    if not isinstance(thing, str | bytes | os.PathLike):
        return thing, ""
    path = os.fsdecode(thing)
    if scheme(path) is not None:
        return path, ""
    return os.path.abspath(path), file_version(path) if os.path.isfile(path) else ""

"""What `refault.open` was given: is it a chunked array?  Nothing is imported to find out."""

from __future__ import annotations

import os

__all__ = ["HDF5_SUFFIXES", "ZARR_FILES", "is_chunked", "library_of"]

HDF5_SUFFIXES = (".h5", ".hdf5", ".he5", ".h5ad")
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def is_chunked(path: str, key: str | None) -> bool:
    """Whether a path or URL is that of a chunked array, or of a file or folder of such arrays."""
    if key is not None or path.endswith((".b2nd", *HDF5_SUFFIXES)):
        return True
    if any(part.endswith((".zarr", ".zarr.zip")) for part in path.split("/")):
        return True
    return any(os.path.exists(os.path.join(path, name)) for name in ZARR_FILES)


def library_of(thing: object) -> str | None:
    """Which of the libraries an object is of; none of them is imported for that."""
    for kind in type(thing).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("zarr", "h5py", "blosc2"):
            return library
    return None

"""Arrays on local files."""

from __future__ import annotations

import os
import stat
from typing import Any

import numpy as np
import numpy.typing as npt

from refault.client import registry
from refault.client.headers import MAGIC, read_header, write_file
from refault.client.region import Layout, Region
from refault.client.source import Wanted, check_header, check_length, fit, map_memory
from refault.errors import UsageError
from refault.wire import messages

__all__ = ["open_file"]


def open_file(path: str | bytes, wanted: Wanted) -> npt.NDArray[Any]:
    """Return an array on the file `path`."""
    name = os.fsdecode(path)
    if wanted.mode == "w+":
        fd, layout, offset = _create(name, wanted)
    else:
        fd, layout, offset = _open_existing(name, wanted)
    try:
        status = os.fstat(fd)
        source = messages.FileSource(
            path=os.path.abspath(name),
            writable=wanted.mode in ("r+", "w+"),
            size=status.st_size,
        )
        memory = map_memory(
            source,
            [fd],
            mode=wanted.mode,
            private=wanted.mode == "c",
            offset=offset,
            length=layout.nbytes,
            options=wanted.options,
            file=(status.st_dev, status.st_ino),
        )
    finally:
        os.close(fd)
    return Region(memory, layout, wanted.mode, repr(name)).array


def _open_existing(name: str, wanted: Wanted) -> tuple[int, Layout, int]:
    """Return the descriptor, the array, and where it begins in the file."""
    writable = wanted.mode == "r+"
    fd = os.open(name, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        _check_regular(fd, name)
        size = os.fstat(fd).st_size
        if wanted.offset == 0 and (_is_npy(name) or os.pread(fd, len(MAGIC), 0) == MAGIC):
            with open(fd, "rb", closefd=False) as file:
                header = read_header(file, name)
            return fd, check_header(wanted, header, size, name), header.offset
        layout = fit(wanted, size, name)
        needed = wanted.offset + layout.nbytes
        if writable and needed > size:
            os.ftruncate(fd, needed)
        else:
            check_length(needed, size, name)
        return fd, layout, wanted.offset
    except BaseException:
        os.close(fd)
        raise


def _create(name: str, wanted: Wanted) -> tuple[int, Layout, int]:
    if wanted.shape is None:
        raise UsageError(f"{name}: mode 'w+' makes a new file; give its shape")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _check_regular(fd, name)
        status = os.fstat(fd)
        if registry.maps_file((status.st_dev, status.st_ino)):
            raise UsageError(
                f"{name}: is mapped by this process, and mode 'w+' would empty it; close its"
                " region first, or open it with 'r+'"
            )
        if wanted.offset == 0 and _is_npy(name):
            dtype = np.dtype(np.uint8) if wanted.dtype is None else wanted.dtype
            write_file(name, dtype, wanted.shape, wanted.order)
            with open(fd, "rb", closefd=False) as file:
                header = read_header(file, name)
            return fd, Layout(dtype, wanted.shape, wanted.order), header.offset
        layout = fit(wanted, 0, name)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, wanted.offset + layout.nbytes)
        return fd, layout, wanted.offset
    except BaseException:
        os.close(fd)
        raise


def _is_npy(name: str) -> bool:
    return name.endswith(".npy")


def _check_regular(fd: int, name: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise UsageError(
            f"{name}: is not a regular file, and has no bytes at fixed places; copy it to one, or"
            " give a store"
        )

"""The C library in python-blosc2, for reading: it is called without the GIL.

python-blosc2 itself holds the GIL while it decodes.  Its wheels have the C library as a shared one
as well, with the headers; what is called here is public (``b2nd.h``).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from .arrays import require
from .grid import Rectangle

__all__ = ["Handles", "library"]

_int64s = ctypes.POINTER(ctypes.c_int64)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C library; None: it is not there, or not the one that python-blosc2 uses itself."""
    blosc2 = require("blosc2", "blosc2")
    path = os.path.join(os.path.dirname(blosc2.__file__), "lib", "libblosc2.so")
    try:
        found = ctypes.CDLL(path)
        found.blosc2_get_version_string.restype = ctypes.c_char_p
        if found.blosc2_get_version_string().decode() != blosc2.blosclib_version.split()[0]:
            return None
        found.b2nd_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
        found.b2nd_get_slice_cbuffer.argtypes = [
            ctypes.c_void_p,
            _int64s,
            _int64s,
            ctypes.c_void_p,
            _int64s,
            ctypes.c_int64,
        ]
        found.b2nd_free.argtypes = [ctypes.c_void_p]
        found.blosc2_init()
    except (OSError, AttributeError):
        return None
    return found


class Handles:
    """An array of a file that nobody changes, for many threads; each has its own handle of it.

    Parameters
    ----------
    library
        Answer of `library`.
    path
        Of the file.
    """

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self._library = library
        self._path = os.fsencode(path)
        self._lock = threading.Lock()
        self._spare: list[ctypes.c_void_p] = []
        self._closed = False

    def read_into(self, rectangle: Rectangle, out: npt.NDArray[Any]) -> bool:
        """Fill `out`, which lies together ("C"); False: something is wrong."""
        numbers = ctypes.c_int64 * len(rectangle)
        start = numbers(*(axis.start for axis in rectangle))
        stop = numbers(*(axis.stop for axis in rectangle))
        shape = numbers(*out.shape)
        with self._handle() as handle:
            return handle is not None and not self._library.b2nd_get_slice_cbuffer(
                handle, start, stop, out.ctypes.data, shape, out.nbytes
            )

    def close(self) -> None:
        """Free the handles; those that are in use, when they no longer are."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, []
        for handle in spare:
            self._library.b2nd_free(handle)

    @contextlib.contextmanager
    def _handle(self) -> Iterator[ctypes.c_void_p | None]:
        with self._lock:
            handle = self._spare.pop() if self._spare else None
        if handle is None:
            handle = ctypes.c_void_p()
            if self._library.b2nd_open(self._path, ctypes.byref(handle)):
                yield None
                return
        try:
            yield handle
        finally:
            with self._lock:
                if not self._closed:
                    self._spare.append(handle)
                    handle = None
            if handle is not None:
                self._library.b2nd_free(handle)

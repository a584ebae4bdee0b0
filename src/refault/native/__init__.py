"""The native library, if there is one: a few hundred lines of C, loaded with ctypes.

It holds no rule of the fault path.  What it does is what costs too much in Python when it is done
for every page: to receive messages, copy bytes, call ioctls.  It is built at installation when
there is a C compiler (``hatch_build.py``); without it everything works, and is slower.
``REFAULT_NATIVE=0`` in the environment leaves it unused.
"""

from __future__ import annotations

import ctypes
import functools
import os

__all__ = ["VERSION", "available", "library"]

VERSION = 2
"""Of the interface; a library that says another number is not used."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the library; None if there is none, or if it is not wanted."""
    if os.environ.get("REFAULT_NATIVE", "1") == "0":
        return None
    path = os.path.join(os.path.dirname(__file__), "_native.so")
    try:
        found = ctypes.CDLL(path, use_errno=True)
        version = found.refault_native_version()
    except (OSError, AttributeError):
        return None
    if version != VERSION:
        return None
    numbers, count = ctypes.c_void_p, ctypes.c_int64
    found.rf_punch.argtypes = (ctypes.c_int, ctypes.c_int, numbers, count)
    found.rf_drop.argtypes = (numbers, numbers, numbers, count, numbers)
    found.rf_protect.argtypes = (ctypes.c_int, numbers, count)
    found.rf_copy.argtypes = (ctypes.c_int, ctypes.c_int, numbers, count, numbers)
    found.rf_lists_enter.argtypes = (numbers, numbers, count, numbers)
    found.rf_lists_leave.argtypes = (numbers, numbers, count, ctypes.c_int)
    found.rf_lists_forget.argtypes = (numbers, count, ctypes.c_uint32)
    found.rf_lists_hand_down.argtypes = (numbers, ctypes.c_uint32, count)
    found.rf_lists_find.argtypes = (numbers, ctypes.c_uint32)
    found.rf_lists_find.restype = ctypes.c_uint32
    found.rf_lists_put.argtypes = (numbers, ctypes.c_uint32, ctypes.c_uint32)
    found.rf_lists_find_places.argtypes = (numbers, count)
    found.rf_lists_put.restype = found.rf_lists_find_places.restype = None
    found.rf_lists_oldest.argtypes = (numbers, numbers, count)
    for function in (found.rf_lists_enter, found.rf_lists_leave, found.rf_lists_hand_down):
        function.restype = None
    found.rf_lists_forget.restype = found.rf_lists_oldest.restype = ctypes.c_int64
    for function in (found.rf_punch, found.rf_drop, found.rf_protect, found.rf_copy):
        function.restype = ctypes.c_int64
    return found


def available() -> bool:
    """Whether there is a native library, and it is wanted."""
    return library() is not None

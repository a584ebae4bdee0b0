"""Stores that users write themselves.

The client pickles its object (`dump_object`), the pager unpickles it
(`load_object`) and wraps it (`ObjectStore`), so that whatever it does wrong
becomes a `StoreError` that names store, offset and cause.
"""

from __future__ import annotations

import importlib
import io
import operator
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, cast

from refault.errors import StoreError, UsageError

from .base import Store, is_writable, store_name, store_version

__all__ = ["MAX_PICKLED", "ObjectStore", "dump_object", "import_path", "load_object"]

MAX_PICKLED = 96 << 10
"""Longest pickle of a store; it travels in one packet, with other things."""


def import_path() -> list[str]:
    """``sys.path`` of this process, such that another process can use it."""
    return [os.path.abspath(entry) for entry in sys.path]


def dump_object(store: object) -> bytes:
    """Pickle a user's store for the pager.

    Raises
    ------
    UsageError
        It is no store, another process cannot import what it is made of, or
        it is too long.
    """
    _check(store)
    name = store_name(store)
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(store)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"store {name} cannot be pickled: {_describe(error)}; open files, locks and "
            "connections in the pager, when the store is first read (see __getstate__)"
        ) from error
    pickled = file.getvalue()
    if len(pickled) >= MAX_PICKLED:
        raise UsageError(
            f"store {name} is {len(pickled)} bytes pickled, and must be less than {MAX_PICKLED}; "
            "give it a path or an address to read from instead of the data"
        )
    return pickled


def load_object(pickled: bytes, sys_path: list[str]) -> Store:
    """Unpickle a user's store in the pager.

    Parameters
    ----------
    pickled
        Answer of `dump_object`.
    sys_path
        Answer of `import_path` in the client.  What is missing here is appended.

    Raises
    ------
    UsageError
        It cannot be unpickled here, or is no store.
    """
    for entry in sys_path:
        if entry not in sys.path:
            sys.path.append(entry)
    importlib.invalidate_caches()
    try:
        store = pickle.loads(pickled)
    except BaseException as error:
        raise UsageError(
            f"the pager cannot unpickle the store: {_describe(error)}; its class must be in a "
            "module that can be imported without the program, and what it opens must exist"
        ) from error
    return _check(store)


class ObjectStore:
    """A user's store whose every failure is a `StoreError`.

    Parameters
    ----------
    store
        Has ``size`` and ``read_into``; perhaps ``write_from``, ``flush``,
        ``read_nowait``, ``close`` and ``name``.

    Attributes
    ----------
    writable
        Whether it has ``write_from`` and does not say ``writable = False``.
    buffered
        Whether what was written is safe after `flush` only.
    read_nowait
        There only if the store has it.  It never raises: where the store's
        does, the answer is False, and `read_into` finds out why.
    fetch
        There only if the store has it.
    parallel, read_bytes
        There only if the store has them: see `refault.stores.base.Store`.

    Notes
    -----
    The store must not keep the buffer of `read_into` for later: it is released
    when the call ends.  What `write_from` is given is a copy, and may be kept.
    """

    read_nowait: Callable[[int, memoryview], bool]
    fetch: Callable[[int, int], list[memoryview] | None]

    def __init__(self, store: object) -> None:
        checked = _check(store)
        self._store: Any = store
        self.name = store_name(store)
        self.size = operator.index(checked.size)
        self.writable = is_writable(store)
        self.buffered = bool(getattr(store, "buffered", False))
        if callable(getattr(store, "read_nowait", None)):
            self.read_nowait = self._read_nowait
        if callable(getattr(store, "fetch", None)):
            self.fetch = self._fetch
        for wish in ("parallel", "read_bytes", "ahead_bytes"):
            if hasattr(store, wish):
                setattr(self, wish, operator.index(getattr(store, wish)))

    @property
    def version(self) -> str:
        """What the store says."""
        try:
            return store_version(self._store)
        except Exception:
            return ""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Have the store fill `buffer`, or raise `StoreError`."""
        view = memoryview(buffer)
        try:
            answer = self._store.read_into(offset, view)
        except BaseException as error:
            _release(view)
            raise self._failed("read", offset, error) from error
        kept = not _release(view)
        self._check_answer("read_into", "read", offset, len(buffer), answer)
        if kept:
            raise StoreError(
                f"{self.name}: cannot read at offset {offset}: its read_into kept a reference to "
                "the buffer; let it drop every array or view of the buffer before it returns"
            )

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Have the store take all of `buffer`, or raise `StoreError`."""
        if not self.writable:
            raise StoreError(
                f"{self.name}: cannot write at offset {offset}: the store has no write_from; "
                "open the region with mode 'r' or 'c'",
                permanent=True,
            )
        try:
            answer = self._store.write_from(offset, memoryview(bytes(buffer)))
        except BaseException as error:
            raise self._failed("write", offset, error) from error
        self._check_answer("write_from", "write", offset, len(buffer), answer)

    def flush(self) -> None:
        """Have the store make everything durable, if it knows how."""
        flush = getattr(self._store, "flush", None)
        if flush is None:
            return
        try:
            flush()
        except BaseException as error:
            raise StoreError(
                f"{self.name}: cannot make changes durable: {_describe(error)}; "
                "see what the store needs, then flush again",
                permanent=_is_permanent(error),
            ) from error

    def close(self) -> None:
        """Close the store, if it knows how."""
        close = getattr(self._store, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException as error:
            raise StoreError(
                f"{self.name}: cannot be closed: {_describe(error)}; "
                "see what its close method does",
                permanent=True,
            ) from error

    def _fetch(self, offset: int, length: int) -> list[memoryview] | None:
        try:
            found = self._store.fetch(offset, length)
            if found is None:
                return None
            parts = found if isinstance(found, list) else [found]
            answer = [memoryview(part).cast("B") for part in parts]
        except BaseException as error:
            raise self._failed("read", offset, error) from error
        self._check_answer("fetch", "read", offset, length, sum(map(len, answer)))
        return answer

    def _read_nowait(self, offset: int, buffer: memoryview) -> bool:
        view = memoryview(buffer)
        try:
            answer = self._store.read_nowait(offset, view)
        except BaseException:
            answer = False
        return _release(view) and answer is True

    def _check_answer(self, method: str, verb: str, offset: int, length: int, answer: Any) -> None:
        if answer is None:
            return
        if isinstance(answer, bool) or not hasattr(answer, "__index__"):
            raise StoreError(
                f"{self.name}: cannot {verb} at offset {offset}: its {method} returned "
                f"{type(answer).__name__}; let it return None or the number of bytes",
                permanent=True,
            )
        if answer != length:
            raise StoreError(
                f"{self.name}: cannot {verb} at offset {offset}: its {method} returned {answer} "
                f"instead of {length}, a short answer refused; let it go on until all bytes "
                "are done, or raise"
            )

    def _failed(self, verb: str, offset: int, error: BaseException) -> StoreError:
        if isinstance(error, StoreError) and str(error).startswith(f"{self.name}: "):
            return StoreError(str(error), permanent=error.permanent)  # It has said it all.
        return StoreError(
            f"{self.name}: cannot {verb} at offset {offset}: {_describe(error)}; "
            "see what the store needs to answer",
            permanent=_is_permanent(error),
        )


class _Pickler(pickle.Pickler):
    """Refuses classes and functions that another process cannot import.

    `persistent_id` is asked about every object on the way, so we hear of a class
    before pickle does, and can say what to do about it.
    """

    def persistent_id(self, obj: Any) -> None:
        if not callable(obj):
            return
        qualname = getattr(obj, "__qualname__", None)
        module = getattr(obj, "__module__", None)
        if isinstance(qualname, str) and isinstance(module, str):
            _check_importable(module, qualname)


def _check_importable(module: str, qualname: str) -> None:
    step = "move it to a module that can be imported (a .py file), and import it from there"
    if module in ("__main__", "__mp_main__"):
        raise UsageError(f"{qualname} is defined in the program itself; {step}")
    if "<locals>" in qualname or "<lambda>" in qualname:
        raise UsageError(f"{module}.{qualname} is defined inside a function; {step}")
    if getattr(sys.modules.get(module), "__spec__", None) is None:
        raise UsageError(f"{qualname} is in {module}, which is not an importable module; {step}")


def _check(store: Any) -> Store:
    name = store_name(store)
    if isinstance(store, type):
        raise UsageError(f"{store.__qualname__} is a class; give an object of it")
    if not callable(getattr(store, "read_into", None)):
        raise UsageError(
            f"{name} is no store: it has no method read_into(offset, buffer); write one that "
            "fills all of buffer or raises"
        )
    try:
        size = store.size
    except Exception as error:
        raise UsageError(
            f"{name} is no store: asking its size failed: {_describe(error)}; give it an "
            "attribute size, in bytes"
        ) from error
    if not hasattr(size, "__index__") or isinstance(size, bool) or size < 0:
        raise UsageError(
            f"{name} is no store: its size is {size!r}; give a number of bytes (an int, >= 0)"
        )
    return cast("Store", store)


def _release(view: memoryview) -> bool:
    try:
        view.release()
    except BufferError:
        return False
    return True


def _is_permanent(error: BaseException) -> bool:
    return getattr(error, "permanent", False) is True


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

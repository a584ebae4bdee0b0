"""What stores that stand in front of another store have in common."""

from __future__ import annotations

from typing import Any

from .base import Store, store_name
from .objects import ObjectStore

__all__ = ["StoreWrapper"]


class StoreWrapper:
    """A store that passes everything on to another one, strictly.

    What the inner store says of itself beside its methods (a version, hints, a
    layout) is what the wrapper says, too.  Its answers are checked as the pager
    checks them: a short one is a `StoreError`.

    Parameters
    ----------
    store
        Any store.

    Notes
    -----
    The optional methods ``read_nowait`` and ``where`` are not passed on: both would
    go around the wrapper.
    """

    def __init__(self, store: Store) -> None:
        self._inner = ObjectStore(store)
        self.store = store
        self.name = store_name(store)
        self.size = self._inner.size
        self.writable = self._inner.writable

    def read_into(self, offset: int, buffer: memoryview) -> Any:
        """Have the inner store fill `buffer`."""
        self._inner.read_into(offset, buffer)

    def write_from(self, offset: int, buffer: memoryview) -> Any:
        """Have the inner store take all of `buffer`."""
        self._inner.write_from(offset, buffer)

    def flush(self) -> None:
        """Have the inner store make everything durable."""
        self._inner.flush()

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()

    def __getattr__(self, attribute: str) -> Any:
        # Asked only for what is not found here; `store` itself is missing while unpickling.
        if attribute.startswith("_") or attribute == "store":
            raise AttributeError(attribute)
        value = getattr(self.store, attribute)
        if callable(value):
            raise AttributeError(
                f"{type(self).__qualname__} does not pass on the method {attribute} of its store"
            )
        return value

"""Whether bytes lie in a store."""

from __future__ import annotations

from refault.errors import StoreError

from .base import Store, store_name

__all__ = ["check_range"]


def check_range(store: Store, offset: int, length: int, verb: str) -> None:
    """See that bytes lie in `store`.

    Parameters
    ----------
    store
        Which one.
    offset, length
        The bytes.
    verb
        What is to be done with them: "read" or "write".

    Raises
    ------
    StoreError
        They are not in it.
    """
    if not 0 <= offset <= store.size - length:
        raise StoreError(
            f"{store_name(store)}: cannot {verb} {length} bytes at offset {offset}: the store ends"
            f" at {store.size}; ask for less",
            permanent=True,
        )

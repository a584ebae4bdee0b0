"""Arrays on stores of the user's own."""

from __future__ import annotations

import io
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from refault.client.headers import MAGIC, MAX_HEADER, read_header
from refault.client.memory import Memory
from refault.client.options import check_dtype, check_order, check_shape
from refault.client.region import Layout, Region
from refault.client.source import (
    Wanted,
    check_agreement,
    check_header,
    check_length,
    fit,
    map_memory,
)
from refault.errors import UsageError
from refault.stores.base import Store, is_writable, store_name
from refault.stores.objects import dump_object
from refault.wire import messages

__all__ = ["open_store"]

PROLOGUE = MAX_HEADER + len(MAGIC) + 6
"""The most bytes of a ``.npy`` file before its data."""


def open_store(store: Store, wanted: Wanted) -> npt.NDArray[Any]:
    """Return an array on a store."""
    pickled = dump_object(store)
    name = store_name(store)
    size = operator.index(store.size)
    if wanted.mode == "w+":
        raise UsageError(f"store {name}: cannot be created anew; open it with mode 'r+'")
    if wanted.mode == "r+" and not callable(getattr(store, "write_from", None)):
        raise UsageError(
            f"store {name}: has no write_from, and so cannot be changed; open it with 'r' or 'c'"
        )
    if wanted.mode == "r+" and not is_writable(store):
        reason = getattr(store, "readonly", "") or "it says that it is not writable"
        raise UsageError(f"store {name}: cannot be changed: {reason}; open it with 'r' or 'c'")
    declared = _declared(store, wanted, f"store {name}")
    guess = wanted.nothing_said or (name.endswith(".npy") and wanted.offset == 0)
    if declared is not None:
        layout, guess = declared, False
        check_length(layout.nbytes, size, f"store {name}")
    elif guess:
        # The whole store is mapped, and its first bytes tell what it is.
        layout = Layout(np.dtype(np.uint8), (size,), "C")
    else:
        layout = fit(wanted, size, name)
        check_length(wanted.offset + layout.nbytes, size, f"store {name}")
    memory = map_memory(
        messages.ObjectSource(pickled, wanted.mode == "r+"),
        (),
        mode=wanted.mode,
        private=wanted.mode == "c",
        offset=wanted.offset,
        length=layout.nbytes,
        options=wanted.options,
    )
    if guess and memory is not None:
        layout = _look(memory, layout, wanted, name)
    return Region(memory, layout, wanted.mode, f"store {name!r}").array


def _declared(store: Store, wanted: Wanted, name: str) -> Layout | None:
    """What array a store says that it holds, with ``dtype``, ``shape`` and perhaps ``order``."""
    if not (hasattr(store, "dtype") and hasattr(store, "shape")):
        return None
    layout = Layout(
        check_dtype(store.dtype),
        check_shape(store.shape),
        check_order(getattr(store, "order", "C")),
    )
    check_agreement(wanted, layout, name, "the store")
    if wanted.offset:
        raise UsageError(f"{name}: holds one array, from its first byte on; leave offset out")
    return layout


def _look(memory: Memory, whole: Layout, wanted: Wanted, name: str) -> Layout:
    """Read the first bytes, and say what array the store holds."""
    region = Region(memory, whole, wanted.mode, f"store {name!r}")
    first = slice(0, PROLOGUE)
    region.populate(first)
    start = region.array[first].tobytes()
    if not (start.startswith(MAGIC) or name.endswith(".npy")):
        return fit(wanted, whole.nbytes, f"store {name}")
    header = read_header(io.BytesIO(start), f"store {name}")
    layout = check_header(wanted, header, whole.nbytes, f"store {name}")
    return layout._replace(offset=header.offset)

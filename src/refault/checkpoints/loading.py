"""From a session of Icechunk to lazily paged arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from refault.client.opening import open
from refault.client.region import region
from refault.errors import UsageError

from .instant import place_of
from .layout import Layout, arrays_in, check_summary, read
from .store import CheckpointStore, session_bytes
from .tip import KnownArray

if TYPE_CHECKING:
    from icechunk import Session, SnapshotInfo

__all__ = ["load_arrays", "open_stores"]


def load_arrays(
    stores: list[tuple[str, Layout, CheckpointStore]],
    mode: Literal["r", "c"],
    options: dict[str, Any],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, KnownArray]]:
    """Open arrays on their stores.

    Returns
    -------
    arrays
        By name.
    known
        If they may be written to: what they hold now, so that what is changed can be told.
    """
    arrays = {
        name: open(
            store, mode, dtype=layout.dtype, shape=layout.shape, order=layout.grid.order, **options
        )
        for name, layout, store in stores
    }
    layouts = {name: layout for name, layout, _ in stores}
    return arrays, _known(arrays, layouts) if mode == "c" else {}


def open_stores(
    session: Session, info: SnapshotInfo, place: str
) -> list[tuple[str, Layout, CheckpointStore]]:
    """All arrays of a checkpoint, as stores.

    Raises
    ------
    UsageError
        An array is not stored as we store them.
    StoreError
        What the checkpoint says of its arrays is damaged.
    """
    layouts: dict[str, Layout] = {}
    for name, stored in arrays_in(session.store):
        layout = read(stored)
        if layout is None:
            raise UsageError(
                f"{place}: the array {name} was not stored by refault, and cannot be paged in:"
                " its chunks are not pieces of its memory with a checksum; read it with zarr.open"
            )
        layouts[name] = layout
    check_summary(info, layouts)
    as_bytes = session_bytes(session)
    return [
        (
            name,
            layout,
            CheckpointStore(
                as_bytes,
                name,
                layout.grid,
                compressed=layout.compressed,
                name=f"{place} {name} ({info.id})",
            ),
        )
        for name, layout in layouts.items()
    ]


def _known(
    arrays: dict[str, npt.NDArray[Any]], layouts: dict[str, Layout]
) -> dict[str, KnownArray]:
    known = {}
    for name, array in arrays.items():
        known[name] = KnownArray(layouts[name])
        known[name].place = place_of(array)
        known[name].mark = region(array).mark()
    return known

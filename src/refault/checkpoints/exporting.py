"""Copying a checkpoint to a folder of plain Zarr, for readers that do not know Icechunk."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from refault.errors import StoreError, UsageError

from .layout import Layout, arrays_in, check_summary, read
from .records import Exported
from .verifying import AT_ONCE, Damage, read_chunk

if TYPE_CHECKING:
    from icechunk import IcechunkStore, Session, SnapshotInfo

__all__ = ["export_arrays"]


def export_arrays(session: Session, info: SnapshotInfo, folder: str | os.PathLike[str]) -> Exported:
    """Copy all that is stored, as it is stored; the folder is there as a whole, or not at all.

    Raises
    ------
    StoreError
        Something is damaged.
    UsageError
        Something has the name of the folder.
    """
    path = os.path.abspath(folder)
    if os.path.lexists(path):
        raise UsageError(f"{os.fspath(folder)} is there already; give the name of a new folder")
    part = f"{path}.{secrets.token_hex(4)}.part"
    os.makedirs(part)
    try:
        done = asyncio.run(_export(session, info, part))
        os.rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return done


async def _export(session: Session, info: SnapshotInfo, folder: str) -> Exported:
    from zarr.storage import LocalStore

    store, target = session.store, LocalStore(folder)
    arrays = await asyncio.to_thread(lambda: list(arrays_in(store)))
    layouts = {name: layout for name, array in arrays if (layout := read(array)) is not None}
    if len(layouts) == len(arrays):
        check_summary(info, layouts)
    chunks = nbytes = 0
    keys = _keys(store, (name for name, _ in arrays), layouts)
    async for some in _batches(keys):
        copied = await asyncio.gather(*(_copy(store, target, key, layout) for key, layout in some))
        chunks += sum(not key.endswith("zarr.json") for key, _ in some)
        nbytes += sum(copied)
    return Exported(len(arrays), chunks, nbytes)


async def _keys(
    store: IcechunkStore, names: Iterable[str], layouts: dict[str, Layout]
) -> AsyncIterator[tuple[str, Layout | None]]:
    """All there must be: a chunk that is not there would be zeros in the copy."""
    others = tuple(f"{name}/" for name in names if name not in layouts)
    async for key in store.list():
        if key.endswith("zarr.json") or key.startswith(others):
            yield key, None
    for name, layout in layouts.items():
        for number in range(layout.grid.chunks):
            yield f"{name}/{layout.grid.key(number)}", layout


async def _batches(
    keys: AsyncIterator[tuple[str, Layout | None]],
) -> AsyncIterator[list[tuple[str, Layout | None]]]:
    some: list[tuple[str, Layout | None]] = []
    async for one in keys:
        some.append(one)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some


async def _copy(store: IcechunkStore, target: Any, key: str, layout: Layout | None) -> int:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.buffer.cpu import Buffer

    if layout is None:
        found = await store.get(key, default_buffer_prototype())
        stored: bytes | Damage = Damage(key, "it is gone") if found is None else found.to_bytes()
    else:
        stored = await read_chunk(store, key, layout)
    if isinstance(stored, Damage):
        raise StoreError(
            f"{key} is damaged: {stored.problem}; export an earlier checkpoint, and see what else"
            " is damaged with `refault checkpoints verify`",
            permanent=True,
        )
    await target.set(key, Buffer.from_bytes(stored))
    return len(stored)

"""Reading a whole checkpoint, and comparing it with its checksums."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from refault.errors import StoreError

from .codec import Damaged, decode
from .layout import Layout, arrays_in, check_summary, read

if TYPE_CHECKING:
    from icechunk import IcechunkStore, Session, SnapshotInfo

__all__ = ["AT_ONCE", "Damage", "Verified", "read_chunk", "verify_arrays"]

AT_ONCE = 64
"""Chunks that are read at a time."""


class Damage(NamedTuple):
    """Something that cannot be read as it was written.

    Attributes
    ----------
    key
        Its name in Zarr; empty if it is the list of arrays that is damaged.
    problem
        What is wrong with it.
    """

    key: str
    problem: str


class Verified(NamedTuple):
    """What reading a whole checkpoint has shown.

    Attributes
    ----------
    arrays, chunks, nbytes
        How much was read; bytes as they are stored.
    damage
        What could not be read; nothing, if all is well.
    unchecked
        Arrays that were stored by others and carry no checksum that we know.
    """

    arrays: int
    chunks: int
    nbytes: int
    damage: list[Damage]
    unchecked: list[str]


def verify_arrays(session: Session, info: SnapshotInfo) -> Verified:
    """Read all chunks of all arrays."""
    return asyncio.run(_verify(session, info))


async def _verify(session: Session, info: SnapshotInfo) -> Verified:
    chunks = nbytes = 0
    damage: list[Damage] = []
    arrays = await asyncio.to_thread(lambda: list(arrays_in(session.store)))
    layouts = {name: layout for name, array in arrays if (layout := read(array)) is not None}
    unchecked = [name for name, _ in arrays if name not in layouts]
    if not unchecked:
        try:
            check_summary(info, layouts)
        except StoreError as error:
            damage.append(Damage("", str(error)))
    for name, layout in layouts.items():
        grid = layout.grid
        for first in range(0, grid.chunks, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, grid.chunks))
            keys = [f"{name}/{grid.key(number)}" for number in numbers]
            found = await asyncio.gather(*(_check(session.store, key, layout) for key in keys))
            chunks += len(keys)
            damage += (one for one in found if isinstance(one, Damage))
            nbytes += sum(one for one in found if isinstance(one, int))
    return Verified(len(arrays), chunks, nbytes, damage, unchecked)


async def _check(store: IcechunkStore, key: str, layout: Layout) -> Damage | int:
    found = await read_chunk(store, key, layout)
    return found if isinstance(found, Damage) else len(found)


async def read_chunk(store: IcechunkStore, key: str, layout: Layout) -> bytes | Damage:
    """Return a chunk as it is stored, if it can be decoded."""
    from zarr.core.buffer import default_buffer_prototype

    try:
        found = await store.get(key, default_buffer_prototype())
    except Exception as error:
        return Damage(key, f"it cannot be read: {error}")
    if found is None:
        return Damage(key, "it is gone")
    stored = found.to_bytes()
    try:
        await asyncio.to_thread(
            decode, stored, layout.grid.chunk_bytes, compressed=layout.compressed
        )
    except Damaged as error:
        return Damage(key, str(error))
    return stored

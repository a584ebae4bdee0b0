"""What users are told about checkpoints."""

from __future__ import annotations

import datetime
from typing import Any, NamedTuple

__all__ = ["ArrayDiff", "Checkpoint", "Collected", "Exported", "Progress", "StoredArray"]


class Checkpoint(NamedTuple):
    """One version of the arrays, whole and final.

    Attributes
    ----------
    id
        Icechunk's name of it.
    message
        What was said when it was saved.
    time
        When it was committed.
    parent
        The checkpoint before it; None for the first.
    metadata
        What was given to `save`.
    nbytes
        Bytes of its arrays.
    written
        Bytes of the chunks that were written for it.
    """

    id: str
    message: str
    time: datetime.datetime
    parent: str | None
    metadata: dict[str, Any]
    nbytes: int
    written: int


class StoredArray(NamedTuple):
    """An array of a checkpoint.

    Attributes
    ----------
    name, dtype, shape, nbytes
        As when it was saved.
    order
        "C" or "F"; "" if another program stored it, in chunks that are not pieces of memory.
    chunks, chunk_shape
        How it is stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    order: str
    chunks: int
    chunk_shape: tuple[int, ...]


class ArrayDiff(NamedTuple):
    """How one array of two checkpoints differs.

    Attributes
    ----------
    name
        Of the array.
    what
        "added", "removed", "changed", or "replaced" if it has another shape or type.
    chunks, nbytes
        That were written anew, and how many bytes of the array they hold.
    """

    name: str
    what: str
    chunks: int
    nbytes: int


class Collected(NamedTuple):
    """What a garbage collection has removed."""

    nbytes: int
    objects: int


class Exported(NamedTuple):
    """What was copied to a folder.

    Attributes
    ----------
    arrays, chunks, nbytes
        How many, and bytes as they are stored.
    """

    arrays: int
    chunks: int
    nbytes: int


class Progress(NamedTuple):
    """How far a save is, in bytes of memory.

    Attributes
    ----------
    done
        Compared, and written if need be.
    total
        That may have changed; 0 until that is known.
    """

    done: int
    total: int

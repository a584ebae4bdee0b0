"""Reading checkpoints without refault, as anybody with zarr and icechunk does."""

from __future__ import annotations

import os
from typing import Any

import icechunk
import numpy as np
import numpy.typing as npt
import zarr

__all__ = ["read_with_zarr"]


def read_with_zarr(path: str | os.PathLike[str], **ref: Any) -> dict[str, npt.NDArray[Any]]:
    """Return all arrays of a checkpoint.

    Parameters
    ----------
    path
        The folder.
    **ref
        Of `icechunk.Repository.readonly_session`; by default the branch "main".
    """
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(os.fspath(path)))
    session = repository.readonly_session(**(ref or {"branch": "main"}))
    group = zarr.open_group(session.store, mode="r")
    return {
        name: np.asarray(array[...])
        for name, array in group.members(max_depth=None)
        if isinstance(array, zarr.Array)
    }

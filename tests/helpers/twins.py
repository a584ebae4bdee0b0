"""Does the same to an array of refault and to a `numpy.memmap` of a copy of the file.

For the code in child processes, see `helpers.child_tools`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import refault

__all__ = ["data", "same", "twins"]

DICE = np.random.default_rng(25)


def data(nbytes: int) -> bytes:
    """Random bytes, the same in every run."""
    return DICE.integers(0, 256, nbytes, np.uint8).tobytes()


def same(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> None:
    """See that two arrays are alike in all that a program can see."""
    assert (ours.dtype, ours.shape, ours.strides) == (theirs.dtype, theirs.shape, theirs.strides)
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE", "ALIGNED"):
        assert ours.flags[flag] == theirs.flags[flag], flag
    assert ours.tobytes("A") == theirs.tobytes("A"), ours.dtype


def views(x: npt.NDArray[Any], seed: int) -> Iterator[npt.NDArray[Any]]:
    """Parts of an array, most of them not contiguous."""
    yield x
    if x.ndim == 0:
        return
    yield x[::-1]
    yield x[1::3]
    yield x.T
    if x.ndim > 1:
        yield x[..., ::2]
        yield x[::2, 1:]
    dice = np.random.default_rng(seed)
    for _ in range(3):
        low, high = sorted(dice.integers(0, len(x) + 1, 2))
        yield x[low:high]


def change(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> None:
    """Write the same into both, in many ways."""
    values = np.frombuffer(data(theirs.nbytes), theirs.dtype).reshape(theirs.shape)
    seed = int(DICE.integers(1 << 30))
    for one, other, new in zip(
        views(ours, seed), views(theirs, seed), views(values, seed), strict=True
    ):
        one[...] = new[...]
        other[...] = new[...]
        same(one, other)


def twins(
    folder: str,
    content: bytes,
    mode: Any,
    *,
    page_size: int | None = None,
    resident: int | None = None,
    **how: Any,
) -> None:
    """Map both, look, change, look again, close, and compare the files."""
    paths = [os.path.join(folder, name) for name in ("ours", "theirs")]
    for path in paths:
        pathlib.Path(path).write_bytes(content)
    ours = refault.open(paths[0], mode, page_size=page_size, resident=resident, **how)
    theirs = np.memmap(paths[1], mode=mode, **{"dtype": "u1", **how})
    same(ours, theirs)
    region = refault.region(ours)
    if mode != "r":
        change(ours, theirs)
        same(ours, theirs)
        region.evict()
        same(ours, theirs)
    del ours
    region.close()
    theirs.flush()
    del theirs
    found = [pathlib.Path(path).read_bytes() for path in paths]
    assert found[0] == found[1], (mode, how, len(found[0]), len(found[1]))
    if mode in ("r", "c"):
        assert found[0] == content

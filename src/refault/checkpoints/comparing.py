"""How two checkpoints differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layout import arrays_in, read
from .records import ArrayDiff

if TYPE_CHECKING:
    from icechunk import Repository

__all__ = ["compare"]


def compare(repository: Repository, a: str, b: str) -> list[ArrayDiff]:
    """List the arrays of two checkpoints that differ, from `a` to `b`."""
    before, after = _arrays(repository, a), _arrays(repository, b)
    replaced: set[str] = set()
    updated: dict[str, set[tuple[int, ...]]] = {}
    base = _common_ancestor(repository, a, b)
    for end in {a, b} - {base}:
        diff = repository.diff(from_snapshot_id=base, to_snapshot_id=end)
        replaced |= {path.strip("/") for path in diff.new_arrays | diff.deleted_arrays}
        for path, chunks in diff.updated_chunks.items():
            updated.setdefault(path.strip("/"), set()).update(map(tuple, chunks))
    found = []
    for name in sorted(before | after):
        if name not in after:
            found.append(_whole(name, "removed", before[name]))
        elif name not in before:
            found.append(_whole(name, "added", after[name]))
        elif before[name].metadata != after[name].metadata:
            found.append(_whole(name, "replaced", after[name]))
        elif name in replaced:
            found.append(_whole(name, "changed", after[name]))
        elif updated.get(name):
            found.append(_changed(name, after[name], updated[name]))
    return found


def _arrays(repository: Repository, id: str) -> dict[str, Any]:
    return dict(arrays_in(repository.readonly_session(snapshot_id=id).store))


def _common_ancestor(repository: Repository, a: str, b: str) -> str:
    """The newest checkpoint that both come from."""
    ours = {info.id for info in repository.ancestry(snapshot_id=a)}
    return next(info.id for info in repository.ancestry(snapshot_id=b) if info.id in ours)


def _whole(name: str, what: str, array: Any) -> ArrayDiff:
    layout = read(array)
    return ArrayDiff(
        name, what, array.nchunks if layout is None else layout.grid.chunks, array.nbytes
    )


def _changed(name: str, array: Any, chunks: set[tuple[int, ...]]) -> ArrayDiff:
    layout = read(array)
    if layout is None:
        size = array.dtype.itemsize
        for length in array.chunks:
            size *= length
        return ArrayDiff(name, "changed", len(chunks), len(chunks) * size)
    grid = layout.grid
    spans = [grid.span(grid.number_of(index)) for index in chunks]
    return ArrayDiff(name, "changed", len(chunks), sum(stop - start for start, stop in spans))

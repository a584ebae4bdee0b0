"""An array as Zarr describes it, and as it lies in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refault.errors import Error, StoreError, UsageError

from .grid import Grid, Order
from .records import StoredArray

if TYPE_CHECKING:
    from icechunk import IcechunkStore, SnapshotInfo

__all__ = [
    "Layout",
    "arrays_in",
    "check_name",
    "check_summary",
    "create",
    "describe",
    "read",
    "summarize",
]

KINDS = "biufcmM"
"""Kinds of numpy types that Zarr v3 has for good."""


class Layout(NamedTuple):
    """What makes one array like another, but for its content."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    grid: Grid
    compressed: bool

    def like(self, other: Layout) -> bool:
        """Whether an array with this layout can be stored as `other` is."""
        return (self.dtype, self.shape, self.grid.order) == (
            other.dtype,
            other.shape,
            other.grid.order,
        )

    @classmethod
    def of(
        cls, array: npt.NDArray[Any], name: str, chunk_bytes: int, *, compressed: bool
    ) -> Layout:
        """How `array` is to be stored.

        Raises
        ------
        UsageError
            Zarr has no such type, or the array is not one piece of memory.
        """
        dtype = array.dtype
        if dtype.kind not in KINDS or dtype.char in "gG":
            raise UsageError(
                f"{name}: Zarr has no type like {dtype}; save a view as plain numbers,"
                f" such as {name}.view('u1')"
            )
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise UsageError(
                f"{name}: its elements lie apart in memory; save the array that it is a view of,"
                " or a copy"
            )
        order: Order = "C" if array.flags.c_contiguous else "F"
        grid = Grid.of(array.shape, dtype.itemsize, order, chunk_bytes)
        return cls(dtype, array.shape, grid, compressed)


def check_name(name: object) -> str:
    """Return the name of an array.

    Raises
    ------
    UsageError
        It cannot be a path in Zarr.
    """
    if not isinstance(name, str):
        raise UsageError(f"the name {name!r} is no text; name arrays as in a path: 'model/weights'")
    for part in name.split("/"):
        if part.strip(".") == "" or part.startswith("__") or part == "zarr.json":
            raise UsageError(
                f"the name {name!r} has a part {part!r}, which Zarr does not allow; name arrays"
                " as in a path: 'model/weights'"
            )
    return name


def create(store: IcechunkStore, name: str, layout: Layout, level: int | None) -> None:
    """Make an array without a chunk, in place of what there is.

    Its dimensions have names of its own: xarray wants names, and one length for each of a group.
    """
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

    zarr.create_array(
        store,
        name=name,
        shape=layout.shape,
        chunks=layout.grid.chunk_shape,
        dtype=layout.dtype,
        fill_value=np.zeros((), layout.dtype)[()],
        filters=[TransposeCodec(order=_backwards(layout.shape))]
        if layout.grid.order == "F"
        else None,
        serializer=BytesCodec(endian="little" if _is_little(layout.dtype) else "big"),
        dimension_names=[
            f"{name.rpartition('/')[2]}_dim_{axis}" for axis in range(len(layout.shape))
        ],
        compressors=[*([] if level is None else [ZstdCodec(level=level)]), Crc32cCodec()],
        overwrite=True,
    )


def read(array: Any) -> Layout | None:
    """Return the layout of an array of zarr's; None if it is not one of ours."""
    codecs = {codec["name"]: codec for codec in array.metadata.to_dict()["codecs"]}
    names = list(codecs)
    order: Order = "C"
    if names[:1] == ["transpose"]:
        order = "F"
        del names[0]
        if tuple(codecs["transpose"]["configuration"]["order"]) != _backwards(array.shape):
            return None
    if names not in (["bytes", "crc32c"], ["bytes", "zstd", "crc32c"]):
        return None
    if any(np.asarray(array.fill_value, array.dtype).tobytes()):
        return None
    big = codecs["bytes"].get("configuration", {}).get("endian") == "big"
    dtype = array.dtype.newbyteorder(">" if big else "<")
    grid = Grid.read(array.shape, array.chunks, dtype.itemsize, order)
    if grid is None or array.metadata.chunk_key_encoding.separator != "/":
        return None
    return Layout(dtype, array.shape, grid, "zstd" in names)


def describe(name: str, array: Any) -> StoredArray:
    """What there is to say of an array of zarr's."""
    layout = read(array)
    return StoredArray(
        name,
        str(array.dtype if layout is None else layout.dtype),
        tuple(array.shape),
        int(array.nbytes),
        "" if layout is None else layout.grid.order,
        int(array.nchunks),
        tuple(array.chunks),
    )


def summarize(message: str, metadata: dict[str, Any], layouts: Mapping[str, Layout]) -> str:
    """Return a checksum of all that is said in a checkpoint; Icechunk has none of its own."""
    from xxhash import xxh3_128_hexdigest

    arrays = [
        (
            name,
            layout.dtype.str,
            layout.shape,
            layout.grid.order,
            layout.grid.chunk_shape,
            layout.compressed,
        )
        for name, layout in sorted(layouts.items())
    ]
    return xxh3_128_hexdigest(json.dumps([message, metadata, arrays], sort_keys=True).encode())


def check_summary(info: SnapshotInfo, layouts: Mapping[str, Layout]) -> None:
    """Compare what a checkpoint says with the checksum of what was said, if it has one.

    Raises
    ------
    StoreError
        They do not fit.
    """
    with _what_is_written_down():
        said = info.metadata.get("refault", {}).get("checksum")
        right = said is None or said == summarize(info.message, info.metadata["user"], layouts)
    if not right:
        raise StoreError(
            f"the books of checkpoint {info.id} are damaged: its arrays {', '.join(layouts)} or"
            " what is said of them are not those that were saved; load an earlier checkpoint",
            permanent=True,
        )


@contextlib.contextmanager
def _what_is_written_down() -> Iterator[None]:
    """Read metadata, of which Icechunk keeps no checksum: a flipped byte can make it anything."""
    import icechunk

    try:
        yield
    except (Error, OSError, icechunk.IcechunkError):
        raise
    except Exception as error:
        raise StoreError(
            f"the metadata of the checkpoint is damaged ({type(error).__name__}: {error}); load an"
            " earlier checkpoint",
            permanent=True,
        ) from error


def _backwards(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(reversed(range(len(shape))))


def _is_little(dtype: np.dtype[Any]) -> bool:
    return dtype == dtype.newbyteorder("<")


def arrays_in(store: IcechunkStore) -> Iterator[tuple[str, Any]]:
    """All arrays of a checkpoint with their paths, in the order of their names.

    Raises
    ------
    StoreError
        Their metadata cannot be read.
    """
    import zarr

    with _what_is_written_down():
        members = zarr.open_group(store, mode="r").members(max_depth=None)
    yield from sorted(
        ((path, member) for path, member in members if isinstance(member, zarr.Array)),
        key=lambda pair: pair[0],
    )

"""`load_safetensors`: the tensors of a model, read when they are first touched."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy.typing as npt

from refault.client.opening import open
from refault.client.region import Region, region
from refault.errors import UsageError
from refault.sizes import Size, parse_size
from refault.stores.base import Store, store_name

from .dtypes import numpy_dtype, torch_dtype
from .header import BITS, LENGTH_BYTES, Tensor, header_length, parse_header
from .index import INDEX_SUFFIX, parse_index, shard_path

__all__ = ["load_safetensors"]

Source: TypeAlias = str | os.PathLike[str] | Store


def load_safetensors(
    path_or_store: Source,
    framework: str = "numpy",
    *,
    names: Iterable[str] | None = None,
    mode: str | None = None,
    resident: Size | None = None,
    page_size: Size | None = None,
    deadline: float | None = 60.0,
    readahead: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the tensors of a ``.safetensors`` file, each read when it is first touched.

    Only the header is read at once.  All tensors of a file lie in one region, as they do in the
    file, and `refault.region` finds it from any of them.

    Parameters
    ----------
    path_or_store
        What `refault.open` takes; or the path or URL of an index, ``*.safetensors.index.json``, of
        a model in several files, which lie beside it.
    framework
        "numpy" for arrays, "torch" for tensors on the same memory.
    names
        Which tensors; None: all.  Of a model in several files only those are opened that
        hold one.
    mode
        As in `refault.open`: "r", "r+" or "c".  None: "r" for numpy; "c" for torch, which
        knows no tensors that cannot be written to.  With "r" a write to a tensor of torch
        ends the program.
    resident
        How much may be in memory, of all files together.
    page_size, deadline, readahead, storage_options
        As in `refault.open`.

    Returns
    -------
    dict
        Arrays or tensors by name, in the order of the file.

    Raises
    ------
    UsageError
        It is no such file, or is damaged; there is no tensor of a name; a tensor has a dtype
        that the framework does not have.
    StoreError
        The header could not be read.

    Examples
    --------
    >>> import numpy, refault, safetensors.numpy, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = folder.name + "/model.safetensors"
    >>> safetensors.numpy.save_file({"weight": numpy.ones((2, 3), "f4")}, path)
    >>> model = refault.load_safetensors(path)
    >>> model["weight"][0]
    array([1., 1., 1.], dtype=float32)
    """
    torch = _torch() if framework == "torch" else None
    if framework not in ("numpy", "torch"):
        raise UsageError(f"framework={framework!r} is neither 'numpy' nor 'torch'")
    if mode is None:
        mode = "r" if torch is None else "c"
    if mode == "w+":
        raise UsageError("mode='w+' makes new files; open a model with 'r', 'r+' or 'c'")
    wanted = None if names is None else list(dict.fromkeys(names))
    options = {
        "mode": mode,
        "page_size": page_size,
        "deadline": deadline,
        "readahead": readahead,
        "storage_options": storage_options,
    }
    files: dict[Source, list[str] | None] = {path_or_store: wanted}
    if _name(path_or_store).endswith(INDEX_SUFFIX):
        files = _shards(path_or_store, wanted, storage_options)
        if resident is not None and files:
            resident = parse_size(resident, name="resident") // len(files)
    found: dict[str, Any] = {}
    for file, inside in files.items():
        file_region, tensors = _open(file, resident, options)
        chosen = _choose(tensors, inside, _name(file))
        data = file_region.array
        for key, tensor in chosen.items():
            what = f"{_name(file)}: tensor {key!r}"
            try:
                if torch is None:
                    found[key] = _as_array(data, tensor, what)
                else:
                    found[key] = _as_tensor(torch, data, tensor, what)
            except UsageError:
                raise
            except (ValueError, RuntimeError) as error:
                raise UsageError(
                    f"{what} of shape {list(tensor.shape)} cannot be made by {framework}"
                    f" ({error}); leave it out (names=...)"
                ) from error
    return found if wanted is None else {key: found[key] for key in wanted}


def _shards(
    source: Source, wanted: list[str] | None, storage_options: Mapping[str, Any] | None
) -> dict[Source, list[str] | None]:
    """The files of a model, and which tensors of each are wanted."""
    path = _name(source)
    index = region(open(source, dtype="u1", storage_options=storage_options))
    shards = parse_index(_read(index, 0, index.nbytes), path)
    index.close()
    files: dict[Source, list[str] | None] = {}
    for key, file in _choose(shards, wanted, path).items():
        inside = files.setdefault(shard_path(path, file), [])
        assert inside is not None
        inside.append(key)
    return files


def _open(
    file: Source, resident: Size | None, options: dict[str, Any]
) -> tuple[Region, dict[str, Tensor]]:
    """Open a file, and read its header."""
    name = _name(file)
    found = region(open(file, dtype="u1", resident=resident, **options))
    size = found.nbytes
    length = header_length(_read(found, 0, min(LENGTH_BYTES, size)), size, name)
    return found, parse_header(_read(found, LENGTH_BYTES, LENGTH_BYTES + length), size, name)


def _read(source: Region, start: int, end: int) -> bytes:
    """Copy bytes, page by page: more need not fit into memory, and errors are raised."""
    data, page = source.array, source.page_size
    parts = []
    while start < end:
        stop = min(end, (start // page + 1) * page)
        source.populate(slice(start, stop))
        parts.append(data[start:stop].tobytes())
        start = stop
    return b"".join(parts)


def _name(file: Source) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else store_name(file)


def _choose(there: Mapping[str, Any], wanted: list[str] | None, name: str) -> dict[str, Any]:
    if wanted is None:
        return dict(there)
    for key in wanted:
        if key not in there:
            few = ", ".join(map(repr, list(there)[:5]))
            raise UsageError(f"{name}: has no tensor {key!r}; it has {len(there)}: {few}, ...")
    return {key: there[key] for key in wanted}


def _as_array(data: npt.NDArray[Any], tensor: Tensor, what: str) -> npt.NDArray[Any]:
    dtype = numpy_dtype(tensor.dtype, what)
    return data[tensor.start : tensor.end].view(dtype).reshape(tensor.shape)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(f"framework='torch' needs torch ({error}); pip install torch") from error


def _as_tensor(torch: Any, data: npt.NDArray[Any], tensor: Tensor, what: str) -> Any:
    dtype = torch_dtype(torch, tensor.dtype, what)
    shape = tensor.shape
    if BITS[tensor.dtype] < 8:
        # Two elements are one of torch's.
        if shape[-1] % 2:
            raise UsageError(f"{what} has rows that end within a byte; leave it out (names=...)")
        shape = (*shape[:-1], shape[-1] // 2)
    length = tensor.end - tensor.start
    if not length:
        return torch.empty(shape, dtype=dtype)
    part = data[tensor.start : tensor.end]
    if part.ctypes.data % dtype.itemsize:
        raise UsageError(
            f"{what} lies at byte {tensor.start} of the file, not at a multiple of its"
            f" {dtype.itemsize} bytes, as torch needs it; take framework='numpy', or save the model"
            " anew"
        )
    # torch warns of buffers that cannot be written to.  A buffer by address can always.
    buffer: Any = (ctypes.c_char * length).from_address(part.ctypes.data)
    buffer.owner = part
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)

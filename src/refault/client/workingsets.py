"""Working sets: where they are kept, and how they are asked for and begun to be read."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from typing import TYPE_CHECKING, Any

from refault.client.urls import is_local, local_path
from refault.errors import UsageError
from refault.stores.base import store_name
from refault.stores.objects import dump_object
from refault.stores.recognizing import ZARR_FILES, library_of
from refault.stores.recorded import may_replace
from refault.wire import messages

if TYPE_CHECKING:
    from refault.client.marks import Ranges
    from refault.client.region import Region

__all__ = ["begin", "place", "used"]

SUFFIX = ".workingset"


def place(
    working_set: str | os.PathLike[str] | None, source: object, key: str | None = None
) -> str | None:
    """The file that holds the working set of a file, URL or store; None: it is not kept.

    Parameters
    ----------
    working_set
        As in `refault.open`.
    source, key
        What is opened, and which array of it.

    Raises
    ------
    UsageError
        `working_set` is no path, a folder, or something else that must not be replaced.
    """
    if working_set is None:
        return None
    if working_set == "auto":
        path = _automatic(source, (key or "").strip("/"))
    else:
        path = _given(working_set)
    if os.path.isdir(path):
        raise UsageError(f"working_set={path!r} is a folder; give the path of a file in it")
    if not may_replace(path):
        raise UsageError(
            f"working_set={path!r} is something else, and would be replaced by a working set; give"
            " the path of another file"
        )
    return path


def _given(working_set: str | os.PathLike[str]) -> str:
    try:
        return os.path.abspath(os.fsdecode(working_set))
    except TypeError:
        raise UsageError(
            f"working_set={working_set!r} is no path; give 'auto', the path of a file, or None"
        ) from None


def _automatic(source: object, key: str) -> str:
    if not isinstance(source, str | os.PathLike):
        path, key = _place_in_file(source, key)
        if path is not None:
            source = path
        elif hasattr(source, "read_into"):
            return _cached(dump_object(source), store_name(source))
        else:
            raise UsageError(
                f"{source!r}: working_set='auto' needs what has a path or a URL, or a store; give"
                " the path of a file to keep it in"
            )
    path = os.fsdecode(source)
    if not is_local(path):
        from refault.stores.remote import public

        return _cached(f"{path}\n{key}".encode(), public(path))
    path, inside = _outermost(os.path.realpath(os.fsdecode(local_path(path))))
    key = "/".join(filter(None, (inside, key)))
    if os.access(os.path.dirname(path), os.W_OK):
        return path + (f".{_plain(key)}" if key else "") + SUFFIX
    return _cached(os.fsencode(f"{path}\n{key}"), path)


def _place_in_file(thing: object, key: str) -> tuple[str | None, str]:
    """Path and key of an array that is an object of its library; None: it has no path."""
    library = library_of(thing)
    found: Any = thing
    if library == "h5py" and found:
        return found.file.filename, "/".join(filter(None, ((found.name or "").strip("/"), key)))
    if library == "blosc2" and hasattr(found, "schunk"):
        return found.schunk.urlpath, key
    if library == "zarr":
        place = str(found.store_path)
        if place.startswith("file://"):
            return place.removeprefix("file://"), key
    return None, key


def _outermost(path: str) -> tuple[str, str]:
    """The root of the Zarr hierarchy that a path is in, and where it is in there.

    Nothing that is not of Zarr is to lie within.
    """
    root = path
    while (parent := os.path.dirname(root)) != root and any(
        os.path.exists(os.path.join(parent, name)) for name in ZARR_FILES
    ):
        root = parent
    return root, path[len(root) + 1 :]


def _cached(key: bytes, name: str) -> str:
    """A file in the user's cache folder, for what has no folder of its own to write to."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.blake2b(key, digest_size=10).hexdigest()
    short = _plain(os.path.basename(name.rstrip("/")))[-40:]
    return os.path.join(os.path.abspath(folder), "refault", f"{short}-{digest}{SUFFIX}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def used(region: Region, bounds: tuple[int, int] | None) -> Ranges:
    """What of bytes ``[start, end)`` of a mapped range has been used, counted from `start`."""
    memory = region._memory
    if memory is None or bounds is None:
        return []
    start, end = bounds
    found: Ranges = []
    at = start
    while at < end:
        done = memory.connection.call(messages.WorkingSet(memory.number, at))
        assert isinstance(done.value, bytes)
        pairs = array("q", done.value)
        for low, high in zip(pairs[::2], pairs[1::2], strict=True):
            low, high = max(low, at) - start, min(high, end) - start
            if low >= high:
                continue
            if found and found[-1][1] == low:
                found[-1] = (found[-1][0], high)
            else:
                found.append((low, high))
        if len(pairs) < 2 * messages.CHANGED_RANGES:
            break
        at = pairs[-1]
    return found


def begin(region: Region, ranges: Ranges) -> int:
    """Begin to read ranges of bytes of an array; returns for how many of them there is room."""
    whole = region._range(None)[1]
    memory = region._memory
    if memory is None or whole is None:
        return 0
    numbers = array("q")
    try:
        for start, end in ranges:
            low, high = max(0, start), min(end, region.nbytes)
            if low < high:
                numbers.extend((whole[0] + low, whole[0] + high))
    except (TypeError, ValueError):
        raise UsageError(
            "prefetch: a list holds ranges of bytes (start, end), as working_set returns them; to"
            " select elements give slices, or a view of the array"
        ) from None
    begun = 0
    step = 2 * messages.CHANGED_RANGES
    for at in range(0, len(numbers), step):
        part = numbers[at : at + step].tobytes()
        done = memory.connection.call(messages.PrefetchRanges(memory.number, part))
        begun += done.value if isinstance(done.value, int) else 0
    return begun

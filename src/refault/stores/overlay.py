"""Read from one store, write to another."""

from __future__ import annotations

import os
import threading
from typing import Any

from refault.errors import UsageError

from .base import Store, WritableStore, check_range, store_name
from .objects import ObjectStore
from .overlaymap import BLOCK, OverlayMap
from .path import File
from .wrapper import StoreWrapper

__all__ = ["Overlay"]


class Overlay(StoreWrapper):
    """What was changed comes from the overlay, everything else from the base.

    The base is never written.  Blocks of 4 KiB are in one or the other; which, is kept in
    a map, a file, such that it outlives a killed process and a machine that goes down:
    what was flushed stays, and no block ever shows what neither of the two held.

    Parameters
    ----------
    base
        A store, or the path of a file.  If it has a ``version``, that must not change as
        long as the overlay is used.
    overlay
        The path of a file, which is made if it is not there (with holes: it takes up what
        is changed), or a store that can be written and is as long as the base.
    map
        The path of the map; by default that of the overlay with ``.map`` behind.  A store
        needs one.

    Raises
    ------
    UsageError
        The overlay is too short, belongs to another base, or has lost its map.

    Notes
    -----
    One array at a time may write to an overlay; any number may read it.
    """

    _opened: OverlayMap | None
    _lock: threading.Lock

    def __init__(
        self,
        base: Store | str | os.PathLike[str],
        overlay: WritableStore | str | os.PathLike[str],
        *,
        map: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(File(base) if isinstance(base, str | os.PathLike) else base)
        self.writable = True
        # What the base says of these is not true of the overlay.
        self.readonly = ""
        self.version = None
        if isinstance(overlay, str | os.PathLike):
            path = os.path.abspath(overlay)
            self.map_path = os.path.abspath(map or path + ".map")
            _make_file(path, self.size, self.map_path)
            self.overlay: Store = File(path, writable=True)
        elif map is None:
            raise UsageError(f"the overlay {store_name(overlay)} is a store; give map, a path")
        else:
            self.overlay = overlay
            self.map_path = os.path.abspath(map)
        self._overlay = ObjectStore(self.overlay)
        self.buffered = not isinstance(self.overlay, File)
        if not self._overlay.writable or self._overlay.size < self.size:
            raise UsageError(
                f"the overlay {self._overlay.name} cannot be written, or is shorter than the "
                f"{self.size} bytes of {self.name}; give one that can hold them all"
            )
        if not os.path.exists(self.map_path):
            OverlayMap.create(self.map_path, self.size, self._version())
        self._forget()
        try:
            self._map()
        except BaseException:
            self.close()
            raise

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, each block from where it is."""
        check_range(self, offset, len(buffer), "read")
        for start, stop, inside in self._map().runs(offset, len(buffer)):
            store = self._overlay if inside else self._inner
            store.read_into(start, buffer[start - offset : stop - offset])

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Write `buffer` to the overlay, and what is missing of its blocks before."""
        check_range(self, offset, len(buffer), "write")
        map = self._map()
        map.lock()
        end = offset + len(buffer)
        if offset % BLOCK:
            self._copy_up(map, offset // BLOCK)
        if end % BLOCK and end != self.size:
            self._copy_up(map, end // BLOCK)
        self._overlay.write_from(offset, buffer)
        map.mark(offset // BLOCK, -(-end // BLOCK))

    def flush(self) -> None:
        """Make the overlay durable, and then the map."""
        self._map().settle(self._overlay.flush)

    def close(self) -> None:
        """Close base, overlay and map; they are opened again if it is used again.

        If the overlay is a store, what was not flushed is: nobody would know of it.
        """
        with self._lock:
            map, self._opened = self._opened, None
        if map is not None:
            try:
                if map.pending:
                    map.settle(self._overlay.flush)
            finally:
                map.close()
        self._overlay.close()
        self._inner.close()

    def changed(self) -> list[tuple[int, int]]:
        """Return the ranges of bytes, (start, stop), that come from the overlay."""
        runs = self._map().runs(0, self.size) if self.size else ()
        return [(start, stop) for start, stop, inside in runs if inside]

    def __getstate__(self) -> dict[str, Any]:
        left_here = ("_lock", "_copying", "_opened")
        return {name: value for name, value in vars(self).items() if name not in left_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._opened = None
        self._lock = threading.Lock()
        self._copying = threading.Lock()

    def _version(self) -> str:
        return str(getattr(self.store, "version", ""))

    def _map(self) -> OverlayMap:
        with self._lock:
            if self._opened is None:
                self._opened = OverlayMap(
                    self.map_path,
                    self.size,
                    self._version(),
                    outlives=not self.buffered,
                )
            return self._opened

    def _copy_up(self, map: OverlayMap, block: int) -> None:
        """Have a whole block in the overlay, so that a part of it can be changed."""
        with self._copying:
            if block in map:
                return
            start = block * BLOCK
            data = memoryview(bytearray(min(BLOCK, self.size - start)))
            self._inner.read_into(start, data)
            self._overlay.write_from(start, data)
            map.mark(block, block + 1)


def _make_file(path: str, size: int, map_path: str) -> None:
    """Make a file that is one hole, or see that it is what was made before."""
    if os.path.exists(map_path):
        if not os.path.exists(path):
            raise UsageError(
                f"the overlay {path} is gone, and its map {map_path} is not; put it back, or "
                "remove the map to begin anew"
            )
        return
    try:
        with open(path, "xb") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    except FileExistsError:
        status = os.stat(path)
        if status.st_blocks or status.st_size != size:
            raise UsageError(
                f"{path} is there, and is no overlay: it has no map {map_path}; put the map back, "
                "or give another path"
            ) from None

"""Changes to something that cannot be changed in part, only replaced as a whole.

Decisions
---------
* Changes are collected in a local file (`Staging`) until `flush`.  Then what is not there is read
  from the old whole, and the new whole takes its place at one stroke, or not at all.
* The local copy stays, so the next flush reads nothing.  It takes as much disk as the whole has
  bytes.
* What is sent does not change while it is sent: what is written meanwhile goes to a second file,
  and from there to the first one.
* Nothing is lost by a flush that fails: all changes are still here, and the next one tries again.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable

from refault.errors import StoreError

from .staging import Staging

__all__ = ["Replacing"]


class Replacing:
    """The bytes of something, with all changes; any number of threads at a time.

    Parameters
    ----------
    name, size
        Of the whole.
    get, get_patiently
        Read bytes (offset, length) of the whole as it was; the second one has more than one try.
    put
        Replaces the whole, or raises.
    parallel, piece
        How many bytes at a time are read to complete the whole, and how many such reads side by
        side.
    """

    def __init__(
        self,
        name: str,
        size: int,
        get: Callable[[int, int], memoryview],
        get_patiently: Callable[[int, int], memoryview],
        put: Callable[[memoryview], None],
        *,
        parallel: int,
        piece: int,
    ) -> None:
        self.name = name
        self.size = size
        self._get = get
        self._get_patiently = get_patiently
        self._put = put
        self._parallel = parallel
        self._piece = piece
        self._flushing = threading.Lock()
        self._lock = threading.Lock()
        self._staged = Staging(size, name)
        self._newer: Staging | None = None
        self._changed = False

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Keep changed bytes."""
        with self._lock:
            (self._newer or self._staged).write(offset, buffer)
            self._changed = True

    def fetch(self, offset: int, length: int) -> memoryview:
        """Bytes with all changes."""
        whole = memoryview(bytearray(length))
        for start, end in self._read_here(offset, whole):
            try:
                found = self._get(start, end - start)
            except StoreError:
                # Perhaps it has just been replaced, and then all of it is here.
                if self._read_here(start, whole[start - offset : end - offset]):
                    raise
            else:
                whole[start - offset : end - offset] = found
        return whole

    def flush(self) -> None:
        """Replace the whole, if anything has changed.

        Raises
        ------
        StoreError
            It is as it was; or the answer was lost, and nobody knows.  All changes are kept.
        """
        with self._flushing:
            self._merge()
            with self._lock:
                if not self._changed:
                    return
                self._newer = Staging(self.size, self.name)
                self._changed = False
            try:
                self._complete()
                self._put(memoryview(self._staged.whole()))
            except BaseException:
                with self._lock:
                    self._changed = True
                raise
            finally:
                self._merge()

    def close(self) -> None:
        """Give the disk back."""
        with self._lock:
            for place in (self._staged, self._newer):
                if place is not None:
                    place.close()

    def _read_here(self, offset: int, buffer: memoryview) -> list[tuple[int, int]]:
        """Fill what is here of `buffer`; which parts are not."""
        missing = [(offset, offset + len(buffer))]
        with self._lock:
            for place in (self._newer, self._staged):
                if place is None:
                    continue
                wanted, missing = missing, []
                for start, end in wanted:
                    gaps = place.gaps(start, end)
                    missing += gaps
                    at = start
                    for low, high in [*gaps, (end, end)]:
                        if at < low:
                            place.read_into(at, buffer[at - offset : low - offset])
                        at = high
        return missing

    def _merge(self) -> None:
        """Put what was written during a flush where all the rest is."""
        with self._lock:
            newer = self._newer
            if newer is None:
                return
            for start, end in newer.known:
                for at in range(start, end, self._piece):
                    buffer = memoryview(bytearray(min(self._piece, end - at)))
                    newer.read_into(at, buffer)
                    self._staged.write(at, buffer)
            self._newer = None
            newer.close()

    def _complete(self) -> None:
        """Read what is not here."""
        pieces = [
            (at, min(at + self._piece, end))
            for start, end in self._staged.gaps(0, self.size)
            for at in range(start, end, self._piece)
        ]

        def copy(piece: tuple[int, int]) -> None:
            start, end = piece
            self._staged.write(start, self._get_patiently(start, end - start))

        threads = concurrent.futures.ThreadPoolExecutor(self._parallel)
        try:
            for _ in threads.map(copy, pieces):
                pass
        finally:
            threads.shutdown(cancel_futures=True)

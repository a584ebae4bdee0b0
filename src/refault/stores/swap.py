"""Where evicted pages go that no store would take back.

Decisions
---------
* The oldest pages are spilled to disk first, not the newest: what was evicted
  a moment ago is what faults again soonest, and it should not cost a disk read.
* Room is made before a page comes in.  If the disk is full the older page
  stays in memory, the new one is refused, and its owner keeps it: none is lost.
* `store` replaces an older page at one stroke, when the new one is safe.  If it
  fails, the older page is dropped: a later `load` raises, and never answers
  with what the page held before.
* Checksums guard what was on disk.  Pages in memory have none: they are as
  safe as everything else in the process, and a checksum costs a fifth of
  unpacking them.
* Reading a spilled page takes no lock.  Instead we look, afterwards, whether it
  is still there; if it was replaced meanwhile, what was read is thrown away.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import islice

from refault.errors import StoreError

from .codec import Codec, Kind
from .spill import Slot, SpillFile
from .swapspace import Key

__all__ = ["Swap"]

_BATCH = 256


class _Record:
    """A page; `place` is where its stored bytes are, or the bytes themselves."""

    __slots__ = ("key", "kind", "length", "place", "size")

    def __init__(self, key: Key, size: int, kind: Kind, data: bytes) -> None:
        self.key = key
        self.size = size
        self.kind = kind
        self.length = len(data)
        self.place: bytes | Slot = data


class Swap:
    """Compressed pages in memory up to a limit, and on disk beyond it.

    Parameters
    ----------
    memory_limit
        Bytes of compressed pages held in memory, at most.
    directory
        Where the spill file is made when it is first needed; None: TMPDIR, or
        /var/tmp.  A tmpfs there would only use up memory.
    level
        zstd compression level.

    Notes
    -----
    Any number of threads may use all methods.  `load_nowait`, `discard`,
    ``in`` and `statistics` wait for no disk, so they may be called from an event
    loop; `discard_all` as well if the owner is small: it takes about a
    microsecond per page, in batches, so that others get in between.
    """

    def __init__(
        self, memory_limit: int, directory: str | os.PathLike[str] | None = None, level: int = 1
    ) -> None:
        self.memory_limit = memory_limit
        self._codec = Codec(level)
        self._file = SpillFile(directory)
        self._lock = threading.Lock()
        self._owners: dict[Hashable, dict[Hashable, _Record]] = {}
        self._memory: OrderedDict[_Record, None] = OrderedDict()  # oldest first
        self._closed = False
        self._pages = 0
        self._raw_bytes = 0
        self._memory_bytes = 0
        self._spilled_bytes = 0

    def store(self, key: Key, buffer: memoryview) -> None:
        """Keep a copy of `buffer` under `key`, instead of what was there.

        Raises
        ------
        StoreError
            There is no room, on disk either.  Nothing is kept under `key` then,
            neither this page nor an older one: keep the page, and try again.
        """
        with self._lock:
            old = self._find(key)
        try:
            kind, data = self._codec.pack(buffer)
            self._place(_Record(key, len(buffer), kind, data), data)
        except BaseException:
            with self._lock:
                if old is not None and self._find(key) is old:
                    self._drop(old)
            raise
        self._trim()

    def store_all(self, pages: Sequence[tuple[Key, memoryview]]) -> None:
        """`store` pages, one by one."""
        for key, buffer in pages:
            self.store(key, buffer)

    def load_all(self, pages: Sequence[tuple[Key, memoryview]]) -> None:
        """`load` pages, one by one."""
        for key, buffer in pages:
            self.load(key, buffer)

    def load(self, key: Key, buffer: memoryview) -> None:
        """Fill `buffer` with the page, which stays in swap.

        Raises
        ------
        StoreError
            There is no such page, or it cannot be read, or its checksum is wrong.
        """
        while True:
            with self._lock:
                record = self._find(key)
                if record is None:
                    raise self._missing(key)
                place = record.place
            if not isinstance(place, Slot):
                self._unpack(record, place, buffer)
                return
            try:
                found = self._file.read(place)
            except StoreError:
                if self._is_current(record):
                    raise
                continue
            if self._is_current(record):
                self._unpack(record, self._file.verify(place, found), buffer)
                return

    def load_nowait(self, key: Key, buffer: memoryview) -> bool:
        """Fill `buffer` if the page is in memory; else False, and `load` must be asked."""
        with self._lock:
            record = self._find(key)
            place = record.place if record is not None else None
        if record is None or place is None or isinstance(place, Slot):
            return False
        try:
            self._unpack(record, place, buffer)
        except StoreError:
            return False  # `load` says why
        return True

    def discard(self, key: Key) -> None:
        """Forget a page, if it is there."""
        with self._lock:
            record = self._find(key)
            if record is not None:
                self._drop(record)

    def discard_all(self, owner: Hashable) -> None:
        """Forget all pages of an owner."""
        with self._lock:
            records = iter(self._owners.pop(owner, {}).values())
        while True:
            with self._lock:
                batch = list(islice(records, _BATCH))
                for record in batch:
                    self._forget(record)
            if not batch:
                return

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return self._find(key) is not None

    def statistics(self) -> dict[str, int]:
        """Numbers of now.

        Returns
        -------
        dict
            ``pages``; ``bytes_raw``, what they are uncompressed; ``bytes_compressed``,
            what is held in memory; ``bytes_spilled``, what is held on disk;
            ``file_bytes``, what the spill file takes up there.
        """
        with self._lock:
            numbers = {
                "pages": self._pages,
                "bytes_raw": self._raw_bytes,
                "bytes_compressed": self._memory_bytes,
                "bytes_spilled": self._spilled_bytes,
            }
        return {**numbers, "file_bytes": self._file.file_bytes}

    @property
    def wasteful(self) -> bool:
        """Whether so much of the spill file is free that `trim` is worth a call."""
        return self._file.wasteful

    def trim(self) -> None:
        """Give free parts of the spill file back to the disk; may take its time.

        `store` does this by itself when it is worth it (`load` does not: somebody
        waits for its page).  Call it from a worker when `wasteful` is true and
        nobody waits, and after `discard_all`.
        """
        self._file.trim()

    def close(self) -> None:
        """Forget everything, and free the spill file.  A second call does nothing."""
        with self._lock:
            self._closed = True
            self._owners.clear()
            self._memory.clear()
            self._pages = self._raw_bytes = self._memory_bytes = self._spilled_bytes = 0
        self._file.close()

    def _place(self, record: _Record, data: bytes) -> None:
        while True:
            with self._lock:
                self._check_open()
                old = self._find(record.key)
                replaced = old.length if old and not isinstance(old.place, Slot) else 0
                if self._memory_bytes - replaced + record.length <= self.memory_limit:
                    self._insert(record)
                    return
                victim = self._oldest() if record.length <= self.memory_limit else None
            if victim is None:
                # Too long for memory, or others are making room already.
                record.place = self._file.write(data)
                with self._lock:
                    self._check_open()
                    self._insert(record)
                return
            self._spill(victim)

    def _oldest(self) -> _Record | None:
        while self._memory:
            record, _ = self._memory.popitem(last=False)
            if self._find(record.key) is record:
                return record
        return None

    def _spill(self, record: _Record) -> None:
        if isinstance(record.place, Slot):
            return
        try:
            slot = self._file.write(record.place)
        except BaseException:
            with self._lock:
                if self._find(record.key) is record:
                    self._memory[record] = None
                    self._memory.move_to_end(record, last=False)
            raise
        with self._lock:
            if self._find(record.key) is record:
                record.place = slot
                self._memory_bytes -= record.length
                self._spilled_bytes += record.length
                return
        self._file.free(slot)

    def _find(self, key: Key) -> _Record | None:
        records = self._owners.get(key[0])
        return records.get(key[1]) if records is not None else None

    def _is_current(self, record: _Record) -> bool:
        with self._lock:
            return self._find(record.key) is record

    def _insert(self, record: _Record) -> None:
        old = self._find(record.key)
        if old is not None:
            self._forget(old)
        owner, index = record.key
        self._owners.setdefault(owner, {})[index] = record
        self._pages += 1
        self._raw_bytes += record.size
        if isinstance(record.place, Slot):
            self._spilled_bytes += record.length
        elif record.length:
            self._memory_bytes += record.length
            self._memory[record] = None

    def _drop(self, record: _Record) -> None:
        owner, index = record.key
        records = self._owners[owner]
        del records[index]
        if not records:
            del self._owners[owner]
        self._forget(record)

    def _forget(self, record: _Record) -> None:
        """Settle the accounts of a record that is no longer to be found."""
        if self._closed:
            return
        self._pages -= 1
        self._raw_bytes -= record.size
        if isinstance(record.place, Slot):
            self._spilled_bytes -= record.length
            self._file.free(record.place)
        else:
            self._memory_bytes -= record.length
            self._memory.pop(record, None)

    def _unpack(self, record: _Record, stored: bytes | bytearray, buffer: memoryview) -> None:
        if len(buffer) != record.size:
            raise StoreError(
                f"swap: page {record.key} holds {record.size} bytes, {len(buffer)} were asked for; "
                "load it with the size it was stored with",
                permanent=True,
            )
        try:
            self._codec.unpack(record.kind, stored, buffer)
        except ValueError as error:
            raise StoreError(
                f"swap: page {record.key} cannot be unpacked: {error}; it is lost: "
                "check the memory of the machine",
                permanent=True,
            ) from error

    def _missing(self, key: Key) -> StoreError:
        if self._closed:
            return StoreError("swap is closed; its pages are gone", permanent=True)
        return StoreError(
            f"swap: there is no page {key}; it was discarded, or storing it failed",
            permanent=True,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("swap is closed; it takes no pages", permanent=True)

    def _trim(self) -> None:
        if self._file.wasteful:
            try:
                self._file.trim()
            except StoreError:
                pass  # the page itself is safe; the space comes back another time

"""A tier on a local disk between a store far away and memory.

Why not a library: diskcache has had no release since 2023, unpickles what it finds in the
folder, and has no checksums; the caches of fsspec have no bound.  See
`refault.stores.blockfolder` for how blocks are kept.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from refault.errors import StoreError, UsageError
from refault.sizes import Size, parse_size

from .base import Store, check_range
from .blockfolder import BlockFolder, block_bytes
from .wrapper import StoreWrapper

__all__ = ["DEFAULT_SIZE", "DiskCache"]

DEFAULT_SIZE = "10GiB"
LONGEST_READ = 8 << 20
LEFT_HERE = frozenset({"_opened", "_changed", "_fetching"})


class DiskCache(StoreWrapper):
    """What was read from a store is kept on a local disk, and read from there.

    Blocks are checked when they are read: a damaged one is fetched again.  What the disk
    refuses to keep is read from the store, and said once.

    Parameters
    ----------
    store
        Where the bytes come from.  It is only read; for changes put an `Overlay` in front.
    folder
        On a local disk.  Any number of stores, processes and programs may share it.
    size
        What all blocks in the folder may take up together, as bytes or as "10GiB".
        Those that were used longest ago go first.
    block
        Bytes that are fetched and kept together: a multiple of 4 KiB.
    key
        Names what the store holds, for a store that does not do so by itself, with a
        ``name`` and a ``version``.  Who gives the same key to stores with different
        content gets the one for the other.

    Attributes
    ----------
    hits, misses, damaged
        Blocks that were on the disk, had to be fetched, and were found damaged, by this
        object.

    Raises
    ------
    UsageError
        The parameters make no sense, the store does not say which version it is, or the
        folder cannot be written.

    Notes
    -----
    Blocks are found by name, version, length and type of the store.  A ``version``
    (an ETag, a time of modification) that changes while the cache is used is a permanent
    `StoreError`: bytes of two versions are never mixed.
    """

    def __init__(
        self,
        store: Store,
        folder: str | os.PathLike[str],
        size: Size = DEFAULT_SIZE,
        *,
        block: Size = "256KiB",
        key: str | None = None,
    ) -> None:
        super().__init__(store)
        self.writable = False
        self.readonly = "what comes through a disk cache is only read; put an Overlay in front"
        self.folder = os.path.abspath(folder)
        self.limit = parse_size(size, name="size")
        self.block = parse_size(block, name="block")
        self._check_sizes(size, block)
        self._version = self._version_now()
        if key is None and (self._version is None or not getattr(store, "name", None)):
            raise UsageError(
                f"{self.name} has no version or no name, so that what is kept of it could be taken "
                "for something else; give the store both, or the DiskCache a key"
            )
        kind = type(store)
        told = (kind.__module__, kind.__qualname__, self.name) if key is None else (key,)
        self._identity = repr((told, self._version, self.size, self.block)).encode()
        self._forget()
        try:
            self._blocks()
        except OSError as error:
            raise UsageError(
                f"the cache folder {self.folder} cannot be used: {error.strerror}; give one that "
                "you may write to"
            ) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the disk, and with what is missing there from the store."""
        check_range(self, offset, len(buffer), "read")
        blocks = range(offset // self.block, -(-(offset + len(buffer)) // self.block))
        missing = [number for number in blocks if not self._load(number, offset, buffer)]
        if not missing:
            return
        self._claim(missing)
        try:
            # Somebody may have fetched them while we waited.
            left = [number for number in missing if not self._load(number, offset, buffer)]
            for first, stop in _runs(left, max(1, LONGEST_READ // self.block)):
                self._fetch(first, stop, offset, buffer)
        finally:
            self._release(missing)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in LEFT_HERE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._opened: BlockFolder | None = None
        self._changed = threading.Condition()
        self._fetching: set[int] = set()
        self.hits = self.misses = self.damaged = self._refused = 0

    def _check_sizes(self, size: Size, block: Size) -> None:
        if not self.block or self.block % 4096 or self.block > BlockFolder.largest:
            raise UsageError(
                f"block={block!r} is no multiple of 4096 up to {BlockFolder.largest}; give one"
            )
        if self.limit < block_bytes(self.block):
            raise UsageError(
                f"size={size!r} has no room for one block of {block_bytes(self.block)} bytes; give "
                "more, or a smaller block"
            )

    def _blocks(self) -> BlockFolder:
        with self._changed:
            if self._opened is None:
                self._opened = BlockFolder(self.folder, self.limit)
            return self._opened

    def _version_now(self) -> object:
        return getattr(self.store, "version", None)

    def _check_version(self) -> None:
        now = self._version_now()
        if now != self._version:
            raise StoreError(
                f"{self.name}: has changed: it was version {self._version} when it was opened, and "
                f"is {now}; open it again",
                permanent=True,
            )

    def _key(self, number: int) -> bytes:
        named = self._identity + number.to_bytes(8, "little")
        return hashlib.blake2b(named, digest_size=32).digest()

    def _length(self, number: int) -> int:
        return min(self.block, self.size - number * self.block)

    def _part(self, number: int, offset: int, buffer: memoryview) -> tuple[int, memoryview]:
        """Where in a block `buffer` begins, and what of `buffer` is of this block."""
        start = number * self.block
        low = max(start, offset)
        high = min(start + self.block, offset + len(buffer))
        return low - start, buffer[low - offset : high - offset]

    def _load(self, number: int, offset: int, buffer: memoryview) -> bool:
        start, part = self._part(number, offset, buffer)
        found = self._blocks().load(self._key(number), self._length(number), start, part)
        with self._changed:
            self.hits += found is True
            self.damaged += found is None
            number = self.damaged
        if found is None and number & (number - 1) == 0:
            _tell(f"{self.folder}: a block of {self.name} is damaged, and fetched again ({number})")
        return found is True

    def _fetch(self, first: int, stop: int, offset: int, buffer: memoryview) -> None:
        """Read blocks from the store, keep them, and fill what is wanted of them."""
        start = first * self.block
        data = memoryview(bytearray(min(stop * self.block, self.size) - start))
        self._inner.read_into(start, data)
        self._check_version()
        for number in range(first, stop):
            at = number * self.block - start
            block = data[at : at + self.block]
            self._save(number, block)
            begin, part = self._part(number, offset, buffer)
            part[:] = block[begin : begin + len(part)]
        with self._changed:
            self.misses += stop - first

    def _save(self, number: int, block: memoryview) -> None:
        try:
            self._blocks().save(self._key(number), block)
        except OSError as error:
            with self._changed:
                self._refused += 1
                first = self._refused == 1
            if first:
                _tell(
                    f"{self.folder}: keeps no blocks of {self.name}: {error.strerror or error}; "
                    "they are read from the store each time"
                )

    def _claim(self, numbers: list[int]) -> None:
        """Be the only thread that fetches these blocks."""
        with self._changed:
            self._changed.wait_for(lambda: self._fetching.isdisjoint(numbers))
            self._fetching.update(numbers)

    def _release(self, numbers: list[int]) -> None:
        with self._changed:
            self._fetching.difference_update(numbers)
            self._changed.notify_all()


def _runs(numbers: Iterable[int], longest: int) -> Iterator[tuple[int, int]]:
    """Join neighbours: (first, behind the last) of each run."""
    first = stop = -1
    for number in numbers:
        if number != stop or stop - first == longest:
            if stop > first:
                yield first, stop
            first = number
        stop = number + 1
    if stop > first:
        yield first, stop


def _tell(text: str) -> None:
    """Tell the user: the pager shares the client's standard error."""
    print(f"refault: {text}", file=sys.stderr, flush=True)

"""Swap in the memory of Redis servers: pages that only the pager which put them there can read.

What page is there, and in which version, is known here and nowhere else; when this process
ends, nobody can use what it left.  So `close` removes everything.  A pager that is killed cannot:
the keys begin with ``{refault-swap:HOST:PID:``, so that one sees whose they were.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from refault.errors import StoreError
from refault.stores.codec import Codec, Kind
from refault.stores.swapspace import Key

from . import scripts
from .layout import block_key, pack, unpack
from .server import Command, Server, address

__all__ = ["RedisSwap"]

TIMEOUT = 10.0
BATCH = 512


class _Record(NamedTuple):
    """A page that is there."""

    kind: Kind
    size: int
    number: int
    generation: int


class RedisSwap:
    """Compressed pages on a server or a cluster; see `refault.stores.swapspace.SwapSpace`.

    Parameters
    ----------
    url
        As in `refault.stores.Redis`.
    level
        zstd compression level.
    """

    def __init__(self, url: str, level: int = 1) -> None:
        self._epoch = os.urandom(8)
        self._prefix = f"refault-swap:{socket.gethostname()}:{os.getpid()}:{self._epoch.hex()}"
        self.name = f"swap {address(url)}"
        self._codec = Codec(level)
        self._lock = threading.Lock()
        self._records: dict[Key, _Record] = {}
        self._numbers: dict[Key, int] = {}
        self._generations = itertools.count(1)
        with self._named():
            self._server = Server(url, TIMEOUT)

    def store_all(self, pages: Sequence[tuple[Key, memoryview]]) -> None:
        """Keep pages: one round trip.  Pages of zeros stay here."""
        commands: list[Command] = []
        records: dict[Key, _Record] = {}
        for key, buffer in pages:
            kind, data = self._codec.pack(buffer)
            with self._lock:
                # Should it fail, what is there is no longer right.
                self._records.pop(key, None)
                number = self._numbers.setdefault(key, len(self._numbers))
            records[key] = record = _Record(kind, len(buffer), number, next(self._generations))
            if kind is Kind.ZERO:
                commands.append(("UNLINK", self._name(record)))
            else:
                value = pack(self._epoch, number, record.generation, data)
                commands.append(("EVAL", scripts.PUT, 1, self._name(record), value))
        with self._named():
            self._server.ask(commands)
        with self._lock:
            self._records |= records

    def load_all(self, pages: Sequence[tuple[Key, memoryview]]) -> None:
        """Fill buffers: one round trip."""
        with self._named():
            records = [(self._find(key), buffer) for key, buffer in pages]
            there = [(one, buffer) for one, buffer in records if one.kind is not Kind.ZERO]
            answers = self._server.ask([("GET", self._name(one)) for one, _ in there])
            for (record, buffer), answer in zip(there, answers, strict=True):
                self._unpack(record, answer, buffer)
            for record, buffer in records:
                if record.kind is Kind.ZERO:
                    self._codec.unpack(Kind.ZERO, b"", buffer)

    def load_nowait(self, key: Key, buffer: memoryview) -> bool:
        """Fill `buffer` if it is a page of zeros."""
        with self._lock:
            record = self._records.get(key)
        if record is None or record.kind is not Kind.ZERO or record.size != len(buffer):
            return False
        self._codec.unpack(Kind.ZERO, b"", buffer)
        return True

    def discard_all(self, owner: Hashable) -> None:
        """Forget an owner's pages; the server still has them, until `close`."""
        with self._lock:
            for key in [key for key in self._records if key[0] == owner]:
                del self._records[key]

    def close(self) -> None:
        """Remove everything from the server."""
        with self._lock:
            numbers = sorted(self._numbers.values())
            self._records.clear()
            self._numbers.clear()
        try:
            with self._named(f"keys that begin with {{{self._prefix} are left behind: "):
                for at in range(0, len(numbers), BATCH):
                    part = numbers[at : at + BATCH]
                    self._server.ask([("UNLINK", block_key(self._prefix, n)) for n in part])
        finally:
            self._server.close()

    def _name(self, record: _Record) -> str:
        return block_key(self._prefix, record.number)

    def _find(self, key: Key) -> _Record:
        with self._lock:
            record = self._records.get(key)
        if record is None:
            raise StoreError(f"there is no page {key}; storing it failed", permanent=True)
        return record

    def _unpack(self, record: _Record, value: bytes | None, buffer: memoryview) -> None:
        name = self._name(record)
        if value is None:
            raise StoreError(
                f"the server no longer has {name}, a page that was put there; it is lost:"
                " let the server keep its keys (maxmemory-policy, appendonly)",
                permanent=True,
            )
        block = unpack(value)
        if block is None or (block.epoch, block.number) != (self._epoch, record.number):
            raise StoreError(
                f"{name} does not hold what was written (its checksum is wrong); see whether"
                " other programs write to keys of that name"
            )
        if block.generation != record.generation or len(buffer) != record.size:
            raise StoreError(
                f"{name} is not the version that was written last; it is lost: let the server"
                " write what it has to disk at once (appendfsync)",
                permanent=True,
            )
        self._codec.unpack(record.kind, bytes(block.data), buffer)

    @contextmanager
    def _named(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise StoreError(f"{self.name}: {what}{error}", permanent=error.permanent) from error

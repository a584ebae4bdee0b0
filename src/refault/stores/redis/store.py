"""The store itself: bytes in, bytes out, and nothing that is older than what was written.

A write of less than a block reads the rest of it first.  So two writes of one block must not
run at once: locks, one for every so many blocks, see to it.  Reads take none: what is known of
a block is looked up before it is asked for, so what comes can only be newer.

One process at a time writes: the last one that began to.  The one before notices with its next
write, which fails.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
from collections.abc import Iterator
from typing import Any

from refault.errors import StoreError, UsageError
from refault.stores.base import check_range

from . import scripts
from .layout import COPY_NAMES, PAGE_BLOCKS, ArrayInfo
from .record import Record, overtaken
from .server import Command, Server, address

__all__ = ["Redis"]

STRIPES = 256
BATCH = 512


class Redis:
    """An array's bytes in the memory of a Redis or Valkey server, or of a cluster's nodes.

    It has as many bytes as were given when it was created, zeros at first, and lives until
    `delete`.  `refault.open` makes an array of it, with mode "r", "r+" or "c".

    Parameters
    ----------
    url
        ``redis://HOST:PORT/DB``, ``rediss://...`` or ``unix://...``.  Of a cluster give any node:
        it says what others there are.
    key
        Its name there: all its keys begin with it, in braces.
    size
        Bytes of a new array.  None: there is one by that name.
    block
        Bytes under one key, for a new array: a power of two, 4 KiB or more.  What is written
        in smaller pieces is read first, so give ``page_size`` of `refault.open` at least as much.
    timeout
        Seconds that one try may take; then it counts as failed, and is repeated.

    Raises
    ------
    UsageError
        There is an array by that name already, or there is none; or the server would throw keys
        away when it is full.
    StoreError
        The server does not answer, or has lost a part of the array.

    Notes
    -----
    A block that a server has lost, or that it has only in an older version, is an error, and
    never zeros.  Each has a checksum.  What survives the restart of a server is its own affair: see
    ``appendonly`` and ``appendfsync`` in its configuration.

    Examples
    --------
    >>> import refault
    >>> from refault.stores import Redis
    >>> far = Redis("redis://localhost", "numbers", size=8 << 30)  # doctest: +SKIP
    >>> x = refault.open(far, "r+", dtype="f8", resident="1GiB")  # doctest: +SKIP
    """

    _info: ArrayInfo
    _server: Server | None

    def __init__(
        self,
        url: str,
        key: str,
        *,
        size: int | None = None,
        block: int = 64 << 10,
        timeout: float = 10.0,
    ) -> None:
        if not key or not key.isprintable() or "{" in key or "}" in key:
            raise UsageError(
                f"key={key!r}: give a name that can be printed, without braces, which place keys"
                " on nodes"
            )
        block = operator.index(block)
        if block < 4096 or block & (block - 1):
            raise UsageError(f"block={block} is not a power of two from 4096 on")
        self.url = url
        self.timeout = float(timeout)
        self.name = f"{address(url)} {key}"
        server = Server(url, self.timeout)
        try:
            with self._named():
                if size is None:
                    self._info = _find(server, key)
                else:
                    size = operator.index(size)
                    if size <= 0:
                        raise UsageError(f"size={size}: give the bytes of the array, at least one")
                    self._info = _create(server, key, size, block)
        finally:
            server.close()
        self._reset()

    @property
    def size(self) -> int:
        return self._info.size

    @property
    def block(self) -> int:
        """Bytes under one key."""
        return self._info.block

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; blocks that were never written are zeros."""
        check_range(self, offset, len(buffer), "read")
        with self._named(f"cannot read at offset {offset}: "):
            blocks = self._blocks(offset, len(buffer))
            for number, data in zip(blocks, self._read(blocks), strict=True):
                start, end = self._info.block_range(number)
                low, high = max(start, offset), min(end, offset + len(buffer))
                part = data[low - start : high - start] if data else bytes(high - low)
                buffer[low - offset : high - offset] = part

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Store `buffer`; when it returns, the servers have it in memory."""
        check_range(self, offset, len(buffer), "write")
        with self._named(f"cannot write at offset {offset}: "):
            server = self._connect()
            self._record.take(server)
            blocks = self._blocks(offset, len(buffer))
            self._record.prepare(server, blocks)
            # Before, too: who may no longer write must not leave blocks behind.
            self._record.check(server)
            with self._locked(blocks):
                generations = []
                commands: list[Command] = []
                for number, data in self._merged(blocks, offset, buffer):
                    generations.append(self._record.next_generation())
                    value = self._info.pack(number, generations[-1], data)
                    commands.append(("EVAL", scripts.PUT, 1, self._info.block_key(number), value))
                if scripts.OVERTAKEN in server.ask(commands):
                    raise overtaken()
                self._record.note(server, blocks.start, generations)

    def flush(self) -> None:
        """See that all is still there: what was written is in the servers' memory already."""
        if self._record.writing:
            with self._named():
                self._record.check(self._connect())

    def close(self) -> None:
        """Close the connections; the array stays where it is."""
        with self._connecting:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def delete(self) -> None:
        """Remove the array from the servers; who has it open gets errors."""
        with self._named(), contextlib.closing(Server(self.url, self.timeout)) as server:
            _delete(server, self._info)

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("url", "timeout", "name", "_info")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"<refault.stores.Redis {self.name} {self.size} bytes>"

    def _reset(self) -> None:
        self._server = None
        self._record = Record(self._info)
        self._connecting = threading.Lock()
        self._stripes = [threading.Lock() for _ in range(STRIPES)]

    def _connect(self) -> Server:
        with self._connecting:
            if self._server is None:
                self._server = Server(self.url, self.timeout)
            return self._server

    @contextlib.contextmanager
    def _named(self, what: str = "") -> Iterator[None]:
        """Say in an error which array it is about, and what was asked of it."""
        try:
            yield
        except StoreError as error:
            raise StoreError(f"{self.name}: {what}{error}", permanent=error.permanent) from error

    def _blocks(self, offset: int, length: int) -> range:
        block = self._info.block
        return range(offset // block, -(-(offset + length) // block))

    @contextlib.contextmanager
    def _locked(self, blocks: range) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for stripe in sorted({number % STRIPES for number in blocks}):
                stack.enter_context(self._stripes[stripe])
            yield

    def _merged(
        self, blocks: range, offset: int, buffer: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        """Whole blocks: what is to be written, and around it what is there."""
        end = offset + len(buffer)
        for number in blocks:
            first, last = self._info.block_range(number)
            if offset <= first and last <= end:
                yield number, buffer[first - offset : last - offset]
                continue
            (old,) = self._read(range(number, number + 1))
            whole = bytearray(old) if old else bytearray(last - first)
            low, high = max(first, offset), min(last, end)
            whole[low - first : high - first] = buffer[low - offset : high - offset]
            yield number, memoryview(whole)

    def _read(self, blocks: range) -> list[memoryview | None]:
        """The data of some blocks; None: it was never written."""
        server, record = self._connect(), self._record
        known = {number: record.known(server, number) for number in blocks}
        found: dict[int, memoryview | None] = dict.fromkeys(blocks)
        found |= self._ask(server, [n for n in blocks if not record.empty(n)], known)
        lost = [number for number in blocks if found[number] is None]
        if not all(known[number] for number in lost):
            if record.writing:
                # Nobody else can have written them, if nobody else may write.
                record.check(server)
            else:
                # Perhaps another process has written them since we looked.
                known = {number: record.known(server, number, anew=True) for number in lost}
                lost = [number for number in lost if known[number]]
                found |= self._ask(server, lost, known)
                lost = [number for number in lost if found[number] is None]
        for number in lost:
            if known[number]:
                raise StoreError(
                    f"block {number} (key {self._info.block_key(number)}) was written, and the"
                    " server no longer has it; restore the server's data",
                    permanent=True,
                )
        return [found[number] for number in blocks]

    def _ask(
        self, server: Server, numbers: list[int], known: dict[int, int]
    ) -> dict[int, memoryview | None]:
        """What the servers have of some blocks; None: nothing."""
        if not numbers:
            return {}
        found: dict[int, memoryview | None] = {}
        answers = server.ask([("GET", self._info.block_key(number)) for number in numbers])
        for number, answer in zip(numbers, answers, strict=True):
            block = None if answer is None else self._info.unpack(number, answer)
            found[number] = None if block is None else block.data
            if block is None:
                continue
            if block.generation < known[number]:
                raise StoreError(
                    f"block {number} (key {self._info.block_key(number)}) is older on the server"
                    " than what was written last; restore the server's data",
                    permanent=True,
                )
            self._record.seen(number, block.generation)
        return found


def _metas(server: Server, name: str) -> dict[int, dict[str, bytes]]:
    """What the server has of an array's record: the fields of each copy that is there."""
    names = COPY_NAMES if server.clustered else COPY_NAMES[:1]
    fields = ("size", "block", "epoch", "copies")
    commands: list[Command] = [("HMGET", ArrayInfo.meta_key(name, copy), *fields) for copy in names]
    answers = server.ask(commands)
    return {
        copy: dict(zip(fields, values, strict=True))
        for copy, values in zip(names, answers, strict=True)
        if None not in values
    }


def _as_info(name: str, meta: dict[str, bytes]) -> ArrayInfo:
    return ArrayInfo(
        name,
        int(meta["size"]),
        int(meta["block"]),
        bytes.fromhex(meta["epoch"].decode()),
        tuple(map(int, meta["copies"].split(b","))),
    )


def _find(server: Server, name: str) -> ArrayInfo:
    metas = _metas(server, name)
    if not metas:
        raise UsageError(f"there is no array {name!r} on the server; give its size to make one")
    infos = {copy: _as_info(name, meta) for copy, meta in metas.items()}
    info = next(iter(infos.values()))
    if set(infos) != set(info.copies) or len(set(infos.values())) > 1:
        raise StoreError(
            f"the record of the array is there in copies {sorted(infos)}, and should be in"
            f" {list(info.copies)}: a node has lost its data; restore it",
            permanent=True,
        )
    return info


def _create(server: Server, name: str, size: int, block: int) -> ArrayInfo:
    exists = UsageError(
        f"there is an array {name!r} on the server already; leave size out to open it, or delete it"
    )
    if _metas(server, name):
        raise exists
    info = ArrayInfo(name, size, block, os.urandom(8), _choose_copies(server, name))
    fields: dict[str, str | int] = {
        "size": size,
        "block": block,
        "epoch": info.epoch.hex(),
        "copies": ",".join(map(str, info.copies)),
        "term": 0,
    }
    words = [word for field in fields.items() for word in field]
    for copy in info.copies:
        command: Command = ("EVAL", scripts.CREATE, 1, info.meta_key(name, copy), *words)
        if server.ask([command]) != [0]:
            raise exists
    return info


def _choose_copies(server: Server, name: str) -> tuple[int, ...]:
    """Names of copies that are on two nodes, if there are two."""
    nodes = {copy: server.node_of(ArrayInfo.meta_key(name, copy)) for copy in COPY_NAMES}
    for copy, node in nodes.items():
        if node != nodes[0]:
            return 0, copy
    return (0,)


def _delete(server: Server, info: ArrayInfo) -> None:
    """Remove blocks, then the pages of the record that tell of them, then the rest."""
    pages = [page for page in range(info.pages) if any(server.ask(_exists(info, page)))]
    for page in pages:
        first = page * PAGE_BLOCKS
        for at in range(first, min(first + PAGE_BLOCKS, info.blocks), BATCH):
            numbers = range(at, min(at + BATCH, first + PAGE_BLOCKS, info.blocks))
            server.ask([("UNLINK", info.block_key(number)) for number in numbers])
        server.ask([("UNLINK", info.page_key(copy, page)) for copy in info.copies])
    server.ask([("UNLINK", info.meta_key(info.name, copy)) for copy in info.copies])


def _exists(info: ArrayInfo, page: int) -> list[Command]:
    return [("EXISTS", info.page_key(copy, page)) for copy in info.copies]

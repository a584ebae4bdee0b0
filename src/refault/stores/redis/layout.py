"""Which keys an array has, and what is in them.  Pure: nothing is asked here.

    {NAME:G}:N                  block N; G = N // 16, so that 16 neighbours are on one node
    {NAME:record:C}:meta        a hash: what array this is, and who may write
    {NAME:record:C}:page:P      the generations of 8192 blocks, 8 bytes each

A cluster places a key by the text in the braces.  The record has a copy on each of two
masters, C names the copy: what a node has lost, the other one knows of.

A block carries which array and which block it is, its generation, and a checksum over all that.
A generation grows with every write of a block: the term of the writer in the upper bits, a counter
below.  Lua computes with doubles, so there are 52 bits.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from typing import NamedTuple

from refault.errors import StoreError

__all__ = [
    "COPY_NAMES",
    "PAGE_BLOCKS",
    "PAGE_BYTES",
    "TERM_LIMIT",
    "ArrayInfo",
    "Block",
    "block_key",
    "generation",
    "pack",
    "pack_generations",
    "unpack",
    "unpack_generations",
]

COPY_NAMES = range(16)
"""Names that a copy of the record may have; two of them lie on different nodes."""

GROUP_BLOCKS = 16
PAGE_BLOCKS = 8192
PAGE_BYTES = PAGE_BLOCKS * 8
COUNTER_BITS = 32
TERM_LIMIT = 1 << 20

_HEAD = struct.Struct(">4s8sQQI")
_MAGIC = b"rfb1"


class Block(NamedTuple):
    """What was found under a block's key."""

    epoch: bytes
    number: int
    generation: int
    data: memoryview


class ArrayInfo(NamedTuple):
    """What array it is, as its record says.

    Attributes
    ----------
    epoch
        Eight bytes drawn when it was created: another array of the same name has others.
    copies
        Names of the copies of the record.
    """

    name: str
    size: int
    block: int
    epoch: bytes
    copies: tuple[int, ...]

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    @property
    def pages(self) -> int:
        return -(-self.blocks // PAGE_BLOCKS)

    @staticmethod
    def meta_key(name: str, copy: int) -> str:
        return f"{{{name}:record:{copy}}}:meta"

    def page_key(self, copy: int, page: int) -> str:
        return f"{{{self.name}:record:{copy}}}:page:{page}"

    def block_key(self, number: int) -> str:
        return block_key(self.name, number)

    def block_range(self, number: int) -> tuple[int, int]:
        """The bytes of the array that a block holds."""
        start = number * self.block
        return start, min(start + self.block, self.size)

    def pack(self, number: int, generation: int, data: bytes | bytearray | memoryview) -> bytes:
        """What is kept under the block's key."""
        return pack(self.epoch, number, generation, data)

    def unpack(self, number: int, value: bytes) -> Block | None:
        """Look at what was kept; None: it belongs to an earlier array of that name.

        Raises
        ------
        StoreError
            It is not what was written.
        """
        block = unpack(value)
        if block is not None:
            start, end = self.block_range(number)
            if block.epoch != self.epoch:
                return None
            if block.number == number and len(block.data) == end - start:
                return block
        raise StoreError(
            f"key {self.block_key(number)} does not hold what was written (its checksum is"
            " wrong); see whether other programs write to keys of that name"
        )


def block_key(name: str, number: int) -> str:
    """The key of a block; neighbours are on one node."""
    return f"{{{name}:{number // GROUP_BLOCKS}}}:{number}"


def pack(epoch: bytes, number: int, generation: int, data: bytes | bytearray | memoryview) -> bytes:
    """Data, and before it what it is."""
    head = _HEAD.pack(_MAGIC, epoch, number, generation, 0)
    crc = zlib.crc32(data, zlib.crc32(head))
    return b"".join((head[:-4], crc.to_bytes(4, "big"), data))


def unpack(value: bytes) -> Block | None:
    """What `pack` was given; None: it is not what was packed."""
    if not value.startswith(_MAGIC) or len(value) < _HEAD.size:
        return None
    _, epoch, number, generation, crc = _HEAD.unpack_from(value)
    data = memoryview(value)[_HEAD.size :]
    if crc != zlib.crc32(data, zlib.crc32(value[: _HEAD.size - 4] + bytes(4))):
        return None
    return Block(epoch, number, generation, data)


def generation(term: int, counter: int) -> int:
    """The generation of a writer's nth write."""
    return term << COUNTER_BITS | counter


def pack_generations(generations: list[int]) -> bytes:
    """Generations as a page of the record holds them."""
    return struct.pack(f">{len(generations)}Q", *generations)


def unpack_generations(page: bytes) -> array[int]:
    """A page of the record; an empty one is all zeros."""
    found = array("Q", page or bytes(PAGE_BYTES))
    if sys.byteorder == "little":
        found.byteswap()
    return found

"""Which ranges of addresses of this process are refault's."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refault.client.memory import Memory

__all__ = ["add", "find", "live", "maps_file", "remove"]

# A plain dictionary of weak references: one bytecode changes it, and so neither a thread
# nor a fork can find it half changed.  Entries are removed before their addresses can be
# given to anybody else.
_memories: dict[int, weakref.ref[Memory]] = {}


def add(memory: Memory) -> None:
    """Enter a mapped range."""
    _memories[memory.address] = weakref.ref(memory)


def remove(address: int) -> None:
    """Take a range out, before it is unmapped."""
    _memories.pop(address, None)


def live() -> list[Memory]:
    """Return all mapped ranges."""
    found = (reference() for reference in list(_memories.values()))
    return [memory for memory in found if memory is not None]


def find(address: int) -> Memory | None:
    """Return the range that `address` lies in."""
    for memory in live():
        if memory.address <= address < memory.address + memory.length:
            return memory
    return None


def maps_file(identity: tuple[int, int]) -> bool:
    """Whether the file with this device and inode number is mapped."""
    return any(memory.file == identity for memory in live())

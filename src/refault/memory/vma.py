"""A range of a client's memory that maps a part of a mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .mapping import Mapping
from .rwsem import RwSemaphore

if TYPE_CHECKING:
    from .address_space import AddressSpace

__all__ = ["Vma"]


class Vma:
    """One mapped range.  Source: the kernel's `struct vm_area_struct`.

    Parameters
    ----------
    mm
        The address space it belongs to.
    start, length
        Bytes in the client; multiples of 4096.
    mapping, offset
        What it maps, and from which byte on (a multiple of 4096).
    writable
        ``VM_WRITE``: whether a write fault is legal here.

    Attributes
    ----------
    lock
        Held for reading by a fault, for writing by unmap and snapshot.
    detached
        True once it is unmapped; a fault that slept must look again.
    """

    __slots__ = ("detached", "end", "lock", "mapping", "mm", "offset", "start", "writable")

    def __init__(
        self,
        mm: AddressSpace,
        start: int,
        length: int,
        mapping: Mapping,
        offset: int,
        *,
        writable: bool,
    ) -> None:
        self.mm = mm
        self.start = start
        self.end = start + length
        self.mapping = mapping
        self.offset = offset
        self.writable = writable
        self.lock = RwSemaphore()
        self.detached = False

    def index_of(self, address: int) -> int:
        """The unit that `address` lies in."""
        return (address - self.start + self.offset) >> self.mapping.page_shift

    def unit_range(self, first: int, last: int) -> tuple[int, int]:
        """Addresses ``[start, end)`` of units ``[first, last)``, cut to this vma."""
        shift = self.mapping.page_shift
        base = self.start - self.offset
        start = base + (first << shift)
        end = base + (last << shift)
        return max(start, self.start), min(end, self.end)

    def units(self, start: int, end: int) -> tuple[int, int]:
        """Units ``[first, last)`` that bytes ``[start, end)`` of this vma touch."""
        if end <= start:
            return 0, 0
        return self.index_of(self.start + start), self.index_of(self.start + end - 1) + 1

    def __repr__(self) -> str:
        return f"<Vma {self.start:#x}-{self.end:#x} {self.mapping.name}>"

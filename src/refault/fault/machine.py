"""What the fault path asks of the machine under it.

Two machines exist: the Linux machine (userfaultfd and a memfd) and the simulated one.
No call here waits.  What takes time is begun, and its end is reported to the
mapping (`Mapping.end_read`, `Mapping.end_writeback`), which wakes the tasks that
wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from refault.memory.budget import Budget
from refault.memory.mapping import Mapping, PageError
from refault.memory.protection import Image
from refault.memory.vma import Vma
from refault.memory.wait import WaitQueue

__all__ = ["Machine", "Runs"]

Runs: TypeAlias = Sequence[tuple[int, int]]
"""Units ``[first, last)`` of one mapping, in order.  Batches go over many runs at once: to free a
page alone costs as much as to free a run."""


class Machine(Protocol):
    """Carries out what the fault path decides."""

    def map_units(
        self, vma: Vma, first: int, last: int, *, writable: bool, protected: bool | None
    ) -> None:
        """Map units ``[first, last)``, all uptodate, into `vma` and wake who sleeps there.

        With `writable` false they are mapped write-protected.  Units that
        are mapped already stay, but get writable if asked for.
        """

    def write_protect(self, mapping: Mapping, runs: Runs) -> None:
        """Write-protect units in every vma that maps them.

        When it returns no thread can change them any more without a fault.
        """

    def punch(self, mapping: Mapping, indexes: Sequence[int]) -> None:
        """Take units, in ascending order, out of every page table and free their memory."""

    def read_now(self, mapping: Mapping, index: int) -> bool:
        """Fill a locked, charged unit at once, if that needs no waiting.

        Raises
        ------
        Exception
            The store was asked and failed; see `read_failed`.
        """

    def submit_read(self, mapping: Mapping, index: int) -> None:
        """Begin to fill a locked, charged unit; `Mapping.end_read` follows."""

    def demand_read(self, mapping: Mapping, index: int) -> None:
        """Somebody waits for a read that has begun: it goes before those that nobody waits for."""

    def submit_write(self, mapping: Mapping, first: int, last: int) -> None:
        """Begin to write units back; `Mapping.end_writeback` of each follows."""

    def read_failed(self, mapping: Mapping, index: int) -> None:
        """A read failed: say so, and let its `PageError` cool down if it is to be retried."""

    def write_failed(self, mapping: Mapping, error: BaseException) -> PageError:
        """A write failed: say so; the pause before the next one is the `PageError` returned."""

    def wake_reclaim(self, budget: Budget) -> None:
        """Begin to write back and evict for `budget`, in the background."""

    def copy_unit(self, mapping: Mapping, index: int) -> Image | WaitQueue:
        """Copy an uptodate, protected unit; or there is no room, and when to try again."""

    def free_image(self, image: Image) -> None:
        """Nobody needs a copy any more."""

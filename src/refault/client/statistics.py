"""What the pager has counted for a region."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["RegionStatistics"]


class RegionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters and sizes of a region at one moment; they do not change afterwards.

    A counter that the pager does not keep is 0; one that has no name here is in
    `more`.
    """

    faults: int = 0
    """Page faults of the program."""
    major: int = 0
    """Faults that had to read, or to wait for a read: demand faults."""
    minor: int = 0
    """The others: the page was in memory."""
    native: int = 0
    """Faults that the native library served."""
    write_protect_faults: int = 0
    """Faults that were the first write to a page that was present."""
    attempts: int = 0
    """Tries of the fault path, all faults together."""
    max_attempts: int = 0
    """Most tries that one fault took."""
    retries_page_lock: int = 0
    """Retries because somebody else had the page locked."""
    retries_address_space: int = 0
    """Retries because the address space was being changed."""
    retries_read: int = 0
    """Retries because the page had to be read."""
    retries_writeback: int = 0
    """Retries because the page was being written."""
    retries_memory: int = 0
    """Retries because the budget was used up."""
    retries_write_protect: int = 0
    """Retries because a snapshot had to copy the page first."""
    retries_store_error: int = 0
    """Retries because the store had failed."""
    given_up: int = 0
    """Faults that ended with SIGBUS or KeyboardInterrupt."""
    refaults: int = 0
    """Faults on pages that had been evicted a short time before."""
    evictions: int = 0
    """Pages that were dropped to stay within the budget, or by `Region.evict`."""
    readahead: int = 0
    """Pages that were read before anyone asked for them."""
    prefetched: int = 0
    """Those of them that a working set names."""
    store_reads: int = 0
    store_writes: int = 0
    store_errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    swap_reads: int = 0
    swap_writes: int = 0
    resident: int = 0
    """Bytes in memory now."""
    peak_resident: int = 0
    """Most bytes there ever were in memory."""
    dirty: int = 0
    """Bytes in memory that the store does not have yet."""
    pinned: int = 0
    """Bytes that stay in memory."""
    budget: int = -1
    """Bytes that may be in memory; -1: bounded by the budget of the process alone."""
    page_size: int = 0
    """Bytes that come and go together."""
    copies: int = 0
    """Bytes in memory that all snapshots together have of what was changed since."""
    unit_changes: int = 0
    """How often that has changed."""
    more: dict[str, int | float] = {}
    """What else the pager counts; some of it for all regions together."""

    @property
    def retries(self) -> int:
        """Tries beyond the first one, for all reasons."""
        return sum(getattr(self, name) for name in RETRIES)

    @classmethod
    def of(cls, counted: Mapping[str, int | float]) -> RegionStatistics:
        """Make one from what the pager answers."""
        known = {name: value for name, value in counted.items() if name in NAMES}
        more = {name: value for name, value in counted.items() if name not in NAMES}
        return cls(**known, more=more)  # type: ignore[arg-type]


NAMES = frozenset(RegionStatistics.__struct_fields__) - {"more"}
RETRIES = sorted(name for name in NAMES if name.startswith("retries_"))

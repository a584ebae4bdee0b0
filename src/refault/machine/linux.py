"""The Linux machine: what the fault path decides, done with userfaultfd and memfds.

How a unit comes in: its bytes are read into a staging buffer of ours, written to the
memfd with ``pwrite``, and made visible with UFFDIO_CONTINUE.  The memfd is *not*
mapped here.  That is faster than reading into a mapping of it (measured, 64 KiB from
the page cache: 24 us against 43 us, and freeing it again 12 us against 17 us: no
page tables of ours to fill and to flush), and it is safer: a read that fails half way,
or that ends long after everybody gave up, has only touched the staging buffer.

How a unit goes out: UFFDIO_WRITEPROTECT stops the writers, ``pread`` from the memfd feeds the
store, and ``fallocate(PUNCH_HOLE)`` frees the memory and removes it from every
page table; the next touch is a MISSING fault.

A failed ioctl wakes nobody.  So wherever one fails because somebody else was
faster, the range is woken explicitly: the threads there look again.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from refault.errors import StoreError
from refault.fault import reclaim
from refault.fault.machine import Runs
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import OUTLIVES, UNSTORED, Mapping, PageError
from refault.memory.page import PG_AHEAD, PG_SWAPPED, PG_WRITEBACK
from refault.memory.protection import Image
from refault.memory.touched import MOST
from refault.memory.unitlists import UnitLists
from refault.memory.vma import Vma
from refault.memory.wait import WaitQueue
from refault.native import library
from refault.stores.base import Store
from refault.stores.swapspace import Key, SwapSpace

from .copies import Copies
from .server import MappingRecord, ServedClient
from .uffd import (
    CONTINUE_WP,
    WRITEPROTECT_WP,
    Again,
    PageAbsent,
    ProcessGone,
    RangeGone,
    Userfaultfd,
)
from .unitlists import FEW, unit_lists
from .urgency import Urgency

__all__ = ["LinuxAddressSpace", "LinuxMachine", "LinuxMapping", "Services"]

RUN_BYTES = 1 << 20
"""The most that one call reads from, or writes to, a store that does not say what suits it."""

LAZY_PAGES = 1 << 20

BUFFER_BYTES = 2 << 20
"""A run, or one page unit of the largest size."""

SPARE_BUFFERS = 8

INSTALL_BYTES = 256 << 10
"""So much is written to a memfd at a time, and by one thread.

The kernel lets nobody else write to it, or free its memory, meanwhile: threads spin, and the
loop stands still.
"""

BACKOFF_SECONDS = 0.05
BACKOFF_LIMIT = 5.0
WARNING_SECONDS = 0.2
"""So often a mapping warns of failures that may pass, at most."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_PUNCH_HOLE_KEEP_SIZE = 0x2 | 0x1


class Services(Protocol):
    """What the machine needs of the process it runs in."""

    def submit(
        self,
        mapping: LinuxMapping,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], None],
        urgency: Urgency,
    ) -> Callable[[], None]:
        """Run `work` in a thread of the mapping's lane, then `done` in the loop.

        Returns
        -------
        callable
            To be called when somebody waits for it who did not before.
        """

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        """Call `call` in the loop after so many seconds."""

    def spawn_reclaim(self, budget: Budget) -> None:
        """Start the background reclaim of `budget`."""

    def run_in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run `work` in a thread that waits for no store, then `done` in the loop."""


class LinuxAddressSpace(AddressSpace):
    """The address space of a client, with the userfaultfd that reaches into it.

    Attributes
    ----------
    served
        The same for native code, which serves what need not wait; None: there is none.
    """

    def __init__(self, budget: Budget, uffd: Userfaultfd) -> None:
        super().__init__(budget)
        self.uffd = uffd
        self.served: ServedClient | None = None

    def insert(self, vma: Vma) -> None:
        super().insert(vma)
        self.restore(vma)

    def withdraw(self, vma: Vma) -> None:
        """Somebody wants the lock of a vma for writing: native code, which takes no locks, leaves.

        Faults that come from now on wait for the lock, behind the writer.
        """
        if self.served is not None:
            self.served.remove(vma)

    def restore(self, vma: Vma) -> None:
        native = vma.mapping.native  # type: ignore[attr-defined]
        if self.served is not None and native is not None:
            self.served.insert(vma, native)

    def remove(self, vma: Vma) -> None:
        self.withdraw(vma)
        super().remove(vma)


def _bytes_ahead(store: Store) -> int:
    """How far ahead a store must be asked to be kept busy; 0: it does not say."""
    wanted: int = getattr(store, "parallel", 0) * getattr(store, "read_bytes", 0)
    return int(getattr(store, "ahead_bytes", wanted))


class _DropRecord(ctypes.Structure):
    """What native code must know of states to enter that memory was given back."""

    _fields_ = (
        ("forbidden", ctypes.c_uint8),
        ("kept", ctypes.c_uint8),
        ("ahead", ctypes.c_uint8),
        ("most", ctypes.c_uint8),
        ("wasted", ctypes.c_int32),
    )


class LinuxMapping(Mapping):
    """A mapping with its memfd, its store, and its place in swap.

    Parameters
    ----------
    store
        Where pages come from.
    swap
        Where private pages go.
    **others
        See `Mapping`.

    Attributes
    ----------
    held
        How many snapshots and marks need it: with any it outlives its last region.
    """

    def __init__(self, *args: Any, store: Store, swap: SwapSpace, **others: Any) -> None:
        run_bytes = min(getattr(store, "read_bytes", RUN_BYTES), BUFFER_BYTES)
        super().__init__(*args, far=_bytes_ahead(store), run_bytes=run_bytes, **others)
        self.store = store
        self.swap = swap
        self.read_nowait = getattr(store, "read_nowait", None)
        self.fetch = getattr(store, "fetch", None)
        self.memfd = -1
        self.installing = threading.Lock()
        self.given_up: set[int] = set()
        self.native: MappingRecord | None = None
        self.windows: list[Any] = []
        self.window_bytes = 0
        self.window_holds = 0
        self.page_size_given = False
        self.write_pause: PageError | None = None
        self.write_end: BaseException | None = None
        self.demanded: set[int] = set()
        self.begun_ahead: dict[int, Callable[[], None]] = {}
        self.users = 0
        self.held = 0
        self.warned = -math.inf
        try:
            name = os.fsencode(os.path.basename(self.name))[:200]
            self.memfd = os.memfd_create(f"refault:{os.fsdecode(name)}")
            self.resize_memfd()
        except BaseException:
            self._leave_budgets()
            self._close_memfd()
            raise

    def may_warn(self) -> bool:
        """Whether the last warning is long enough ago: an outage fails all that is under way."""
        now = time.monotonic()
        if now - self.warned < WARNING_SECONDS:
            return False
        self.warned = now
        return True

    @staticmethod
    def make_flags(pages: int) -> bytearray | memoryview:
        """State bytes whose memory comes when they are first touched.

        A bytearray is written when it is made: 0.1 s and 256 MiB for 16 TiB.
        """
        if pages <= LAZY_PAGES:
            return bytearray(pages)
        return memoryview(mmap.mmap(-1, pages, mmap.MAP_PRIVATE))

    @staticmethod
    def make_lists(pages: int, *, dense: bool) -> UnitLists:
        return unit_lists(pages, dense=dense)

    def _clear(self, indexes: Sequence[int]) -> int:
        native = library()
        if native is None or len(indexes) < FEW:
            return super()._clear(indexes)
        units = array("q", indexes)
        what = _DropRecord(UNSTORED, OUTLIVES, PG_AHEAD, MOST, 0)
        done = native.rf_drop(
            ctypes.addressof(ctypes.c_char.from_buffer(self.flags)),
            ctypes.addressof(ctypes.c_char.from_buffer(self.touched)),
            units.buffer_info()[0],
            len(units),
            ctypes.addressof(what),
        )
        return int(what.wasted) + super()._clear(indexes[done:])

    def gate(self) -> None:
        if self.native is not None:
            self.native.gate()

    def set_error(self, index: int, error: BaseException, *, permanent: bool) -> PageError:
        found = super().set_error(index, error, permanent=permanent)
        self.gate()
        return found

    def set_uptodate(self, index: int) -> None:
        errors = bool(self.errors)
        super().set_uptodate(index)
        if errors:
            self.gate()

    def grow(self, size: int) -> None:
        super().grow(size)
        self.resize_memfd()
        self._renew()

    def budget_changed(self) -> None:
        super().budget_changed()
        self._renew()

    def use_file_windows(self, use: bool) -> None:
        """Whether ranges that are read in order may be overlaid with the file itself."""
        if use != self.file_windows:
            self.file_windows = use
            self.budget_changed()

    def can_change(self) -> bool:
        windows = any(one.windows for one in self.windows)
        return not windows and not self.given_up and super().can_change()

    def give_up(self, index: int) -> None:
        """A Ctrl-C leaves a page of 0xFF in a unit that is absent."""
        self.given_up.add(index)
        self.gate()

    def take_back(self, index: int) -> None:
        """The 0xFF page of a unit is gone, or about to go."""
        self.given_up.discard(index)
        self.gate()

    def _renew(self) -> None:
        if self.native is not None:
            self.native.refresh()

    def byte_ranges(self, runs: Runs) -> list[tuple[int, int]]:
        """Runs of units as (offset, length); the last unit may be shorter than the others."""
        shift, size = self.page_shift, self.size
        return [
            (first << shift, min(last << shift, size) - (first << shift)) for first, last in runs
        ]

    def pages_in(
        self, units: list[int], view: memoryview, start: int
    ) -> list[tuple[Key, memoryview]]:
        """Units as swap takes them, out of bytes that begin at `start`."""
        bounds = [self.index_bytes(index) for index in units]
        return [
            ((self.number, index), view[low - start : high - start])
            for index, (low, high) in zip(units, bounds, strict=True)
        ]

    def enter(self) -> None:
        """A thread is about to use the memfd; `leave` follows in the loop."""
        self.users += 1

    def leave(self) -> None:
        """A thread is done with the memfd."""
        self.users -= 1
        if self.closed and not self.users:
            self._close_memfd()

    def resize_memfd(self) -> None:
        """Make the memfd as large as the mapping, in whole pages."""
        os.ftruncate(self.memfd, -(-self.size // 4096) * 4096)

    def close(self) -> None:
        """Give everything back; the memfd when the last thread is out of it."""
        self.closed = True
        if self.native is not None:
            self.native.close()
        self.swap.discard_all(self.number)
        usage = self.budget.usage
        if usage:
            self.budget.uncharge(usage)
        self._leave_budgets()
        if not self.users:
            self._close_memfd()
        close = getattr(self.store, "close", None)
        if close is not None:
            close()

    def _leave_budgets(self) -> None:
        level: Budget | None = self.budget
        while level is not None:
            level.mappings.remove(self)
            level = level.parent

    def _close_memfd(self) -> None:
        # Not a number that soon is another memfd's.
        memfd, self.memfd = self.memfd, -1
        if memfd >= 0:
            os.close(memfd)


def _protect(uffd: Userfaultfd, start: int, length: int) -> None:
    while True:
        try:
            uffd.write_protect(start, length, WRITEPROTECT_WP)
        except Again:
            continue
        except RangeGone:
            pass
        return


class Buffers:
    """Staging buffers for threads; a few are kept, since fresh memory is slow."""

    def __init__(self) -> None:
        self.spare: list[bytearray] = []

    @contextlib.contextmanager
    def take(self) -> Iterator[memoryview]:
        """A buffer that is large enough for one run, for as long as the block lasts."""
        try:
            buffer = self.spare.pop()
        except IndexError:
            buffer = bytearray(BUFFER_BYTES)
        with memoryview(buffer) as view:
            yield view
        if len(self.spare) < SPARE_BUFFERS:
            self.spare.append(buffer)


class LinuxMachine:
    """See `refault.fault.machine.Machine`.

    Parameters
    ----------
    services
        Threads, timers and tasks of the pager.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.staging = bytearray(BUFFER_BYTES)
        self.staging_view = memoryview(self.staging)
        self.native = library()
        self.plugged: dict[LinuxMapping, list[int]] = {}
        self.plugged_writes: dict[LinuxMapping, list[tuple[int, int]]] = {}
        self.bridges: dict[LinuxMapping, list[tuple[int, int]]] = {}
        self.buffers = Buffers()
        self.copies = Copies(services, say)

    # -- page tables ----------------------------------------------------------

    def map_units(
        self, vma: Vma, first: int, last: int, *, writable: bool, protected: bool | None
    ) -> None:
        """Map units, see `Machine.map_units`."""
        start, end = vma.unit_range(first, last)
        uffd: Userfaultfd = vma.mm.uffd  # type: ignore[attr-defined]

        def answer(start: int, end: int) -> None:
            if not protected:
                uffd.continue_(start, end - start, 0 if writable else CONTINUE_WP)
            if writable and protected is not False:
                uffd.write_protect(start, end - start, 0)

        try:
            answer(start, end)
        except PageAbsent:
            raise AssertionError(
                f"units {first}..{last} of {vma} are uptodate but absent"
            ) from None
        except Again:
            self._wake(uffd, start, end)
        except RangeGone:
            # Unmapped; or a window of the file lies over a part of them, or the kernel has two
            # mappings there, and no call may cross from one to the other.
            for page in range(start, end, mmap.PAGESIZE):
                try:
                    answer(page, page + mmap.PAGESIZE)
                except (RangeGone, Again):
                    self._wake(uffd, page, page + mmap.PAGESIZE)

    def _wake(self, uffd: Userfaultfd, start: int, end: int) -> None:
        try:
            uffd.wake(start, end - start)
        except ProcessGone:
            pass

    def write_protect(self, mapping: Mapping, runs: Runs) -> None:
        """Write-protect units everywhere, see `Machine.write_protect`."""
        for vma in mapping.vmas:
            if not vma.writable or vma.mm.dead:
                continue
            uffd: Userfaultfd = vma.mm.uffd  # type: ignore[attr-defined]
            ranges = [vma.unit_range(first, last) for first, last in runs]
            ranges = [(start, end) for start, end in ranges if start < end]
            done = 0
            if self.native is not None:
                pairs = array("q", [n for start, end in ranges for n in (start, end - start)])
                done = self.native.rf_protect(uffd.fd, pairs.buffer_info()[0], len(ranges))
            for start, end in ranges[done:]:
                _protect(uffd, start, end - start)

    def punch(self, mapping: Mapping, indexes: Sequence[int]) -> None:
        """Free units, see `Machine.punch`."""
        assert isinstance(mapping, LinuxMapping)
        # Whole units, the last one too: of a page that is punched in part the rest stays, as zeros.
        shift = mapping.page_shift
        done = 0
        if self.native is not None:
            units = array("q", indexes)
            done = self.native.rf_punch(mapping.memfd, shift, units.buffer_info()[0], len(units))
        for first, last in reclaim.runs(indexes[done:]):
            start, length = first << shift, (last - first) << shift
            if _fallocate(mapping.memfd, _PUNCH_HOLE_KEEP_SIZE, start, length):
                number = ctypes.get_errno()
                raise OSError(
                    number, f"cannot free memory of {mapping.name}: {os.strerror(number)}"
                )

    # -- in -------------------------------------------------------------------

    def read_now(self, mapping: Mapping, index: int) -> bool:
        """Fill a unit if that needs no waiting, see `Machine.read_now`."""
        assert isinstance(mapping, LinuxMapping)
        start, end = mapping.index_bytes(index)
        buffer = self.staging_view[: end - start]
        if mapping.flags[index] & PG_SWAPPED:
            if not mapping.swap.load_nowait((mapping.number, index), buffer):
                return False
            mapping.counters.swap_reads += 1
        else:
            if mapping.read_nowait is None or not mapping.read_nowait(start, buffer):
                return False
            mapping.counters.store_reads += 1
        self._take_back(mapping, index)
        self._install(mapping, start, buffer)
        mapping.counters.bytes_read += len(buffer)
        return True

    def _install(self, mapping: LinuxMapping, start: int, buffer: memoryview) -> None:
        """Put bytes into the memfd; also called in threads."""
        for at in range(0, len(buffer), INSTALL_BYTES):
            part = buffer[at : at + INSTALL_BYTES]
            with mapping.installing:
                written = os.pwrite(mapping.memfd, part, start + at)
            if written != len(part):
                raise StoreError(f"{mapping.name}: no memory for {len(part)} bytes at {start + at}")

    def _take_back(self, mapping: LinuxMapping, index: int) -> None:
        """Drop the 0xFF page that a Ctrl-C left in a unit, if there is one."""
        if index in mapping.given_up:
            mapping.take_back(index)
            self.punch(mapping, [index])

    def submit_read(self, mapping: Mapping, index: int) -> None:
        """Begin to fill a unit, see `Machine.submit_read`.

        Reads that are submitted in the same turn of the loop and lie side by side
        become one: see `unplug`.
        """
        assert isinstance(mapping, LinuxMapping)
        self.plugged.setdefault(mapping, []).append(index)

    def demand_read(self, mapping: Mapping, index: int) -> None:
        """Somebody waits for a read, see `Machine.demand_read`.

        Neighbours that were joined to the same read come with it.
        """
        assert isinstance(mapping, LinuxMapping)
        mapping.demanded.add(index)
        hurry = mapping.begun_ahead.pop(index, None)
        if hurry is not None:
            hurry()

    def bridge(self, mapping: LinuxMapping, first: int, last: int) -> None:
        """Units ``[first, last)`` that are submitted in this turn may become one read.

        What lies between them is read as well, and dropped.
        """
        self.bridges.setdefault(mapping, []).append((first, last))

    def unplug(self) -> None:
        """Send the reads and writes collected since the last turn to the threads."""
        while self.plugged_writes:
            self._start_writes(*self.plugged_writes.popitem())
        bridges, self.bridges = self.bridges, {}
        while self.plugged:
            mapping, indexes = self.plugged.popitem()
            indexes.sort()
            bridged = bridges.get(mapping, [])
            run: list[int] = []
            for index in indexes:
                joins = (
                    run
                    and (
                        index == run[-1] + 1
                        or any(first <= run[-1] and index < last for first, last in bridged)
                    )
                    and (index + 1 - run[0]) * mapping.page_size <= mapping.run_bytes
                    and not (mapping.flags[index] ^ mapping.flags[run[0]]) & PG_SWAPPED
                )
                if run and not joins:
                    self._start_read(mapping, run)
                    run = []
                run.append(index)
            self._start_read(mapping, run)

    def _start_read(self, mapping: LinuxMapping, run: list[int]) -> None:
        """Read and install a run of units in a thread; there may be others between them.

        The units are locked for the read, so nobody else touches their part of the memfd;
        except a Ctrl-C, see `_end_read`.
        """
        start = mapping.index_bytes(run[0])[0]
        length = mapping.index_bytes(run[-1])[1] - start
        swapped = bool(mapping.flags[run[0]] & PG_SWAPPED)
        for index in run:
            self._take_back(mapping, index)
        parts = mapping.byte_ranges(list(reclaim.runs(run)))

        def install(first: int, view: memoryview) -> None:
            for at, size in parts:
                low, high = max(at, first), min(at + size, first + len(view))
                if low < high:
                    self._install(mapping, low, view[low - first : high - first])

        def work() -> None:
            if mapping.fetch is not None and not swapped:
                fetched = mapping.fetch(start, length)
                if fetched is not None:
                    first = start
                    for view in fetched:
                        install(first, view)
                        first += len(view)
                    return
            with self.buffers.take() as whole, whole[:length] as view:
                if swapped:
                    mapping.swap.load_all(mapping.pages_in(run, view, start))
                else:
                    mapping.store.read_into(start, view)
                install(start, view)

        def done(_: None, error: BaseException | None) -> None:
            mapping.leave()
            if ahead:
                for index in run:
                    mapping.begun_ahead.pop(index, None)
            if not mapping.closed:
                mapping.counters.swap_reads += len(run) if swapped else 0
                mapping.counters.store_reads += not swapped
                self._end_read(mapping, run, error)

        mapping.enter()
        ahead = mapping.demanded.isdisjoint(run)
        urgency = Urgency.AHEAD if ahead else Urgency.DEMAND
        hurry = self.services.submit(mapping, work, done, urgency)
        if ahead:
            mapping.begun_ahead.update(dict.fromkeys(run, hurry))

    def _end_read(self, mapping: LinuxMapping, run: list[int], error: BaseException | None) -> None:
        if error is not None and len(run) > 1:
            # One unit of the run may be at fault and the others fine: ask one by one.
            for index in run:
                self._start_read(mapping, [index])
            return
        for index in run:
            if error is None and index in mapping.given_up:
                # 0xFF was written over what was read.
                self._start_read(mapping, [index])
                continue
            if error is None:
                start, end = mapping.index_bytes(index)
                mapping.counters.bytes_read += end - start
            else:
                self.punch(mapping, [index])
            mapping.demanded.discard(index)
            mapping.end_read(index, error, permanent=bool(getattr(error, "permanent", False)))
            if error is not None:
                self.read_failed(mapping, index)

    # -- out ------------------------------------------------------------------

    def submit_write(self, mapping: Mapping, first: int, last: int) -> None:
        """Begin to write units back, see `Machine.submit_write`.

        What is submitted in the same turn of the loop is sent off together: see `unplug`.
        """
        assert isinstance(mapping, LinuxMapping)
        step = max(1, RUN_BYTES // mapping.page_size)
        plugged = self.plugged_writes.setdefault(mapping, [])
        plugged.extend((at, min(at + step, last)) for at in range(first, last, step))

    def _start_writes(self, mapping: LinuxMapping, runs: list[tuple[int, int]]) -> None:
        """Share runs out among threads: many to one, if the store takes many at once."""
        if mapping.private or not hasattr(mapping.store, "write_runs"):
            for run in runs:
                self._start_write(mapping, [run])
            return
        most = max(1, RUN_BYTES // mapping.page_size)
        start = units = 0
        for at, (first, last) in enumerate(runs):
            if units and units + last - first > most:
                self._start_write(mapping, runs[start:at])
                start, units = at, 0
            units += last - first
        self._start_write(mapping, runs[start:])

    def _start_write(self, mapping: LinuxMapping, runs: list[tuple[int, int]]) -> None:
        units = [index for first, last in runs for index in range(first, last)]
        if mapping.write_end is not None:
            mapping.end_writeback(units, mapping.write_end)
            return
        ranges = mapping.byte_ranges(runs)

        def work() -> None:
            if len(ranges) > 1:
                mapping.store.write_runs(mapping.memfd, ranges)  # type: ignore[attr-defined]
                return
            ((start, length),) = ranges
            with self.buffers.take() as whole, whole[:length] as view:
                if os.preadv(mapping.memfd, [view], start) != length:
                    raise StoreError(f"{mapping.name}: memory at {start} cannot be read")
                if mapping.private:
                    mapping.swap.store_all(mapping.pages_in(units, view, start))
                else:
                    mapping.store.write_from(start, view)  # type: ignore[attr-defined]

        def done(_: None, error: BaseException | None) -> None:
            mapping.leave()
            if mapping.write_end is not None:
                return
            counters = mapping.counters
            if error is None:
                mapping.write_pause = None
                counters.bytes_written += sum(length for _, length in ranges)
                if mapping.private:
                    counters.swap_writes += len(units)
                else:
                    counters.store_writes += len(ranges)
            mapping.end_writeback(units, error)

        mapping.enter()
        self.services.submit(mapping, work, done, Urgency.WRITE)

    def end_writes(self, mapping: LinuxMapping, error: BaseException) -> None:
        """Wait for no write of a mapping any longer: all that run, and all to come, have failed."""
        if mapping.write_end is None:
            mapping.write_end = error
            writing = [i for i in range(mapping.pages) if mapping.flags[i] & PG_WRITEBACK]
            mapping.end_writeback(writing, error)

    # -- failures -------------------------------------------------------------

    def read_failed(self, mapping: Mapping, index: int) -> None:
        """Say that a read failed and when it is tried again, see `Machine.read_failed`."""
        error = mapping.errors[index]
        offset, end = mapping.index_bytes(index)
        assert isinstance(mapping, LinuxMapping)
        what = f"{mapping.name}: bytes {offset} to {end} could not be read"
        self._pause(mapping, error, what, error.cause)

    def write_failed(self, mapping: Mapping, error: BaseException) -> PageError:
        """Say that a write failed and when it is tried again, see `Machine.write_failed`."""
        assert isinstance(mapping, LinuxMapping)
        before = mapping.write_pause
        pause = PageError(error, permanent=False, tries=before.tries + 1 if before else 1)
        mapping.write_pause = pause
        self._pause(mapping, pause, f"{mapping.name}: changed pages could not be written", error)
        return pause

    def _pause(
        self, mapping: LinuxMapping, error: PageError, what: str, cause: BaseException
    ) -> None:
        if error.permanent:
            then = "it will not be tried again"
        else:
            seconds = min(BACKOFF_SECONDS * 2 ** (error.tries - 1), BACKOFF_LIMIT)
            seconds *= random.uniform(0.8, 1.2)
            self.services.call_later(seconds, error.cooled)
            then = f"try {error.tries} failed, the next one is in {seconds:.2g} s"
        if error.permanent or (error.tries & (error.tries - 1) == 0 and mapping.may_warn()):
            # A `StoreError` names store, offset and cause itself.
            told = isinstance(cause, StoreError)
            say(f"{cause}; {then}" if told else f"{what}: {type(cause).__name__}: {cause}; {then}")

    def wake_reclaim(self, budget: Budget) -> None:
        """Start background reclaim, see `Machine.wake_reclaim`."""
        self.services.spawn_reclaim(budget)

    # -- snapshots ------------------------------------------------------------

    def copy_unit(self, mapping: Mapping, index: int) -> Image | WaitQueue:
        """Copy a unit before it is written, see `Machine.copy_unit`."""
        assert isinstance(mapping, LinuxMapping)
        if mapping.native is not None:
            mapping.native.copies_begin()
        return self.copies.copy(mapping.memfd, mapping, index)

    def free_image(self, image: Image) -> None:
        """Free a copy, see `Machine.free_image`."""
        self.copies.free(image)


def say(text: str) -> None:
    """Tell the user: the pager shares the client's standard error."""
    try:
        print(f"refault: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass

"""The native server of page faults: ``native/serve.c`` and what it must know.

It serves the faults for which the fault path has an *outcome* (`refault.fault.outcomes`): those
that need not wait.  The pager's loop calls `Server.poll` instead of epoll.  It blocks there; what
comes back is what is for Python: descriptors of its own, faults that are not in the table, streams
of readahead that go on.  What was served meanwhile is entered in the mappings first, before
anything else runs.

The table is filled in as it is needed: a fault that was not in it comes to Python, and there
its outcome is found out for the next time.

What native code changes by itself are numbers in memory that both sides share: the state bytes of
a mapping, the accounts of its budgets, the heads of its readahead.

Copies before a write
---------------------
A write to a unit that a snapshot protects is served like all others: the table has what the fault
path and the monitor, `copy_before_write`, did together when they were tried.  So it is the same
transition as in Python, and as in the simulated machine, in that order of the steps in which the
monitor answers at once.  What is asked besides is in tables that Python makes: which units are
held (`Protection.copied`), and where there is room (`Slots`).  Without them the fault is
Python's: the first one after each instant, all while the copies have no room, and units
that are in swap, or are worked on.

A copy that was made counts, whatever comes of the fault: it is entered before Python does anything
else, and before native code lets anybody write.  If the mapping then fails, the fault path finds
a unit that is free.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_int32, c_int64, c_uint8, c_uint64, c_void_p
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from refault.errors import KernelError
from refault.fault.outcomes import Outcome, outcome
from refault.memory.page import PG_AHEAD, PG_SWAPPED
from refault.native import library

from .slots import RoomRecord, SlotRecord
from .uffd import FAULT_WP, FAULT_WRITE

if TYPE_CHECKING:
    from refault.memory.vma import Vma

    from .copies import Copies
    from .linux import LinuxMapping

__all__ = ["Fault", "MappingRecord", "Server", "ServedClient"]

_OUTCOMES: Final = 32
_LOG: Final = 4096
_TOUCHED: Final = 1024
_SLOW: Final = 1024
_NOTES: Final = 1024
_OTHERS: Final = 64
_STAGING: Final = 2 << 20
_MAP_FROM: Final = 16 << 10
"""Page units from which on it pays to copy from the mapped file instead of reading it first."""

_KNOWN, _READS, _WRITABLE, _MAPS, _UNPROTECTS, _COPIES = 1, 2, 4, 8, 16, 32
_TRACKED, _PROTECTED = 1, 2
_HELD: Final = 1 << 12
"""In the place of an entry: a snapshot needs the unit's content."""
_NOTHING, _CONSTANT, _FILE, _CACHED_FILE, _MAP, _CACHED_MAP = range(6)

_VMA = Struct("=QQQQq")


class _Entry(Structure):
    _fields_ = (("asks", c_uint8), ("state", c_uint8), ("outcome", c_uint8), ("unused", c_uint8))


class _Mapping(Structure):
    _fields_ = (
        ("flags", c_void_p),
        ("copied", c_void_p),
        ("whole", c_int64),
        ("number", c_int64),
        ("budget", c_void_p),
        ("parent", c_void_p),
        ("heads", c_void_p),
        ("source", c_void_p),
        ("source_size", c_int64),
        ("source_touched", c_int64),
        ("shift", c_int32),
        ("memfd", c_int32),
        ("fd", c_int32),
        ("kind", c_int32),
        ("enabled", c_int32),
        ("touched", c_int32),
        ("tracked", c_int32),
        ("unused", c_int32),
        ("uses", c_uint64 * _OUTCOMES),
    )


class _Client(Structure):
    _fields_ = (("vmas", c_void_p), ("count", c_int64), ("last", c_int64), ("uffd", c_int64))


class _Slow(Structure):
    _fields_ = (
        ("event", c_uint64),
        ("flags", c_uint64),
        ("address", c_uint64),
        ("tid", c_uint64),
        ("fd", c_int32),
        ("entry", c_int32),
    )


class _Note(Structure):
    _fields_ = (("address", c_uint64), ("fd", c_int32), ("unused", c_int32))


class _Other(Structure):
    _fields_ = (("fd", c_int32), ("events", c_int32))


class _Server(Structure):
    _fields_ = (
        ("table", c_void_p),
        ("clients", c_void_p),
        ("touched", c_void_p),
        ("log", c_void_p),
        ("slow", c_void_p),
        ("notes", c_void_p),
        ("others", c_void_p),
        ("staging", c_void_p),
        ("rooms", c_void_p),
        ("log_size", c_int64),
        ("touched_size", c_int64),
        ("slow_size", c_int64),
        ("notes_size", c_int64),
        ("clients_count", c_int64),
        ("touched_count", c_int64),
        ("log_count", c_int64),
        ("slow_count", c_int64),
        ("notes_count", c_int64),
        ("others_count", c_int64),
        ("copies_count", c_int64),
        ("dry", c_int64),
        ("messages", c_int64),
        ("pressed", c_int64),
        ("placement", c_void_p),
        ("epoll", c_int32),
        ("around", c_int32),
    )


_STRUCTURES = (
    _Entry,
    _Mapping,
    None,
    _Client,
    _Slow,
    _Note,
    _Other,
    SlotRecord,
    RoomRecord,
    _Server,
)


class Fault(NamedTuple):
    """A message that is for Python: see `Userfaultfd.read_messages`."""

    event: int
    flags: int
    address: int
    tid: int


class MappingRecord:
    """What native code knows of one mapping.

    Parameters
    ----------
    server
        Whose.
    mapping
        Its states, accounts and source are shared.
    """

    def __init__(self, server: Server, mapping: LinuxMapping) -> None:
        self.server = server
        self.mapping = mapping
        self.record = _Mapping()
        self.address = ctypes.addressof(self.record)
        self._keep: list[Any] = []
        self._copied: Any = None
        self.refresh()
        server.records[mapping.number] = self

    def refresh(self) -> None:
        """The mapping has other state bytes, another size, or another source."""
        mapping, record = self.mapping, self.record
        self._drop_source()
        flags: Any = ctypes.c_char.from_buffer(mapping.flags) if mapping.pages else None
        self._keep = [flags]
        record.flags = ctypes.addressof(flags) if flags is not None else None
        record.whole = mapping.size // mapping.page_size
        record.number = mapping.number
        record.shift = mapping.page_shift
        record.memfd = mapping.memfd
        parent = mapping.budget.parent
        record.budget = mapping.budget.account.buffer_info()[0]
        record.parent = None if parent is None else parent.account.buffer_info()[0]
        record.heads = (
            None if mapping.readahead is None else mapping.readahead.heads.buffer_info()[0]
        )
        self._find_source()
        self.gate()

    def gate(self) -> None:
        """Let native code serve the mapping only while nothing is out of the ordinary.

        The table speaks of states.  What else the fault path looks at must be as it was when
        the outcomes were found out.
        """
        mapping = self.mapping
        self.record.enabled = not (mapping.errors or mapping.given_up or mapping.closed)
        if mapping.protection is not None:
            self.record.tracked = _PROTECTED
        else:
            self.record.tracked = 0 if mapping.written is None else _TRACKED
        copied = None if mapping.protection is None else mapping.protection.copied
        if copied is not None and len(copied) == mapping.pages:
            self._copied = ctypes.c_char.from_buffer(copied)
            self.record.copied = ctypes.addressof(self._copied)
        else:
            self.record.copied = self._copied = None

    def copies_begin(self) -> None:
        """A unit is copied before it is written: native code may do that from now on."""
        mapping = self.mapping
        protection = mapping.protection
        if protection is not None and self.record.copied is None:
            protection.make_table(mapping.make_flags, mapping.pages)
            self.gate()

    def close(self) -> None:
        """Native code knows the mapping no longer."""
        self.record.enabled = 0
        self._drop_source()
        self._keep.clear()
        self.server.records.pop(self.mapping.number, None)

    def wrote(self, indexes: Sequence[int]) -> None:
        """Enter who has been let write."""
        written = self.mapping.written
        if written is not None:
            for index in indexes:
                written.wrote(index)

    def settle(self) -> None:
        """Enter what has been served since the last time."""
        record, mapping = self.record, self.mapping
        counters, uses = mapping.counters, record.uses
        record.touched = 0
        for number, found in enumerate(self.server.outcomes):
            times = uses[number]
            if not times:
                continue
            uses[number] = 0
            counters.native += times
            mapping.dirty += found.dirty * times
            for name, step in found.counters:
                setattr(counters, name, getattr(counters, name) + step * times)
            if found.reads:
                counters.store_reads += times
                counters.bytes_read += times * mapping.page_size
            counters.max_attempts = max(counters.max_attempts, found.attempts)

    def _find_source(self) -> None:
        mapping, record = self.mapping, self.record
        record.kind, record.source, record.fd = _NOTHING, None, -1
        where = getattr(mapping.store, "where", None)
        found = where(mapping.page_size) if where is not None else None
        if found is None:
            return
        if found.constant:
            held = (ctypes.c_char * mapping.page_size).from_buffer_copy(
                found.constant[: mapping.page_size]
            )
            self._keep.append(held)
            record.kind, record.source = _CONSTANT, ctypes.addressof(held)
        elif found.fd >= 0:
            record.kind, record.fd = _FILE if found.memory else _CACHED_FILE, found.fd
            if found.mapped and mapping.page_size >= _MAP_FROM and mapping.size:
                source = self.server.library.rf_map_source(found.fd, mapping.size)
                if source:
                    record.source, record.source_size = source, mapping.size
                    record.kind = _MAP if found.memory else _CACHED_MAP

    def _drop_source(self) -> None:
        record = self.record
        if record.kind in (_MAP, _CACHED_MAP):
            self.server.library.rf_unmap_source(record.source, record.source_size)
        record.kind, record.source, record.source_size = _NOTHING, None, 0


class ServedClient:
    """What native code knows of one client: its userfaultfd and its vmas, in order.

    Parameters
    ----------
    server
        Whose.
    uffd
        Descriptor of the userfaultfd.
    on_fault, on_note
        Called with a fault that is for Python, and with the address of one that was served and
        belongs to a stream of readahead.
    """

    def __init__(
        self,
        server: Server,
        uffd: int,
        on_fault: Callable[[Fault], None],
        on_note: Callable[[int], None],
    ) -> None:
        self.server = server
        self.uffd = uffd
        self.on_fault = on_fault
        self.on_note = on_note
        self.record = _Client(None, 0, 0, uffd)
        self._starts: list[int] = []
        self._vmas = bytearray()
        server.add(self)

    def insert(self, vma: Vma, mapping: MappingRecord) -> None:
        """A vma may be served."""
        at = bisect_right(self._starts, vma.start)
        self._starts.insert(at, vma.start)
        self._vmas[at * _VMA.size : at * _VMA.size] = _VMA.pack(
            vma.start, vma.end, vma.offset, mapping.address, vma.writable
        )
        self._changed()

    def remove(self, vma: Vma) -> None:
        """A vma may not be served by native code any longer; nothing if it is not known."""
        at = bisect_right(self._starts, vma.start) - 1
        if at < 0 or self._starts[at] != vma.start:
            return
        del self._starts[at]
        del self._vmas[at * _VMA.size : (at + 1) * _VMA.size]
        self._changed()

    def close(self) -> None:
        """The client is gone."""
        self.server.remove(self)

    def _changed(self) -> None:
        record = self.record
        record.count, record.last = len(self._starts), 0
        # The address only: whoever holds the buffer keeps it from growing.
        record.vmas = (
            ctypes.addressof(ctypes.c_char.from_buffer(self._vmas)) if self._starts else None
        )


class Server:
    """Serves faults until there is something for Python.

    Parameters
    ----------
    native
        The library.
    epoll
        Descriptor that says which descriptors have something.
    placement
        Address of what native code knows of where the loop runs.

    Attributes
    ----------
    records
        By the number of the mapping.
    outcomes
        Those that the table names, by their place.
    on_pressed
        Called with a mapping that was charged, if little is left of a budget.
    """

    @classmethod
    def make(cls, epoll: int, placement: int | None) -> Server | None:
        """A server, or None without a native library."""
        found = library()
        return None if found is None else cls(found, epoll, placement)

    def __init__(self, native: ctypes.CDLL, epoll: int, placement: int | None) -> None:
        self.library = native
        native.rf_serve.argtypes = (c_void_p, ctypes.c_int, c_int64)
        native.rf_map_source.argtypes = (ctypes.c_int, c_int64)
        native.rf_map_source.restype = c_void_p
        native.rf_unmap_source.argtypes = (c_void_p, c_int64)
        native.rf_unmap_source.restype = None
        native.rf_sizes.restype = c_int64
        for number, structure in enumerate(_STRUCTURES):
            size = _VMA.size if structure is None else ctypes.sizeof(structure)
            if native.rf_sizes(number) != size:
                raise KernelError(f"the native library was built from other sources ({structure})")
        self.records: dict[int, MappingRecord] = {}
        self.outcomes: list[Outcome] = []
        self.clients: dict[int, ServedClient] = {}
        self.copies: Copies | None = None
        self.on_pressed: Callable[[LinuxMapping], None] | None = None
        self._tried: set[int] = set()
        self._places: dict[tuple[object, ...], int] = {}
        self._table = (_Entry * (2 * _HELD))()
        self._clients = (c_void_p * 1)()
        self._touched = (POINTER(_Mapping) * _TOUCHED)()
        self._log = array("q", bytes(16 * _LOG))
        self._slow = (_Slow * _SLOW)()
        self._notes = (_Note * _NOTES)()
        self._others = (_Other * _OTHERS)()
        self._staging = bytearray(_STAGING)
        self._hold = ctypes.c_char.from_buffer(self._staging)
        self.state = state = _Server()
        state.table = ctypes.addressof(self._table)
        state.touched = ctypes.addressof(self._touched)
        state.log = self._log.buffer_info()[0]
        state.slow = ctypes.addressof(self._slow)
        state.notes = ctypes.addressof(self._notes)
        state.others = ctypes.addressof(self._others)
        state.staging = ctypes.addressof(self._hold)
        state.log_size, state.touched_size = _LOG, _TOUCHED
        state.slow_size, state.notes_size = _SLOW, _NOTES
        state.epoll, state.around = epoll, PG_AHEAD
        state.placement = placement
        self._pointer = ctypes.addressof(state)

    def add(self, client: ServedClient) -> None:
        """Serve a client."""
        self.clients[client.uffd] = client
        self._clients_changed()

    def remove(self, client: ServedClient) -> None:
        """Serve a client no longer."""
        if self.clients.pop(client.uffd, None) is not None:
            self._clients_changed()

    def copy_to(self, copies: Copies) -> None:
        """Where copies before a write go."""
        self.copies = copies
        self.state.rooms = copies.slots.address

    def _clients_changed(self) -> None:
        addresses = [ctypes.addressof(client.record) for client in self.clients.values()]
        self._clients = (c_void_p * max(1, len(addresses)))(*addresses)
        self.state.clients = ctypes.addressof(self._clients)
        self.state.clients_count = len(addresses)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """Serve faults; call back for what is Python's.

        Parameters
        ----------
        timeout
            Seconds; less than 0: as long as it takes.
        most
            Faults after which it returns in any case.

        Returns
        -------
        list of (fd, events)
            Descriptors that have something, as from `select.epoll.poll`.
        """
        state = self.state
        milliseconds = -1 if timeout < 0 else min(math.ceil(timeout * 1000), 1 << 30)
        error = self.library.rf_serve(self._pointer, milliseconds, most)
        if error:
            raise OSError(-error, "epoll")
        if self.copies is not None and (state.copies_count or state.dry):
            self._enter_copies(self.copies)
        if state.touched_count:
            self._settle()
        for number in range(state.notes_count):
            note = self._notes[number]
            client = self.clients.get(note.fd)
            if client is not None:
                client.on_note(note.address)
        for number in range(state.slow_count):
            slow = self._slow[number]
            if slow.entry >= 0 and slow.entry not in self._tried:
                self._learn(slow.entry)
            client = self.clients.get(slow.fd)
            if client is not None:
                client.on_fault(Fault(slow.event, slow.flags, slow.address, slow.tid))
        return [(one.fd, one.events) for one in self._others[: state.others_count]]

    def _enter_copies(self, copies: Copies) -> None:
        """Enter the copies that were made, and make room for more."""
        for number, index, image in copies.native_copies():
            protection = self.records[number].mapping.protection
            assert protection is not None
            protection.save(index, image)
        copies.lend(self.state.dry)

    def _settle(self) -> None:
        """Enter what was served in the mappings."""
        state = self.state
        count, state.log_count = state.log_count, 0
        touched, state.touched_count = state.touched_count, 0
        numbers = {self._touched[at].contents.number for at in range(touched)}
        logged = self._log[: 2 * count]
        if len(numbers) == 1 and (not count or min(logged[::2]) > 0):
            (number,) = numbers
            if count:
                self.records[number].mapping.entered(logged[1::2])
        else:
            indexes: dict[int, list[int]] = {}
            for number, index in zip(logged[::2], logged[1::2], strict=True):
                indexes.setdefault(number, []).append(index)
            for number, found in indexes.items():
                if number > 0:
                    self.records[number].mapping.entered(found)
                else:
                    self.records[-number].wrote(found)
        for number in numbers:
            self.records[number].settle()
        if state.pressed and self.on_pressed is not None:
            for number in numbers:
                self.on_pressed(self.records[number].mapping)

    def _learn(self, place: int) -> None:
        """Find out what a fault comes to that the table does not have yet."""
        self._tried.add(place)
        state, kind, writable = place & 0xFF, place >> 8 & 7, bool(place >> 11 & 1)
        found = outcome(
            state,
            write=bool(kind & (FAULT_WRITE | FAULT_WP)),
            protected=bool(kind & FAULT_WP),
            writable_vma=writable,
            copies=bool(place & _HELD),
        )
        # What is swapped out is not in the store.
        if found is None or (found.reads and state & PG_SWAPPED):
            return
        key = found._replace(state=0)
        number = self._places.setdefault(key, len(self.outcomes))
        if number == len(self.outcomes):
            if number == _OUTCOMES:
                return
            self.outcomes.append(found)
        entry = self._table[place]
        entry.state, entry.outcome = found.state, number
        entry.asks = (
            _KNOWN
            | _READS * found.reads
            | _WRITABLE * found.writable
            # What the message says of the page table entry still holds: nobody came in between.
            | _MAPS * (not found.protected and not kind & FAULT_WP)
            | _UNPROTECTS * (found.writable and found.protected is not False)
            | _COPIES * found.copies
        )

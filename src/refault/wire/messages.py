"""What a client and its pager say to each other.

A client process holds one `AF_UNIX` `SOCK_SEQPACKET` connection to its pager,
the *control socket*.  A request is one packet on it: a message of this file,
msgpack encoded, with file descriptors beside it.  The first descriptor is
always one end of a fresh socket pair, the *reply socket*: the answer comes
back on it.  So a request needs no number and no lock, any number of threads can ask
at once, and a thread that gives up waiting says so by closing its end: the
pager sees the hang-up and takes it as a signal pending for the work it was doing.
A pin lasts exactly as long as its reply socket stays open, so no pin outlives
whoever holds it.

Page faults do not come this way: they are read from the userfaultfd that the
client sends with `Hello`.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TypeAlias, TypeVar

import msgspec

__all__ = [
    "Attach",
    "CHANGED_RANGES",
    "Changed",
    "Configure",
    "Detach",
    "Done",
    "Evict",
    "ExpectChild",
    "Failed",
    "FileSource",
    "FillSource",
    "Flush",
    "Handled",
    "Hello",
    "Map",
    "Mapped",
    "Mark",
    "ObjectSource",
    "Pin",
    "Populate",
    "PopulateRanges",
    "Prefetch",
    "PrefetchRanges",
    "Prefetched",
    "ReadSnapshot",
    "Reply",
    "Request",
    "Share",
    "Shutdown",
    "Snapshot",
    "SnapshotSource",
    "Statistics",
    "WorkingSet",
    "receive",
    "send",
]


class FileSource(msgspec.Struct, tag=True, frozen=True):
    """A local file; its descriptor comes as the second fd of `Map`."""

    path: str
    writable: bool
    """Whether changed pages are written back to the file."""
    size: int
    """Bytes of the file that are mapped, from its beginning."""


class FillSource(msgspec.Struct, tag=True, frozen=True):
    """No store: every byte position `i` first holds ``pattern[i % len]``."""

    size: int
    pattern: bytes
    """At least one byte; its length divides 4096, or it is repeated from 0."""


class ObjectSource(msgspec.Struct, tag=True, frozen=True):
    """A store of the user's own, pickled; it is unpickled in the pager."""

    pickled: bytes
    writable: bool


class SnapshotSource(msgspec.Struct, tag=True, frozen=True):
    """A region as it was at an instant; `Map.offset` and `Map.length` are ignored."""

    snapshot: int
    region: int


class Hello(msgspec.Struct, tag=True, frozen=True):
    """First message of a client.  fds: reply, userfaultfd, wakeup, lifeline.

    `wakeup` is the reading end of a socket: the C-level signal handler of the
    client (`signal.set_wakeup_fd`) writes the numbers of arriving signals to
    the other end, even while the thread is stuck in a page fault.  `lifeline` is
    a socket that the pager and its guardian keep open until the client has ended.
    """

    pid: int
    features: int
    """UFFD_FEATURE_* bits that the userfaultfd was opened with."""
    user_mode_only: bool
    sys_path: list[str]
    """For unpickling `ObjectSource`."""
    resident: int | None = None
    """Budget of all regions of the client together, bytes."""
    interrupt_slot: int = 0
    """Address in the client of the pointer to its SIGINT handler; 0: unknown."""
    interrupt_handler: int = 0
    """Value of that pointer as long as our own handler is installed."""


class Map(msgspec.Struct, tag=True, frozen=True):
    """Open (or join) a mapping.  fds: reply, and the file of a `FileSource`.

    Answered by `Mapped`.
    """

    source: FileSource | FillSource | ObjectSource | SnapshotSource
    private: bool
    """Changed pages go to swap, never to the store (mode "c", anonymous)."""
    writable: bool
    offset: int
    """First byte wanted, any number >= 0."""
    length: int | None
    """Bytes wanted, > 0; None: up to the end of the store."""
    page_size: int | None
    resident: int | None
    """Budget in bytes; None: bounded by the budget of the process alone."""
    deadline: float | None
    """Seconds an implicit touch waits for its store; None: for ever."""
    readahead: bool
    swap: str | None = None
    """URL of the Redis server that is swap; None: the pager's own."""
    working_set: str | None = None
    """File to which goes what the run needs of the object, and what is read first; None: none."""


class Mapped(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Map` and `Share`.  fds: the memfd.

    The client maps `map_length` bytes at `map_offset` of the memfd, registers them
    with its userfaultfd, and then, before anyone touches them, sends `Attach`.
    """

    region: int
    page_size: int
    map_offset: int
    map_length: int
    data_offset: int
    """Where the wanted bytes begin in the client's range."""
    data_length: int


class Attach(msgspec.Struct, tag=True, frozen=True):
    """The region is mapped at `address` and registered.  -> `Done`"""

    region: int
    address: int
    writable: bool = True


class Share(msgspec.Struct, tag=True, frozen=True):
    """A forked child asks for a region of its parent.  -> `Mapped`"""

    region: int


class ExpectChild(msgspec.Struct, tag=True, frozen=True):
    """fds: reply, control socket of a child about to be forked.  -> `Done`"""


class Agent(msgspec.Struct, tag=True, frozen=True):
    """There is a thread in the client that changes its mappings.  -> `Done`

    fds: reply, the thread's socket.
    """


class Detach(msgspec.Struct, tag=True, frozen=True):
    """The client has unmapped the region; write back what is dirty.  -> `Done`"""

    region: int


# Ranges below are bytes from the beginning of the client's range.


class Populate(msgspec.Struct, tag=True, frozen=True):
    """Make pages present, waiting as long as it takes.  -> `Done`"""

    region: int
    start: int
    end: int
    write: bool = False


class PopulateRanges(msgspec.Struct, tag=True, frozen=True):
    """Begin to read pages here and there, then wait until all are present.  -> `Done`

    `ranges` are int64 pairs, bytes of the region, in order; no more than `CHANGED_RANGES`.
    """

    region: int
    ranges: bytes


class Prefetch(msgspec.Struct, tag=True, frozen=True):
    """Begin to read pages; wait for nothing.  -> `Done` (value: bytes begun)"""

    region: int
    start: int
    end: int


class PrefetchRanges(msgspec.Struct, tag=True, frozen=True):
    """Begin to read, behind demand, what there is room for.  -> `Done` (value: its bytes)

    `ranges` are int64 pairs, bytes of the region; no more than `CHANGED_RANGES` of them.
    """

    region: int
    ranges: bytes


class Prefetched(msgspec.Struct, tag=True, frozen=True):
    """Wait until what `PrefetchRanges`, or a working set, has begun is over.  -> `Done`"""

    region: int


class WorkingSet(msgspec.Struct, tag=True, frozen=True):
    """What of the region the program has used.  -> `Done` (value: as that of `Changed`)"""

    region: int
    start: int


class Pin(msgspec.Struct, tag=True, frozen=True):
    """`Populate`, and keep resident until the reply socket closes.  -> `Done`"""

    region: int
    start: int
    end: int
    write: bool = False


class Evict(msgspec.Struct, tag=True, frozen=True):
    """Write back and drop pages.  -> `Done` (value: bytes dropped)"""

    region: int
    start: int
    end: int


class Flush(msgspec.Struct, tag=True, frozen=True):
    """Write dirty pages to the store and make them durable.  -> `Done`"""

    region: int
    start: int
    end: int


class Snapshot(msgspec.Struct, tag=True, frozen=True):
    """Take a snapshot; it lasts until the reply socket closes.  -> `Done` (number, pause)"""

    regions: list[int]


class Mark(msgspec.Struct, tag=True, frozen=True):
    """Mark an instant; it lasts until the reply socket closes.  -> `Done` (its number)"""

    region: int
    snapshot: int | None = None
    """Whose instant; None: a new one."""


class Changed(msgspec.Struct, tag=True, frozen=True):
    """What was written since a mark.  -> `Done` (value: int64 pairs, bytes of the range)

    If there are `CHANGED_RANGES` of them, there may be more: ask again from the last one's end on.
    """

    region: int
    mark: int
    snapshot: int | None
    """Written before this one; None: before now."""
    start: int


CHANGED_RANGES = 4096


class ReadSnapshot(msgspec.Struct, tag=True, frozen=True):
    """Copy what a region was at an instant to memory of the client.  -> `Done`

    fds: reply, a memfd that cannot shrink (F_SEAL_SHRINK).  `ranges` are int64 pairs, bytes of the
    region, no more than `READ_RANGES` of them and `READ_BYTES` in all; they are put one behind the
    other, from byte `at` on.
    """

    snapshot: int
    region: int
    ranges: bytes
    at: int = 0


READ_RANGES = 1024
READ_BYTES = 4 << 20


class Statistics(msgspec.Struct, tag=True, frozen=True):
    """-> `Done` (value: mapping of names to numbers); region None: all."""

    region: int | None


class Configure(msgspec.Struct, tag=True, frozen=True):
    """Change the budget of the process.  -> `Done`"""

    resident: int | None


class Handled(msgspec.Struct, tag=True, frozen=True):
    """Our SIGINT handler runs: drop the pages given up for it.  -> `Done`"""


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """The client's interpreter ends: write everything back.  -> `Done`

    Faults are served on until the client is really gone.
    """


class Done(msgspec.Struct, tag=True, frozen=True):
    value: int | float | dict[str, int | float] | bytes | None = None


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The request failed; `error` names the class in `refault.errors`."""

    error: str
    message: str
    permanent: bool = False


Request: TypeAlias = (
    Hello
    | Map
    | Attach
    | Share
    | ExpectChild
    | Agent
    | Detach
    | Populate
    | PopulateRanges
    | Prefetch
    | PrefetchRanges
    | Prefetched
    | Pin
    | Evict
    | Flush
    | Snapshot
    | Mark
    | Changed
    | ReadSnapshot
    | Statistics
    | WorkingSet
    | Configure
    | Handled
    | Shutdown
)
Reply: TypeAlias = Done | Failed | Mapped

MAX_FDS = 8
MAX_PACKET = 128 << 10
"""Longest packet; what is longer (a pickled store) is refused by the client."""

M = TypeVar("M")


def send(sock: socket.socket, message: Request | Reply, fds: list[int] | None = None) -> None:
    """Send one message with its descriptors as one packet."""
    packet = msgspec.msgpack.encode(message)
    if fds:
        socket.send_fds(sock, [packet], fds)
    else:
        sock.sendall(packet)


def receive(
    sock: socket.socket, decoder: msgspec.msgpack.Decoder[M], flags: int = 0
) -> tuple[M, list[int]] | None:
    """Receive one message and its descriptors; None at the end of the connection.

    Raises
    ------
    msgspec.DecodeError, msgspec.ValidationError
        The packet is not a message; its descriptors have been closed.
    """
    size = array.array("i").itemsize
    packet, ancillary, _, _ = sock.recvmsg(
        MAX_PACKET, socket.CMSG_SPACE(MAX_FDS * size), flags | socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % size])
    if not packet:
        for fd in fds:
            os.close(fd)
        return None
    try:
        return decoder.decode(packet), list(fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise

"""Windows: the pages of a file itself, mapped over a part of a region that is read in order."""

# Why
# ---
#
# Whoever fills memory of his own has to copy.  Reading a file in order that is in the page cache,
# a memory-mapped file was eight times as fast as we were, and four times as fast as the best that
# copying can do on two CPUs: 15 GB/s, against 4 GB/s for allocating, copying, mapping and freeing
# every page.  The file's pages are in memory already.  So where a region shows a local file that
# nobody writes through us, and is read in order, a range of it is *overlaid* with a mapping of the
# file: a window.
#
# What stays true
# ---------------
#
# - The bound.  A window is charged to the budget like the units it lies over, from before it is
#   mapped until after it is gone.  All windows of a mapping together are at most half of it.
# - A page is real, or the access fails loudly.  A window shows the file; if the file is cut short
#   under it, the kernel sends SIGBUS.
# - Only mode "r".  Nobody may write to the file through a region of ours, for what is changed is in
#   memory before it is in the file.  When the file is opened for writing, its windows go first.
# - Demand faults wait for no window.  A window is asked for when the reader comes to the marker of
#   the one before (`refault.memory.readahead`), and until it is there pages are copied as ever.
#
# What is different: the kernel brings these pages, and we hear of no fault.  They are in no
# statistics but ``windows`` and ``window_bytes``.
#
# How
# ---
#
# The states of the units under a window are what they were; a unit can be in memory and under a
# window.  A message about an address under a window is late: the answer finds no registered
# range there (ENOENT), and wakes the thread, which then finds the window.  The threads that slept
# when the window was put there are woken when it is, since nobody else wakes them.
#
# Windows are mapped and taken away by a thread in the client, see ``native/agent.c``.  Its answers
# come in the order of the commands.  To put memory back it moves a registered range with
# mremap; that raises an event, and until we have read it every other call to the userfaultfd
# says EAGAIN.  So whoever must not go on without such a call reads messages meanwhile
# (`Userfaultfd.on_again`).
#
# The oldest window goes first: what was read once, in order, is the least likely to be read again.
# Windows take what is free; a stream may also evict units for two of them, the one that is
# read and the next.  What was in memory under a window goes when it is there: it would be
# charged twice, and be in the way of the stream when the file is read again.

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from refault.errors import KernelError
from refault.fault.reclaim import drop_units, shrink_clean
from refault.machine.linux import LinuxMachine, LinuxMapping, say
from refault.machine.uffd import RangeGone, Userfaultfd
from refault.machine.urgency import Urgency
from refault.memory.page import PG_AHEAD, PG_UPTODATE
from refault.memory.vma import Vma
from refault.memory.wait import (
    RESCHEDULE,
    TaskState,
    Wait,
    WaitQueue,
    WaitReason,
    Waits,
)
from refault.stores.file import FileStore

from .loop import Loop

__all__ = ["AgentSocket", "Window", "Windows", "no_windows"]

SMALLEST_BYTES = 3 << 20
"""Below that, to map costs as much as to copy."""

PIECE_BYTES = 1 << 20
"""Room is made in pieces: in between, others run."""

SPARED = 16
"""How often the newest window is spared when memory is short; then nobody reads it any more."""

_COMMAND = struct.Struct("=qQQQ")
_ANSWER = struct.Struct("=i")
_NOTHING, _OVERLAY, _RESTORE = 0, 1, 2


class AgentSocket:
    """Our end of the socket of a client's agent.

    Parameters
    ----------
    loop
        Tells of answers.
    ours
        The socket; it is this object's from now on.
    """

    def __init__(self, loop: Loop, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._loop = loop
        self._socket = ours
        self._waiting: deque[Callable[[int], None]] = deque()
        self.alive = True
        loop.add(ours.fileno(), self._answers)

    def send(
        self,
        what: int,
        address: int,
        length: int,
        offset: int,
        fds: list[int],
        done: Callable[[int], None],
    ) -> bool:
        """Send a command; `done` gets an errno, or 0.  False: it could not be sent."""
        if not self.alive:
            return False
        try:
            socket.send_fds(self._socket, [_COMMAND.pack(what, address, length, offset)], fds)
        except OSError:
            return False
        self._waiting.append(done)
        return True

    def close(self) -> None:
        """The agent is gone: its last commands have failed."""
        if self.alive:
            self.alive = False
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            while self._waiting:
                self._waiting.popleft()(errno.EPIPE)

    def _answers(self, events: int) -> None:
        while self.alive:
            try:
                answer = self._socket.recv(_ANSWER.size)
            except BlockingIOError:
                return
            except OSError:
                answer = b""
            if len(answer) != _ANSWER.size:
                self.close()
                return
            self._waiting.popleft()(_ANSWER.unpack(answer)[0])


class Window:
    """One overlaid range: units ``[first, last)``, at addresses ``[start, start + length)``.

    Attributes
    ----------
    mapped
        The agent has put it there.
    leaving
        It is to be given back, or being given back.
    error
        Why the last attempt to give it back failed.
    spared
        How often memory was short, and it stayed.
    """

    __slots__ = (
        "charge",
        "error",
        "first",
        "last",
        "leaving",
        "length",
        "mapped",
        "spared",
        "start",
    )

    def __init__(self, first: int, last: int, start: int, length: int, charge: int) -> None:
        self.first = first
        self.last = last
        self.start = start
        self.length = length
        self.charge = charge
        self.mapped = False
        self.leaving = False
        self.error = 0
        self.spared = 0


class Windows:
    """The windows of one vma.

    Parameters
    ----------
    machine
        Drops units.
    vma, mapping
        Where they lie.
    uffd
        Of the client.
    agent
        Of the client.
    """

    def __init__(
        self,
        machine: LinuxMachine,
        vma: Vma,
        mapping: LinuxMapping,
        uffd: Userfaultfd,
        agent: AgentSocket,
    ) -> None:
        self.machine = machine
        self.vma = vma
        self.mapping = mapping
        self.uffd = uffd
        self.agent = agent
        self.windows: list[Window] = []
        self.changed = WaitQueue()
        self.used = False
        self.closed = False
        mapping.windows.append(self)

    def close(self) -> None:
        """The vma is gone, and its windows with it."""
        self.closed = True
        for window in list(self.windows):
            self._forget(window)
        if self in self.mapping.windows:
            self.mapping.windows.remove(self)
        if not self.mapping.closed:
            self.mapping.budget.wake_waiters()

    def uncovered(self, first: int, last: int) -> int:
        """Where the part of units ``[first, last)`` ends that begins with no window over it."""
        for window in self.windows:
            if window.first < last and first < window.last:
                last = max(first, window.first)
        return last

    def fits(self, first: int, last: int) -> bool:
        """Whether a window over units ``[first, last)`` is possible, and worth while."""
        mapping = self.mapping
        size = (last - first) * mapping.page_size
        half = self._half()
        return (
            size >= SMALLEST_BYTES
            and (half is None or size <= half)
            and mapping.file_windows
            and not mapping.window_holds
            and self.agent.alive
            and not self.closed
            and not self.vma.detached
            and not any(first <= index < last for index in mapping.pins)
        )

    def open(self, first: int, last: int) -> Waits[bool]:
        """Make room, and ask for a window over units ``[first, last)``.

        Returns
        -------
        bool
            False if there can be none.
        """
        vma, mapping = self.vma, self.mapping
        last = min(last, mapping.pages, vma.index_of(vma.end - 1) + 1)
        last = self.uncovered(first, last)
        size = (last - first) * mapping.page_size
        if not self.fits(first, last) or not (yield from self._charge(first, last)):
            return False
        start, end = vma.unit_range(first, last)
        window = Window(first, last, start, end - start, size)
        store = mapping.store
        assert isinstance(store, FileStore)
        if not self._command(_OVERLAY, window, [store.fileno()], self._overlaid):
            mapping.budget.uncharge(size)
            return False
        self.used = True
        self.windows.append(window)
        mapping.window_bytes += size
        self._read_ahead(window, store)
        return True

    def _command(
        self, what: int, window: Window, fds: list[int], done: Callable[[Window, int], None]
    ) -> bool:
        """Have the agent do something with a window, see `AgentSocket.send`."""
        offset = self._offset(window)
        return self.agent.send(
            what, window.start, window.length, offset, fds, lambda error: done(window, error)
        )

    def _offset(self, window: Window) -> int:
        """Where in the file a window begins."""
        return window.start - self.vma.start + self.vma.offset

    def _read_ahead(self, window: Window, store: FileStore) -> None:
        """Keep the disk busy: the reader is in the window before this one."""
        offset = self._offset(window)

        def work() -> None:
            store.read_ahead(
                offset, window.length, lambda: window in self.windows and not window.leaving
            )

        self.machine.services.submit(self.mapping, work, lambda *_: None, Urgency.AHEAD)

    def give_way(self, *, newest: bool = False) -> None:
        """Memory is short: give back all windows but the newest, which may be being read.

        Parameters
        ----------
        newest
            There is nothing else to be had: that one, too.
        """
        for window in self.windows[:-1]:
            self._give_back(window)
        for window in self.windows[-1:]:
            window.spared += 1
            if newest or window.spared > SPARED:
                self._give_back(window)

    def give_back(self, first: int, last: int) -> Waits[None]:
        """Give back the windows that overlap units ``[first, last)``, and wait until they are.

        Raises
        ------
        KernelError
            One cannot be given back.
        """
        for window in self.windows:
            window.error = 0
        while True:
            overlapping = [one for one in self.windows if first < one.last and one.first < last]
            if not overlapping:
                return
            for window in overlapping:
                if not window.error:
                    self._give_back(window)
                if window.error:
                    raise KernelError(
                        window.error,
                        f"{self.mapping.name}: what is mapped of the file cannot be given back"
                        f" ({os.strerror(window.error)}); close some files, or raise the limits of"
                        " open files (ulimit -n) and of mappings (vm.max_map_count)",
                    )
            yield Wait(self.changed, TaskState.UNINTERRUPTIBLE, WaitReason.ADDRESS_SPACE)

    def settled(self) -> Waits[None]:
        """Wait until the agent does nothing here any more, and does not run ahead of a reader."""
        if not self.used:
            return
        answered: list[int] = []

        def done(error: int) -> None:
            answered.append(error)
            self.changed.wake_all()

        # Answers come in order: when this one is there, all the others are.
        if self.agent.send(_NOTHING, 0, 0, 0, [], done):
            while not answered:
                yield Wait(self.changed, TaskState.UNINTERRUPTIBLE, WaitReason.ADDRESS_SPACE)

    def _half(self) -> int | None:
        """What all windows of the mapping together may take."""
        budget = self.mapping.budget
        limits = [budget.limit, None if budget.parent is None else budget.parent.limit]
        known = [limit for limit in limits if limit is not None]
        return min(known) // 2 if known else None

    def _charge(self, first: int, last: int) -> Waits[bool]:
        """Charge a window, and make room for it if need be; False, and nothing charged, if not."""
        mapping = self.mapping
        budget = mapping.budget
        page_size = mapping.page_size
        size = (last - first) * page_size
        piece = max(page_size, PIECE_BYTES)

        def wanted() -> bool:
            return (
                mapping.page_size == page_size
                and self.fits(first, last)
                and self.uncovered(first, last) == last
            )

        charged = 0
        while charged < size and wanted():
            half = self._half()
            if half is not None and (excess := mapping.window_bytes + size - half) > 0:
                if not self._oldest_leave(excess):
                    break
                yield Wait(budget.freed, TaskState.UNINTERRUPTIBLE, WaitReason.MEMORY)
                continue
            step = min(piece, size - charged)
            full = budget.try_charge(step)
            if full is None:
                charged += step
            elif len(self.windows) > 1 and self._oldest_leave(step):
                yield Wait(budget.freed, TaskState.UNINTERRUPTIBLE, WaitReason.MEMORY)
            elif shrink_clean(self.machine, full, step // page_size):
                yield RESCHEDULE
            else:
                break
        if charged == size and wanted():
            return True
        if charged and not mapping.closed:
            budget.uncharge(charged)
        return False

    def _oldest_leave(self, size: int) -> bool:
        """Have the oldest windows go, of `size` bytes together, but not the newest.

        Returns
        -------
        bool
            Whether some are on their way.
        """
        leaving = False
        for windows in (self, *self.mapping.windows):
            for window in windows.windows[:-1]:
                if size <= 0:
                    return leaving
                windows._give_back(window)
                leaving = leaving or window.leaving
                size -= window.charge
        return leaving

    def _give_back(self, window: Window) -> None:
        if window.leaving:
            return
        window.leaving = True
        if window.mapped:
            self._restore(window)

    def _restore(self, window: Window) -> None:
        fds = [self.mapping.memfd, self.uffd.fd]
        if not self._command(_RESTORE, window, fds, self._restored):
            self._restored(window, errno.EPIPE)

    def _overlaid(self, window: Window, error: int) -> None:
        if window not in self.windows:
            return
        if error:
            self._failed("cannot be mapped", error)
            self._forget(window)
            return
        window.mapped = True
        self._drop_under(window)
        half = self._half()
        if half is not None:
            # Room for the next one, before it is asked for.
            self._oldest_leave(self.mapping.window_bytes + window.charge - half)
        try:
            self.uffd.wake(window.start, window.length)
        except RangeGone:
            pass
        if window.leaving:
            self._restore(window)
        self.changed.wake_all()

    def _restored(self, window: Window, error: int) -> None:
        if window not in self.windows:
            return
        if error and not self.closed:
            # It is there still, and charged; another one may go instead.
            window.leaving = False
            window.error = error
            self._failed("cannot be given back", error)
            self.changed.wake_all()
            return
        self._forget(window)

    def _failed(self, what: str, error: int) -> None:
        if self.agent.alive and self.mapping.file_windows:
            say(
                f"{self.mapping.name}: a window on the file {what} ({os.strerror(error)}); no more"
                " are made"
            )
        self.mapping.use_file_windows(False)

    def _drop_under(self, window: Window) -> None:
        """Drop what is in memory under a window; nobody sees it."""
        mapping, flags = self.mapping, self.mapping.flags
        if not any(flags[window.first : window.last]):
            return
        under = []
        for index in range(window.first, window.last):
            if flags[index] & PG_UPTODATE and mapping.droppable(index):
                flags[index] &= ~PG_AHEAD  # nobody has read it in vain
                under.append(index)
        drop_units(self.machine, mapping, under, ghost=False)

    def _forget(self, window: Window) -> None:
        self.windows.remove(window)
        self.mapping.window_bytes -= window.charge
        if not self.mapping.closed:
            self.mapping.budget.uncharge(window.charge)
        self.changed.wake_all()


def no_windows(mapping: LinuxMapping) -> Waits[None]:
    """Give back all windows of a mapping.

    When it returns there are none, and none comes before the caller waits again.

    Raises
    ------
    KernelError
        One cannot be given back.
    """
    mapping.window_holds += 1
    try:
        for windows in list(mapping.windows):
            yield from windows.give_back(0, mapping.pages)
    finally:
        mapping.window_holds -= 1

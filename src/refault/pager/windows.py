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

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from refault.machine.linux import LinuxMapping, say
from refault.machine.uffd import RangeGone, Userfaultfd
from refault.memory.vma import Vma
from refault.memory.wait import TaskState, Wait, WaitQueue, WaitReason, Waits
from refault.stores.file import FileStore

from .loop import Loop

__all__ = ["AgentSocket", "Window", "Windows"]

SMALLEST_BYTES = 3 << 20
"""Below that, to map costs as much as to copy."""

_COMMAND = struct.Struct("=qQQQ")
_ANSWER = struct.Struct("=i")
_OVERLAY, _RESTORE = 1, 2


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
                self._waiting.popleft()(-1)

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
    """One overlaid range: units ``[first, last)``, at addresses ``[start, start + length)``."""

    __slots__ = ("charge", "first", "last", "leaving", "length", "mapped", "start")

    def __init__(self, first: int, last: int, start: int, length: int, charge: int) -> None:
        self.first = first
        self.last = last
        self.start = start
        self.length = length
        self.charge = charge
        self.mapped = False
        self.leaving = False


class Windows:
    """The windows of one vma.

    Parameters
    ----------
    vma, mapping
        Where they lie.
    uffd
        Of the client.
    agent
        Of the client.
    """

    def __init__(
        self, vma: Vma, mapping: LinuxMapping, uffd: Userfaultfd, agent: AgentSocket
    ) -> None:
        self.vma = vma
        self.mapping = mapping
        self.uffd = uffd
        self.agent = agent
        self.windows: list[Window] = []
        self.changed = WaitQueue()
        mapping.windows.append(self)

    def close(self) -> None:
        """The vma is gone, and its windows with it."""
        for window in list(self.windows):
            self._forget(window)
        if self in self.mapping.windows:
            self.mapping.windows.remove(self)

    def open(self, first: int, last: int) -> bool:
        """Ask for a window over units ``[first, last)``; False if there can be none."""
        vma, mapping = self.vma, self.mapping
        last = min(last, mapping.pages, vma.index_of(vma.end - 1) + 1)
        size = (last - first) * mapping.page_size
        if size < SMALLEST_BYTES or not mapping.file_windows or vma.detached:
            return False
        if any(first < other.last and other.first < last for other in self.windows):
            return False
        if any(first <= index < last for index in mapping.pins):
            return False
        self._make_room(size)
        if mapping.budget.try_charge(size) is not None:
            return False
        start, end = vma.unit_range(first, last)
        window = Window(first, last, start, end - start, size)
        store = mapping.store
        assert isinstance(store, FileStore)
        sent = self.agent.send(
            _OVERLAY,
            start,
            end - start,
            start - vma.start + vma.offset,
            [store.fileno()],
            lambda error: self._overlaid(window, error),
        )
        if not sent:
            mapping.budget.uncharge(size)
            return False
        self.windows.append(window)
        mapping.window_bytes += size
        return True

    def give_way(self) -> None:
        """Memory is short: give back all windows but the newest, which is being read."""
        for window in self.windows[:-1]:
            self._give_back(window)

    def give_back(self, first: int, last: int) -> Waits[None]:
        """Give back the windows that overlap units ``[first, last)``, and wait until they are."""
        while True:
            overlapping = [one for one in self.windows if first < one.last and one.first < last]
            if not overlapping:
                return
            for window in overlapping:
                self._give_back(window)
            yield Wait(self.changed, TaskState.UNINTERRUPTIBLE, WaitReason.ADDRESS_SPACE)

    def settled(self) -> Waits[None]:
        """Wait until no command is under way."""
        while any(not one.mapped or one.leaving for one in self.windows) and self.agent.alive:
            yield Wait(self.changed, TaskState.UNINTERRUPTIBLE, WaitReason.ADDRESS_SPACE)

    def _make_room(self, size: int) -> None:
        limit = self.mapping.budget.limit
        if limit is None and self.mapping.budget.parent is not None:
            limit = self.mapping.budget.parent.limit
        if limit is None:
            return
        excess = self.mapping.window_bytes + size - limit // 2
        for window in self.windows[:-1]:
            if excess <= 0:
                return
            self._give_back(window)
            excess -= window.charge

    def _give_back(self, window: Window) -> None:
        if window.leaving:
            return
        window.leaving = True
        if window.mapped:
            self._restore(window)

    def _restore(self, window: Window) -> None:
        mapping, vma = self.mapping, self.vma
        sent = self.agent.send(
            _RESTORE,
            window.start,
            window.length,
            window.start - vma.start + vma.offset,
            [mapping.memfd, self.uffd.fd],
            lambda error: self._restored(window, error),
        )
        if not sent:
            self._restored(window, -1)

    def _overlaid(self, window: Window, error: int) -> None:
        if window not in self.windows:
            return
        if error:
            self._failed("cannot be mapped", error)
            self._forget(window)
            return
        window.mapped = True
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
        if error and self.agent.alive:
            # It is there still, and charged; another one may go instead.
            window.leaving = False
            self._failed("cannot be given back", error)
            self.changed.wake_all()
            return
        self._forget(window)

    def _failed(self, what: str, error: int) -> None:
        if self.agent.alive and self.mapping.file_windows:
            reason = os.strerror(error) if error > 0 else "its process does not answer"
            say(f"{self.mapping.name}: a window on the file {what} ({reason}); no more are made")
        self.mapping.use_file_windows(False)

    def _forget(self, window: Window) -> None:
        self.windows.remove(window)
        self.mapping.window_bytes -= window.charge
        if not self.mapping.closed:
            self.mapping.budget.uncharge(window.charge)
        self.changed.wake_all()

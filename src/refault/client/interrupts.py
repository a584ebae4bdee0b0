"""Ctrl-C while a thread is stuck in a page fault."""

# Why all this
# ------------
#
# A thread reads ``x[5]``.  The page is not there, the kernel puts the thread to sleep, and
# the pager asks the store, which does not answer.  The user presses Ctrl-C.
#
# The kernel is willing: a signal wakes the thread, and CPython's signal handler runs, in C,
# on the stuck thread.  All that it does is to set a flag; the Python function that raises
# KeyboardInterrupt runs later, between two bytecodes.  But the thread is inside one bytecode,
# and goes back to the very instruction that faulted.  There it sleeps again, holding the
# GIL.  Only the pager can help: it must *end* the fault.  There is nothing right that it
# could put into the page; what it puts there is 0xFF, the bytecode ends, KeyboardInterrupt
# is raised, and the page is dropped before anybody looks at it again.
#
# For this three things must be known.
#
# That a signal has come.  While the thread is stuck no Python code of the process runs, but
# the C handler does, and `signal.set_wakeup_fd` has it write the number of the signal into a
# socket.  The pager holds the other end.
#
# That KeyboardInterrupt will be raised.  If a program has set its own handler for SIGINT,
# one that sets a flag and returns, then giving the page up would let that program go on with
# 0xFF for data.  So a page is given up only if the handler is *ours at this moment*.  The
# process cannot be asked, it is stuck; but its memory can be read.  CPython keeps the
# handlers in a table of pointers, in its static data, and the entry of SIGINT holds the
# address of our handler object or it does not, and the word before it whether the handler is
# still to run.  Where the entry is no interface tells, but
# it is easy to find: install an object, look which words of the static data hold its
# address, install another one, look which of them changed along.  If that is not exactly
# one word, the feature is off, and Ctrl-C waits for the store or for the deadline.
#
# When the page can be dropped.  `default_int_handler` raises, and then it is too late: an
# ``except KeyboardInterrupt:`` may look at the array.  So our handler tells the pager first,
# waits until the page is gone, and raises then.
#
# What remains: CPython looks for signals at the end of calls, at the beginning of functions
# and of loop passes, not after every bytecode.  So the statement that was interrupted may
# still store what it got: after ``y[0] = x[5]``, interrupted, y[0] may be 0xFF.  The page of x
# is gone, as if it had never been there; what was computed from it is not.  Whoever goes on
# after a KeyboardInterrupt must not use what that statement was writing.
#
# What is asked of the rest of the program: nothing.  If SIGINT has a handler already, or a
# wakeup descriptor is set (an event loop does that), or we are not in the main thread,
# the feature is off and nothing is changed.  Some libraries set SIGINT back to its default
# when they end; so whenever an array is opened, we look again.
#
# Where the Yama module is active, a process may read the memory of its descendants only.
# The pager is the child here, not the parent: the client has to permit it (PR_SET_PTRACER).

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["Interrupts"]

POINTER = struct.Struct("=Q")
PYTHON = re.compile(r"(lib)?python[^/]*")


class InterruptHandler:
    """The handler of SIGINT; `handled` is called before KeyboardInterrupt is raised."""

    def __init__(self, handled: Callable[[], None]) -> None:
        self._handled = handled

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handled()
        finally:
            signal.default_int_handler(number, frame)


class Interrupts:
    """What the pager needs to know of this process to end a fault on Ctrl-C.

    Parameters
    ----------
    handled
        Called when our handler runs; returns when pages given up are gone.

    Attributes
    ----------
    wakeup
        Descriptor for the pager: the numbers of arriving signals can be read from it.
    slot
        Address of CPython's pointer to the handler of SIGINT; 0: the feature is off.
    handler
        The pointer's value as long as the handler is ours.
    """

    def __init__(self, handled: Callable[[], None]) -> None:
        self._final = InterruptHandler(handled)
        self.handler = id(self._final)
        self.slot = 0
        self._open()
        if self._is_default() and self._take_wakeup():
            try:
                self.slot = _find_slot(self._final, InterruptHandler(handled))
            finally:
                if not self.slot:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    signal.set_wakeup_fd(-1)

    def ensure(self) -> None:
        """Take SIGINT and the wakeup descriptor again if somebody has set them back."""
        if not self.slot or not _in_main_thread():
            return
        default = self._is_default()
        ours = signal.getsignal(signal.SIGINT) is self._final
        # An event loop that has ended leaves no wakeup descriptor behind.
        if (default or ours) and self._take_wakeup() and default:
            signal.signal(signal.SIGINT, self._final)

    def after_fork(self) -> None:
        """In a forked child: signals of ours are not our parent's."""
        old = self._writer
        os.close(self.wakeup)
        self._open()
        if self.slot and _in_main_thread():
            found = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            if found not in (-1, old):
                signal.set_wakeup_fd(found)
        os.close(old)

    def close(self) -> None:
        """Set everything back; only for an object that the pager has never heard of."""
        if self.slot and _in_main_thread():
            if signal.getsignal(signal.SIGINT) is self._final:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            found = signal.set_wakeup_fd(-1)
            if found not in (-1, self._writer):
                signal.set_wakeup_fd(found)
        self.slot = 0
        os.close(self.wakeup)
        os.close(self._writer)

    def _open(self) -> None:
        # Both ends stay open here: a write to a socket without a reader would make
        # CPython complain on stderr, long after the pager has gone.
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reader.setblocking(False)
        writer.setblocking(False)
        self.wakeup, self._writer = reader.detach(), writer.detach()

    def _is_default(self) -> bool:
        return _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def _take_wakeup(self) -> bool:
        found = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        if found in (-1, self._writer):
            return True
        signal.set_wakeup_fd(found)
        return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _find_slot(final: InterruptHandler, probe: InterruptHandler) -> int:
    """Install `final`; return the address of the word that points to it, or 0."""
    if sys.implementation.name != "cpython" or POINTER.size != struct.calcsize("P"):
        return 0
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        signal.signal(signal.SIGINT, probe)
        words = list(_words(memory, id(probe)))
        signal.signal(signal.SIGINT, final)
        wanted = POINTER.pack(id(final))
        words = [word for word in words if os.pread(memory, POINTER.size, word) == wanted]
    except (OSError, ValueError):
        return 0
    finally:
        os.close(memory)
    return words[0] if len(words) == 1 else 0


def _words(memory: int, value: int) -> Iterator[int]:
    """Addresses in the interpreter's static data where `value` stands."""
    wanted = POINTER.pack(value)
    for start, end in _static_data():
        content = os.pread(memory, end - start, start)
        at = content.find(wanted)
        while at >= 0:
            if at % POINTER.size == 0:
                yield start + at
            at = content.find(wanted, at + 1)


def _static_data() -> Iterator[tuple[int, int]]:
    """The writable mappings of the interpreter: .data, and .bss right behind it."""
    behind = None
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(None, 5)
            start, end = (int(text, 16) for text in fields[0].split("-"))
            path = fields[5].strip() if len(fields) > 5 else ""
            ours = bool(PYTHON.fullmatch(os.path.basename(path))) or _is_program(path)
            if fields[1].startswith("rw") and (ours or (not path and start == behind)):
                yield start, end
                behind = end
            else:
                behind = None


def _is_program(path: str) -> bool:
    """Whether `path` is the program itself, whatever it is called."""
    try:
        return bool(path) and path == os.readlink("/proc/self/exe")
    except OSError:
        return False

"""Ctrl-C while a thread is stuck in a page fault.

The thread cannot leave the instruction that touched the page, and Python runs no
handler before it does.  So the page is given up: it is filled with 0xFF, the
instruction ends, and the handler raises KeyboardInterrupt before the program goes
on.  That is right only if the handler that will run is the one that refault
installed: it raises, and before that it has the pages that were given up dropped again.
A handler of the user's own may return, and the program would go on with 0xFF.

So before anything is given up we look into the client which handler is
installed *now*: the client told us where the interpreter keeps its pointer.
While the main thread is stuck it cannot install another one.

And we look whether that handler is still to run.  The number of a signal may reach us after
its handler has run: two sockets are read in no certain order, and the C-level handler sets
its mark before it writes the number.  A page given up then would be read by a program that no
exception stops.  The mark, an ``int``, stands right before the pointer in CPython's table.
"""

from __future__ import annotations

import os
import signal
import struct

from refault.machine.linux import LinuxMapping

__all__ = ["Interrupts"]

ENTRY = struct.Struct("=i4xQ")
"""An entry of CPython's table of signals: whether one has come, and the handler's address."""


class Interrupts:
    """The pending Ctrl-C of one client.

    Parameters
    ----------
    pid
        The client.
    slot, handler
        Where its interpreter keeps the SIGINT handler, and what stands there as long
        as it is ours; 0: not known, then nothing is ever given up.
    """

    def __init__(self, pid: int, slot: int, handler: int) -> None:
        self.pid = pid
        self.slot = slot
        self.handler = handler
        self.pending = False
        self.given_up: list[tuple[LinuxMapping, int]] = []

    def arrived(self, numbers: bytes) -> bool:
        """Signals were caught; whether one of them is a Ctrl-C that will raise."""
        if signal.SIGINT in numbers and self._will_raise():
            self.pending = True
            return True
        return False

    def is_pending(self) -> bool:
        """Whether a Ctrl-C has come whose handler is still to run."""
        self.pending = self.pending and self._will_raise()
        return self.pending

    def handled(self) -> list[tuple[LinuxMapping, int]]:
        """The handler runs now; what was given up for it."""
        # The mark of the one that runs is cleared: this would be another one.
        self.pending = self._will_raise()
        given_up, self.given_up = self.given_up, []
        return given_up

    def _will_raise(self) -> bool:
        if not self.slot:
            return False
        try:
            with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
                found = os.pread(memory.fileno(), ENTRY.size, self.slot + 8 - ENTRY.size)
                arrived, handler = ENTRY.unpack(found)
        except (OSError, struct.error):
            return False
        return bool(arrived == 1 and handler == self.handler)

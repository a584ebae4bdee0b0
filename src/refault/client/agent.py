"""The agent: a native thread of this process that changes mappings when the pager asks for it.

What it does and why stands in ``native/agent.c`` and in `refault.pager.windows`.  It is started
with the first region that can use it, and only if there is a native library.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading

from refault.native import library

__all__ = ["Agent"]


class Agent:
    """The thread, and our end of its socket.

    Parameters
    ----------
    ours
        Where its commands come from; it is the thread's own from now on.

    Raises
    ------
    OSError
        There can be no thread.
    """

    def __init__(self, ours: socket.socket) -> None:
        native = library()
        assert native is not None
        self._native = native
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._pauses = 0
        native.rf_agent_start.restype = ctypes.c_void_p
        for call in (native.rf_agent_pause, native.rf_agent_resume, native.rf_agent_forget):
            call.argtypes = (ctypes.c_void_p,)
        self._handle = native.rf_agent_start(ours.fileno())
        if not self._handle:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        ours.detach()

    def pause(self) -> None:
        """Have no thread until `resume`, called as often; what is asked of it waits."""
        with self._lock:
            self._pauses += 1
            if self._handle:
                self._native.rf_agent_pause(self._handle)

    def resume(self) -> None:
        """Go on.  If there can be no thread any more, what was asked of it fails."""
        with self._lock:
            self._pauses = max(0, self._pauses - 1)
            failed = (
                self._handle and not self._pauses and self._native.rf_agent_resume(self._handle)
            )
        if failed:
            self.stop()

    def stop(self) -> None:
        """End it, when it has done what it is at; in a forked child forget it.

        A second call does nothing.
        """
        forked = self.owner != os.getpid()
        if forked:
            self._lock = threading.Lock()
        with self._lock:
            handle, self._handle = self._handle, None
            if handle:
                if not forked:
                    self._native.rf_agent_pause(handle)
                self._native.rf_agent_forget(handle)

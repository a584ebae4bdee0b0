"""The agent: a native thread of this process that changes mappings when the pager asks for it.

What it does and why stands in ``native/agent.c`` and in `refault.pager.windows`.  It is started
with the first region that can use it, and only if there is a native library.
"""

from __future__ import annotations

import ctypes
import os
import socket

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
        native.rf_agent_start.restype = ctypes.c_void_p
        native.rf_agent_stop.argtypes = native.rf_agent_forget.argtypes = (ctypes.c_void_p,)
        self._handle = native.rf_agent_start(ours.fileno())
        if not self._handle:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        ours.detach()

    def stop(self) -> None:
        """End it, when it has done what it is at; in a forked child forget it.

        A second call does nothing.
        """
        handle, self._handle = self._handle, None
        if handle:
            if self.owner == os.getpid():
                self._native.rf_agent_stop(handle)
            else:
                self._native.rf_agent_forget(handle)

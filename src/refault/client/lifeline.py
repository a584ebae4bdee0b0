"""When pager and guardian are both gone, the kernel ends this process."""

# Why
# ---
#
# Whoever touches a missing page sleeps until the pager answers, or, if the pager has been
# killed, its guardian (see `refault.pager.guardian`).  ``pkill -9 -f refault`` kills both.  Then
# nobody is left who could answer, and a thread that sleeps with the GIL can do nothing either.
#
# The kernel can.  A lifeline is a socket whose other end is held by the pager and by the
# guardian, and by nobody else; nothing is ever sent.  When the last of them is gone the kernel
# sees a hang-up, and since our end has O_ASYNC, it sends this process the signal that F_SETSIG
# names: SIGBUS.  No code of ours has to run for that.
#
# It comes at once, also to a program that would never have touched a page again.  That is harsh,
# and the best that is left: loud.  A thread that faults in a system call, in a program without
# other threads, does not hear it; the kernel lets such a fault end for SIGKILL only.
#
# The owner of the socket is a process, not a descriptor: a forked child that keeps a copy
# open is not meant.  The pager must not let go of its end while ours is armed: so it is armed
# when the pager has it, and closed before anything else.

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket

__all__ = ["arm"]

F_SETSIG = 10


def arm(ours: socket.socket) -> bool:
    """Have the kernel send us SIGBUS when nobody holds the other end any more.

    Returns
    -------
    bool
        Whether somebody does; a hang-up that has been is not signalled.
    """
    fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(ours, F_SETSIG, signal.SIGBUS)
    fcntl.fcntl(ours, fcntl.F_SETFL, fcntl.fcntl(ours, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(ours, 0)
    return not poll.poll(0)

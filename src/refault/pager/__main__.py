"""``python -m refault.pager FD``: the pager of the process at the other end of FD."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys

from .guardian import Guardian

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Serve until the last client is gone and its changes are written."""
    if len(argv) != 1 or not argv[0].isdigit():
        print("usage: python -m refault.pager FD (started by refault itself)", file=sys.stderr)
        return 2
    # Whoever ends the program may end everything around it.  We end when it has
    # ended, after its changed pages are written.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.setswitchinterval(0.0005)
    guardian = Guardian(int(argv[0]))
    # After the fork: the guardian needs none of it.
    from .client import Client
    from .service import Pager

    pager = Pager(guardian)
    Client(pager, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, int(argv[0])))
    pager.loop.run()
    pager.swap.close()
    guardian.dismiss()
    sys.stderr.flush()
    os._exit(0)  # a thread that hangs in a store must not keep us


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Something in the pager that lasts as long as a reply socket."""

from __future__ import annotations

import socket
import weakref

from refault.client.connection import Connection
from refault.wire import messages

__all__ = ["Held"]


class Held:
    """Lasts until `release`, or as long as this object or this process.

    Parameters
    ----------
    connection
        Whose pager.
    request
        What to ask for.

    Attributes
    ----------
    value
        What the pager answered.
    """

    def __init__(self, connection: Connection, request: messages.Request) -> None:
        reply, answer = connection.hold(request)
        self.value = answer.value
        self._finalizer = weakref.finalize(self, _let_go, connection, reply)
        self._finalizer.atexit = False

    def release(self) -> None:
        """End it, and return when the pager has taken note; a second call does nothing."""
        found = self._finalizer.detach()
        if found is not None:
            connection, reply = found[2]
            connection.let_go(reply, wait=True)


def _let_go(connection: Connection, reply: socket.socket) -> None:
    connection.let_go(reply, wait=False)

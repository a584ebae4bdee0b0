"""A forked child gets its parent's regions, at the same addresses."""

# How it works
# ------------
#
# Before a fork the parent makes a socket pair and gives one end to the pager: the control
# socket of a child to come.  The ranges themselves are not inherited (see `memory`).  The
# child, before anything else, takes their addresses again, with nothing behind them.
# Then it opens a userfaultfd of its own, says Hello, asks for each region, and maps it.
#
# If anything of this fails, the ranges stay as they are: a touch is a SIGSEGV.  One thing
# cannot be made loud in this way: if something else has been mapped into the range since
# the fork, arrays would show its bytes.  Then the child is ended.
#
# What is private to the parent (mode "c", zeros, ...) the child can read, and sees the parent
# change; to write to it is a SIGSEGV.
#
# `subprocess` does not come here: it runs no hooks, and it executes another program.

from __future__ import annotations

import _thread
import contextlib
import os
import socket
import sys
import threading
from typing import NamedTuple

from refault.client import connection as connections
from refault.client import registry
from refault.errors import Error
from refault.wire import messages

__all__ = ["install"]


class Expected(NamedTuple):
    """The control socket of a child to come, and the pager at its other end."""

    control: socket.socket
    pager: int


_installed = False
_expected: dict[int, Expected] = {}
"""By thread: several threads can fork at once."""
_paused: dict[int, connections.Connection] = {}
"""By thread: whose agent stands still meanwhile."""


def install() -> None:
    """Have forks noticed from now on; further calls do nothing."""
    global _installed
    if not _installed:
        _installed = True
        os.register_at_fork(
            before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )


def _before() -> None:
    connection = connections.current()
    if connection is None:
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            connection.call(messages.ExpectChild(), [theirs.fileno()])
    except Exception as error:
        ours.close()
        _warn(f"the pager does not expect a child: {error}")
    except KeyboardInterrupt:
        ours.close()
        # Nothing can be raised from here.
        _thread.interrupt_main()
    else:
        _expected[threading.get_ident()] = Expected(ours, connection.pager)
    _paused[threading.get_ident()] = connection
    connection.pause_agent()


def _after_in_parent() -> None:
    expected = _expected.pop(threading.get_ident(), None)
    if expected is not None:
        expected.control.close()
    paused = _paused.pop(threading.get_ident(), None)
    if paused is not None:
        paused.resume_agent()


def _after_in_child() -> None:
    _paused.clear()
    memories = [memory for memory in registry.live() if memory.attached]
    for memory in memories:
        try:
            memory.reserve()
        except Error as error:
            _warn(f"the addresses of a region are taken ({error}); the process ends")
            os.abort()
    expected = _expected.pop(threading.get_ident(), None)
    for other in _expected.values():
        other.control.close()
    _expected.clear()
    try:
        if expected is None:
            connections.adopt(None, 0)
            if memories:
                raise Error("there was no connection to the pager")
            return
        connections.adopt(*expected)
        if memories:
            connection = connections.connect()
            for memory in memories:
                memory.attach(connection)
    except Exception as error:
        _warn(
            f"arrays of the parent cannot be used in this process ({error}); a touch is a"
            " SIGSEGV: open them here"
        )


def _warn(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"refault: process {os.getpid()}: {text}", file=sys.stderr, flush=True)

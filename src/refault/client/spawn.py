"""Start the pager process."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

from refault.errors import KernelError

__all__ = ["spawn_pager"]

COMMAND = ["-P", "-m", "refault.pager"]
"""What the interpreter gets, before the number of the control socket."""


def spawn_pager(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start a pager whose end of the control socket is `control`.

    It has a session of its own, so that the terminal's Ctrl-C reaches the client
    only.  Its messages go to the client's stderr.
    """
    if not sys.executable:
        raise KernelError(
            "the pager cannot be started: sys.executable is empty; set it to the path of a"
            " Python interpreter that can import refault"
        )
    fd = control.fileno()
    try:
        return subprocess.Popen(
            [sys.executable, *COMMAND, str(fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            pass_fds=[fd],
            start_new_session=True,
        )
    except OSError as error:
        raise KernelError(
            error.errno or 0,
            f"the pager cannot be started with {sys.executable!r} ({error.strerror}); set"
            " sys.executable to a Python interpreter that can import refault",
        ) from error


def _environment() -> dict[str, str]:
    """Our environment; the child finds refault where we found it."""
    # Two levels above this package: also right when sys.path was changed by hand.
    folder = str(pathlib.Path(__file__).resolve().parents[2])
    environment = dict(os.environ)
    old = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = folder + (os.pathsep + old if old else "")
    return environment

"""Finishing saves when the program ends."""

# Some facts about the end of a program
# -------------------------------------
#
# First of all `threading` calls what was registered with it, the latest first; concurrent.futures
# is among them, and from then on no thread pool takes work: neither ours, nor zarr's.  Functions
# of `atexit` come later.  So a save that is under way must be waited for before, and what is
# registered with `threading` by us, who import concurrent.futures, is called before.
#
# A thread that wants the GIL while the interpreter ends is ended there and then, with pthread_exit.
# A thread of Icechunk may want it still when all its work is done: it has told the event loop of
# the last result, and let go of the GIL for the system call that wakes it.  Rust does not let
# itself be unwound, and aborts the process.  So these threads get time to come to rest.

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - registers itself, before us
import contextlib
import os
import sys
import threading
import time
import weakref
from typing import Protocol

from .store import COMPILED

__all__ = ["close_at_exit"]


THREADS = b"tokio-"
"""How the names of its threads begin."""
LOOKS = 3
"""So often must they be seen at rest."""


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(what: Closable) -> None:
    """Close something when the program ends, while threads can still be started."""
    _open.add(what)


def _close_all() -> None:
    for one in list(_open):
        one.close()
    if COMPILED in sys.modules:
        _let_rest()


def _let_rest() -> None:
    """Wait, with the GIL free, until no thread of Icechunk runs; a second at most."""
    over = time.monotonic() + 1
    quiet = 0
    while quiet < LOOKS and time.monotonic() < over:
        time.sleep(0.002)
        quiet = quiet + 1 if not _running() else 0


def _running() -> bool:
    for thread in os.listdir("/proc/self/task"):
        # It may be gone.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/stat", "rb") as file:
            name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
            if name.startswith(THREADS) and rest.split()[0] == b"R":
                return True
    return False


threading._register_atexit(_close_all)  # type: ignore[attr-defined]

"""Finishing saves when the program ends."""

# Some facts about the end of a program
# -------------------------------------
#
# First of all `threading` calls what was registered with it, the latest first; concurrent.futures
# is among them, and from then on no thread pool takes work: neither ours, nor zarr's.  Functions
# of `atexit` come later.  So a save that is under way must be waited for before, and what is
# registered with `threading` by us, who import concurrent.futures, is called before.

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - registers itself, before us
import threading
import weakref
from typing import Protocol

__all__ = ["close_at_exit"]


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


threading._register_atexit(_close_all)  # type: ignore[attr-defined]

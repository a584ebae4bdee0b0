"""How much memory arrays really take, asked of the kernel and not of refault.

The pages of all arrays are in memfds, which the pager holds open.  How much memory a memfd
takes, wherever it is mapped, is what `os.stat` says of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from types import TracebackType
from typing import Final, Self

from refault.client.connection import connect

__all__ = ["Witness"]

EVERY_SECONDS: Final = 0.01
BLOCK: Final = 512
"""The unit of `st_blocks`, whatever the file system."""


class Witness:
    """Looks a hundred times a second, in a thread of its own, while the ``with`` block runs.

    Attributes
    ----------
    peak
        The most bytes that all arrays together had in memory at one time.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._folder = f"/proc/{connect().pager}/fd"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self.peak = max(self.peak, self.resident())

    def resident(self) -> int:
        """Bytes in memory now."""
        total = 0
        for name in os.listdir(self._folder):
            path = f"{self._folder}/{name}"
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(path).startswith("/memfd:refault"):
                    total += os.stat(path).st_blocks * BLOCK
        return total

"""How long a store may take no changes before we stop waiting for it.

A store may be slow: as long as one write after the other ends, it is waited for, however
long it takes altogether.  A write that never ends, or writes that all fail, are waited
for as long as the region's deadline says.
"""

from __future__ import annotations

from collections.abc import Callable

from refault.machine.linux import LinuxMapping

from .loop import Loop

__all__ = ["Patience"]

LAST_SECONDS = 60.0
"""How long without a deadline."""


class Patience:
    """Calls `call` when no write of a mapping has succeeded for so many seconds.

    Parameters
    ----------
    loop
        Has the timers.
    mapping
        Whose writes count.
    deadline
        How many; None: `LAST_SECONDS`.
    call
        Called at most once.
    """

    def __init__(
        self, loop: Loop, mapping: LinuxMapping, deadline: float | None, call: Callable[[], None]
    ) -> None:
        self.loop = loop
        self.counters = mapping.counters
        self.seconds = LAST_SECONDS if deadline is None else deadline
        self.call = call
        self._wait()

    def cancel(self) -> None:
        """Do not call it."""
        self.timer.cancel()

    def _wait(self) -> None:
        self.written = self.counters.bytes_written
        self.timer = self.loop.call_later(self.seconds, self._look)

    def _look(self) -> None:
        if self.counters.bytes_written == self.written:
            self.call()
        else:
            self._wait()

"""A save that is under way."""

from __future__ import annotations

import warnings
from concurrent.futures import Future

from .records import Checkpoint, Progress

__all__ = ["Save"]


class Save:
    """What `Checkpoints.save` returns: the instant is taken, the rest goes on beside the program.

    If a save fails and nobody asks for its result, a `RuntimeWarning` says so in the end.
    """

    def __init__(self) -> None:
        self._future: Future[Checkpoint] | None = None
        self._progress = Progress(0, 0)
        self._asked = False

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._progress

    def done(self) -> bool:
        """Whether it is over, well or not."""
        return self._future is not None and self._future.done()

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait until the checkpoint is committed.

        Parameters
        ----------
        timeout
            Seconds to wait; None: as long as it takes.

        Returns
        -------
        Checkpoint

        Raises
        ------
        StoreError
            It could not be written.  Nothing of it is visible, and the next save has everything.
        TimeoutError
            It goes on still.
        """
        assert self._future is not None
        try:
            return self._future.result(timeout)
        finally:
            self._asked = self._future.done()

    def _begin(self, future: Future[Checkpoint]) -> None:
        self._future = future

    def _report(self, done: int, total: int) -> None:
        self._progress = Progress(done, total)

    def __repr__(self) -> str:
        state = "done" if self.done() else "under way"
        return f"<refault.Save {state} {self._progress.done} of {self._progress.total} bytes>"

    def __del__(self) -> None:
        future = self._future
        if self._asked or future is None or not future.done() or future.cancelled():
            return
        error = future.exception()
        if error is not None:
            warnings.warn(f"a checkpoint was not saved: {error}", RuntimeWarning, stacklevel=2)

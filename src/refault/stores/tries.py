"""Calls that may hang: a time limit, and a second call beside a slow first one.

A thread that hangs in somebody else's library cannot be ended.  It is left behind, its answer is
thrown away if it ever comes, and so many may be left behind and no more: then calls fail at once
until one of them has ended.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

__all__ = ["Tries"]

T = TypeVar("T")

_Answers: TypeAlias = "queue.SimpleQueue[tuple[Any, BaseException | None]]"


class Tries:
    """Runs calls in threads of their own.

    Parameters
    ----------
    timeout
        Seconds that a call may take.
    hedge_after
        Seconds after which a call that has not answered gets a second one beside it; the first
        answer counts.  None: never.
    most
        How many threads there may be, those that were left behind included.
    """

    def __init__(self, timeout: float, hedge_after: float | None, most: int) -> None:
        self.timeout = timeout
        self.hedge_after = hedge_after
        self.most = most
        self._lock = threading.Lock()
        self._running = 0

    def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises.

        Raises
        ------
        TimeoutError
            It has not answered in time, or too many that did not answer are running still.
        """
        answers: _Answers = queue.SimpleQueue()
        end = time.monotonic() + self.timeout
        if not self._start(work, answers):
            raise TimeoutError(f"{self.most} earlier requests have not ended")
        pending, hedge = 1, self.hedge_after
        while True:
            left = end - time.monotonic()
            try:
                result, error = answers.get(
                    timeout=max(0.0, left if hedge is None else min(left, hedge))
                )
            except queue.Empty:
                if hedge is None or left <= hedge:
                    raise TimeoutError(f"no answer within {self.timeout:g} s") from None
                hedge = None
                pending += self._start(work, answers)
                continue
            if error is None:
                return result  # type: ignore[no-any-return]
            pending -= 1
            if not pending:
                raise error

    def _start(self, work: Callable[[], Any], answers: _Answers) -> bool:
        with self._lock:
            if self._running >= self.most:
                return False
            self._running += 1
        threading.Thread(
            target=self._call, args=(work, answers), name="refault-try", daemon=True
        ).start()
        return True

    def _call(self, work: Callable[[], Any], answers: _Answers) -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with self._lock:
            self._running -= 1
        answers.put((result, error))

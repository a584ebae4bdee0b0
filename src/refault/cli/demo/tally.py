"""Bytes that were compared, and bytes that were wrong."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Tally"]


class Tally:
    """Counts; threads may share one."""

    def __init__(self) -> None:
        self.checked = 0
        self.wrong = 0
        self._lock = threading.Lock()

    def compare(self, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        """Compare two arrays of the same type, byte by byte; each is read once."""
        if found.dtype != expected.dtype or found.shape != expected.shape:
            raise AssertionError(f"{found.dtype}{found.shape} is not like {expected.shape}")
        wrong = np.count_nonzero(found.view(np.uint8) != expected.view(np.uint8))
        with self._lock:
            self.checked += found.nbytes
            self.wrong += int(wrong)

"""`Pin`: pages that stay in memory."""

from __future__ import annotations

from typing import Any, Self

import numpy.typing as npt

from refault.client.held import Held

__all__ = ["Pin"]


class Pin:
    """Pages that are in memory and stay there until `release`.

    Made by `Region.pin`; a context manager.  A pin also ends with its process.
    """

    def __init__(self, held: Held | None, view: npt.NDArray[Any]) -> None:
        self._held = held
        # The region cannot be closed as long as we have it.
        self._view: npt.NDArray[Any] | None = view

    @property
    def released(self) -> bool:
        """Whether the pin has ended."""
        return self._view is None

    def release(self) -> None:
        """Let the pages go; a second call does nothing."""
        held, self._held, self._view = self._held, None, None
        if held is not None:
            held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

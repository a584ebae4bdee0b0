"""What is closed at the end of a ``with`` block, or ends with its last array."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from refault.errors import UsageError

__all__ = ["Closing"]


class Closing:
    """A context manager that closes itself; `close` raises UsageError while arrays exist."""

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            # The traceback holds arrays; it ends with them.
            with contextlib.suppress(UsageError):
                self.close()

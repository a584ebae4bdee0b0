"""The errors that refault raises; every message names the next step.

Whose fault was it?  `UsageError`: the caller's.  `StoreError`: the place the
data comes from.  `KernelError`: the machine's (or the pager's).
"""

from __future__ import annotations

__all__ = ["Error", "KernelError", "StoreError", "UsageError"]


class Error(Exception):
    """Root of all errors of refault."""


class UsageError(Error, ValueError):
    """The call cannot be carried out as it stands."""


class KernelError(Error, OSError):
    """The kernel, or the pager process, refused or is gone."""


class StoreError(Error, OSError):
    """A store did not deliver or accept the bytes it was asked for.

    Parameters
    ----------
    message
        Names store, offset and cause.
    permanent
        True if asking again cannot help (the object is shorter than it was,
        is gone, may not be read).  A page fault on such a page is not retried.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent

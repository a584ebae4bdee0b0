"""The libraries of the extra "checkpoints"."""

from __future__ import annotations

import importlib
import os
import sys

from refault.errors import UsageError

__all__ = ["require"]

LIBRARIES = ("icechunk", "zarr", "google_crc32c", "xxhash")


def require() -> None:
    """See that they are installed.

    Raises
    ------
    UsageError
        One is not.
    """
    ours = "icechunk" not in sys.modules
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(
                f"checkpoints need {name}, which cannot be imported ({error}); install it with"
                " pip install 'refault[checkpoints]'"
            ) from error
    if ours and "ICECHUNK_LOG" not in os.environ:
        # It warns of commits at the same time to one folder; `location` has a lock for these.
        import icechunk

        icechunk.set_logs_filter("warn,icechunk::storage::object_store=error")

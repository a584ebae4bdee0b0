"""From Icechunk's errors to ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from refault.errors import StoreError, UsageError

__all__ = ["failures"]


@contextlib.contextmanager
def failures(name: str, verb: str) -> Iterator[None]:
    """Raise what Icechunk raises as an error of ours.

    Parameters
    ----------
    name
        Where the checkpoints are.
    verb
        What could not be done: "cannot ...".

    Raises
    ------
    StoreError
        The place refused, or is not there.
    UsageError
        There is no such branch, tag or checkpoint.
    """
    import icechunk

    try:
        yield
    except icechunk.ConflictError as error:
        raise StoreError(
            f"{name}: cannot {verb}: the branch has got another checkpoint meanwhile ({error});"
            " save again, to a branch of your own if two programs save"
        ) from error
    except icechunk.IcechunkError as error:
        text = _describe(str(error))
        if "ref not found" in text or "invalid ref name" in text or "invalid snapshot id" in text:
            raise UsageError(
                f"{name}: cannot {verb}: {text}; see `refault checkpoints list`"
            ) from error
        raise StoreError(
            f"{name}: cannot {verb}: {text}; see that the place can be reached, has room and lets"
            " you in, and do it again: what was committed before is untouched"
        ) from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{name}: cannot {verb}: {error}; see that the place can be reached, has room and lets"
            " you in, and do it again: what was committed before is untouched"
        ) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; it cannot be imported
            raise
        raise StoreError(
            f"{name}: cannot {verb}: what is stored is damaged ({error});"
            " load an earlier checkpoint",
            permanent=True,
        ) from error


def _describe(text: str) -> str:
    """What went wrong and why, without Icechunk's own call stack."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    kept = [
        re.sub(r"^[\s|]*(x|├─▶|╰─▶|\|->|`->|[├╰]─▶)\s*", "", line).strip()
        for line in lines
        if re.match(r"^[\s|]*(x|├─▶|╰─▶|\|->|`->)\s", line)
    ]
    return ": ".join(dict.fromkeys(part for part in kept if part)) or " ".join(text.split())

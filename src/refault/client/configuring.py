"""`configure`: what holds for the whole process."""

from __future__ import annotations

from refault.client.connection import set_budget
from refault.client.options import SMALLEST_PAGE
from refault.errors import UsageError
from refault.sizes import Size, parse_size

__all__ = ["configure"]


def configure(*, resident: Size | None) -> None:
    """Set how much of all regions of the process together may be in memory.

    It begins with what the environment variable ``REFAULT_RESIDENT`` says.

    Parameters
    ----------
    resident
        Bytes, or text such as "8GiB"; None: bounded by each region's own budget alone.

    Raises
    ------
    UsageError
        It is not a size, or less than a page.

    Examples
    --------
    >>> import refault
    >>> refault.configure(resident="1GiB")
    """
    size = None if resident is None else parse_size(resident, name="resident")
    if size is not None and size < SMALLEST_PAGE:
        raise UsageError(f"resident={resident!r} is less than one page; give more")
    set_budget(size)

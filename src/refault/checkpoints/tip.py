"""What is known of the newest checkpoint of a branch, so that the next one can be short."""

from __future__ import annotations

from refault.client.marks import Mark

from .instant import Place
from .layout import Layout

__all__ = ["KnownArray", "Tip", "digest"]

DIGEST = 16
"""Bytes of a digest; where none is known they are all 0."""


def digest(data: memoryview) -> bytes:
    """Tell chunks apart: the same digest, the same content."""
    from xxhash import xxh3_128_digest

    return xxh3_128_digest(data)


class KnownArray:
    """What a checkpoint holds of one array.

    Parameters
    ----------
    layout
        As it is stored.

    Attributes
    ----------
    digests
        Of its chunks, one after the other.
    place, mark
        The memory whose content it was, and the instant; what is not written to since is still
        what the checkpoint holds.  None: any of it may be different.
    """

    __slots__ = ("digests", "layout", "mark", "place")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.digests = bytearray(layout.grid.chunks * DIGEST)
        self.place: Place | None = None
        self.mark: Mark | None = None

    def digest(self, number: int) -> bytes:
        return bytes(self.digests[number * DIGEST : (number + 1) * DIGEST])

    def remember(self, number: int, found: bytes) -> None:
        self.digests[number * DIGEST : (number + 1) * DIGEST] = found

    def close(self) -> None:
        """Give the mark back."""
        if self.mark is not None:
            self.mark.close()
            self.mark = None


class Tip:
    """What a branch holds, as far as this process knows.

    Parameters
    ----------
    id
        Of the newest checkpoint when this was known.
    arrays
        By name.
    """

    __slots__ = ("arrays", "id")

    def __init__(self, id: str, arrays: dict[str, KnownArray]) -> None:
        self.id = id
        self.arrays = arrays

    def close(self) -> None:
        """Give all marks back."""
        for array in self.arrays.values():
            array.close()

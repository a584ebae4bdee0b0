"""A store under test, beside the bytes that it should hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from refault.stores.base import store_name
from refault.stores.objects import ObjectStore

__all__ = ["StoreCase", "fail", "random_content", "raised"]


def random_content(size: int, seed: int = 0) -> bytes:
    """Bytes without order, none of them 0: a zero that is read is wrong."""
    table = bytes([1, *range(1, 256)])
    return random.Random(seed).randbytes(size).translate(table)


def fail(message: str) -> None:
    """End a test; plain asserts would vanish under ``python -O``."""
    __tracebackhide__ = True
    raise AssertionError(message)


def raised(call: Callable[..., object], *arguments: Any) -> Exception | None:
    """Return what a call raises; None if it raises nothing."""
    try:
        call(*arguments)
    except Exception as error:
        return error
    return None


class StoreCase:
    """A store, used as the pager uses it, and a model of it.

    Parameters
    ----------
    store
        Under test.
    content
        What it holds.
    """

    def __init__(self, store: Any, content: bytes | bytearray) -> None:
        self.raw = store
        self.store = ObjectStore(store)
        self.name = store_name(store)
        self.model = bytearray(content)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Have the store fill `buffer`."""
        self.store.read_into(offset, buffer)

    def check(self, offset: int, length: int) -> None:
        """Read into a buffer of which no byte is right before, and compare."""
        __tracebackhide__ = True
        buffer = self.poisoned(offset, length)
        self.read(offset, memoryview(buffer))
        self.compare(buffer, offset, "read_into")

    def write(self, offset: int, data: bytes) -> None:
        """Write to the store and to the model."""
        self.store.write_from(offset, memoryview(data))
        self.model[offset : offset + len(data)] = data

    def check_behind_the_end(self, offset: int, length: int) -> None:
        """Read what is not there: that must raise."""
        __tracebackhide__ = True
        error = raised(self.read, offset, memoryview(bytearray(length)))
        if error is None:
            fail(
                f"{self.name}: read {length} bytes at {offset}, and ends at {len(self.model)}; it "
                "must raise, and never answer with less or with zeros"
            )
        elif self.name not in str(error):
            fail(f"{self.name}: its error does not name it: {error}")

    def check_nowait(self, offset: int, length: int) -> None:
        """Ask ``read_nowait``: all, or nothing; without one there is nothing to see.

        Behind the end it may raise as well.
        """
        __tracebackhide__ = True
        if not callable(getattr(self.raw, "read_nowait", None)):
            return
        buffer = self.poisoned(offset, length)
        try:
            answer = self.raw.read_nowait(offset, memoryview(buffer))
        except Exception:
            if offset + length > len(self.model):
                return
            raise
        if not isinstance(answer, bool):
            fail(f"{self.name}: read_nowait returned {answer!r}; it must be True or False")
        if answer and offset + length > len(self.model):
            fail(
                f"{self.name}: read_nowait claims {length} bytes at {offset}, and the store ends "
                f"at {len(self.model)}"
            )
        if answer:
            self.compare(buffer, offset, "read_nowait")

    def poisoned(self, offset: int, length: int) -> bytearray:
        """Return a buffer of which each byte is wrong."""
        right = int.from_bytes(self.model[offset : offset + length], "little")
        every_bit = (1 << 8 * length) - 1
        return bytearray((right ^ every_bit).to_bytes(length, "little"))

    def compare(self, found: bytes | bytearray, offset: int, method: str) -> None:
        """Compare bytes that are said to be those at `offset`."""
        __tracebackhide__ = True
        right = self.model[offset : offset + len(found)]
        if found == right:
            return
        pairs = enumerate(zip(found, right, strict=True))
        wrong = [place for place, (one, other) in pairs if one != other]
        first = wrong[0]
        fail(
            f"{self.name}: {method} of {len(right)} bytes at {offset}: {len(wrong)} are wrong, "
            f"the first at {offset + first}: {bytes(found[first : first + 8])!r} instead of "
            f"{bytes(right[first : first + 8])!r}"
        )

    def close(self) -> None:
        """Close the store, if it can be closed."""
        self.store.close()

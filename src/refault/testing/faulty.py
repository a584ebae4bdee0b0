"""Stores that go wrong on purpose, around a store that is right.

All of them can be pickled, so they work in the pager, and are seeded: what goes
wrong depends on the seed, the place and how often it was asked for, and not on the
order in which threads come.  None has a ``read_nowait``, even if the inner store
has: so every read goes through them.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections import Counter
from typing import Any, Literal, get_args

from refault.errors import UsageError
from refault.stores.base import Store
from refault.stores.wrapper import StoreWrapper

__all__ = ["FlakyStore", "SlowStore", "TornStore"]

Tear = Literal["fails", "short", "wrong", "version"]


class _Dice:
    """Says whether the next call goes wrong; `unlucky` counts those that did."""

    def __init__(self, rate: float, seed: int) -> None:
        if not 0 <= rate <= 1:
            raise UsageError(f"rate={rate!r} is no probability; give a number from 0 to 1")
        self.rate = rate
        self.seed = seed
        self.unlucky = 0
        self._asked: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def throw(self, method: str, offset: int = 0) -> bool:
        with self._lock:
            self._asked[method, offset] += 1
            asked = self._asked[method, offset]
            one = random.Random(f"{self.seed} {method} {offset} {asked}")
            bad = one.random() < self.rate
            self.unlucky += bad
        return bad

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


class FlakyStore(StoreWrapper):
    """Some calls fail; asked again, they may succeed.

    A read that fails leaves rubbish in the buffer.

    Parameters
    ----------
    store
        Any store.
    rate
        The part of the calls that fail, from 0 to 1; each for itself.
    seed
        Another seed, other calls.
    permanent
        Whether the errors say that asking again is of no use.

    Attributes
    ----------
    failures
        How many calls of this object have failed.
    """

    def __init__(
        self, store: Store, rate: float, seed: int = 0, *, permanent: bool = False
    ) -> None:
        super().__init__(store)
        self.permanent = permanent
        self._dice = _Dice(rate, seed)

    @property
    def failures(self) -> int:
        return self._dice.unlucky

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, or fail."""
        if self._dice.throw("read", offset):
            buffer[:] = b"\xee" * len(buffer)
            raise self._error()
        super().read_into(offset, buffer)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Store `buffer`, or nothing of it, and fail."""
        if self._dice.throw("write", offset):
            raise self._error()
        super().write_from(offset, buffer)

    def flush(self) -> None:
        """Make everything durable, or fail."""
        if self._dice.throw("flush"):
            raise self._error()
        super().flush()

    def _error(self) -> OSError:
        error = OSError(errno.EIO, "injected failure")
        error.permanent = self.permanent  # type: ignore[attr-defined]
        return error


class SlowStore(StoreWrapper):
    """Every call takes its time.

    Parameters
    ----------
    store
        Any store.
    seconds
        How long each read, write and flush waits before it begins.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        if not 0 <= seconds < float("inf"):
            raise UsageError(f"seconds={seconds!r} is no time to wait; give a number from 0 on")
        super().__init__(store)
        self.seconds = seconds

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Wait, and fill `buffer`."""
        time.sleep(self.seconds)
        super().read_into(offset, buffer)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Wait, and store `buffer`."""
        time.sleep(self.seconds)
        super().write_from(offset, buffer)

    def flush(self) -> None:
        """Wait, and make everything durable."""
        time.sleep(self.seconds)
        super().flush()


class TornStore(StoreWrapper):
    """Some calls end half way.

    Parameters
    ----------
    store
        Any store.
    rate
        The part of the reads and writes that are torn, from 0 to 1.
    seed
        Another seed, other calls.
    how
        "fails": half of the bytes are right, the others rubbish, and an error is raised.
        "short": half is done, and the answer says how many bytes that is.
        "wrong": all is done, one bit is wrong, and nobody says so: only a checksum
        finds it.
        "version": the second half is of another version, and the attribute ``version``
        changes: who looks at it after the read knows.  Writes are not torn.

    Attributes
    ----------
    failures
        How many calls of this object were torn.
    """

    def __init__(self, store: Store, rate: float, seed: int = 0, how: Tear = "fails") -> None:
        if how not in get_args(Tear):
            raise UsageError(f"how={how!r} is none of {', '.join(map(repr, get_args(Tear)))}")
        super().__init__(store)
        self.how = how
        self._dice = _Dice(rate, seed)
        if how == "version":
            self.version = f"{getattr(store, 'version', '')}+0"

    @property
    def failures(self) -> int:
        return self._dice.unlucky

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer`, or half of it."""
        super().read_into(offset, buffer)
        half = len(buffer) // 2
        if not self._dice.throw("read", offset):
            return len(buffer)
        if self.how == "wrong":
            buffer[half] ^= 1
            return len(buffer)
        buffer[half:] = bytes(byte ^ 0xFF for byte in buffer[half:])
        if self.how == "version":
            self.version = f"{getattr(self.store, 'version', '')}+{self.failures}"
            return len(buffer)
        if self.how == "short":
            return half
        raise OSError(errno.EIO, f"injected failure after {half} of {len(buffer)} bytes")

    def write_from(self, offset: int, buffer: memoryview) -> int:
        """Store `buffer`, or half of it."""
        length = len(buffer)
        if self.how == "version" or not self._dice.throw("write", offset):
            super().write_from(offset, buffer)
            return length
        half = length // 2
        if self.how == "wrong":
            wrong = bytearray(buffer)
            wrong[half] ^= 1
            super().write_from(offset, memoryview(wrong))
            return length
        if half:
            super().write_from(offset, buffer[:half])
        if self.how == "short":
            return half
        raise OSError(errno.EIO, f"injected failure after {half} of {length} bytes")

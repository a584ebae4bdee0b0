"""What all stores behind a network have in common: how they fail, and how they are asked.

A store here makes one request and says what came of it.  It does not try again: an error that may
pass is a failed read, and a failed read is a retry of the fault.  So the pause between two tries is
the pager's, which holds no lock meanwhile, looks at signals and the deadline, and counts.
"""

from __future__ import annotations

import dataclasses
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from refault.errors import StoreError, UsageError

from .base import check_range
from .tries import Tries

__all__ = ["CHANGED", "PERMANENT_STATUS", "Policy", "Refused", "RemoteStore", "public"]

T = TypeVar("T")

LARGEST_READ = 2 << 20
PERMANENT_STATUS = frozenset({401, 403, 404, 405, 410, 412, 416})
"""Answers of HTTP after which asking again is of no use."""

CHANGED = (
    "it has changed since it was opened, and bytes of two versions are never mixed; open it again"
)

_SECRETS = re.compile(r"://(?:[^\s/@]*@)?([^\s?'\")]*)(?:[?][^\s'\")]*)?")

OPENING_TRIES = 4
OPENING_PAUSE = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """How a store behind a network is asked.

    Attributes
    ----------
    timeout
        Seconds that one try may take.  A try that takes longer has failed, whatever it does
        afterwards, and the page is asked for again.
    parallel
        How many requests of one region there are at a time, at most.
    read_bytes
        Neighbouring pages are joined to one request of so many bytes, at most 2 MiB.
    hedge_after
        Seconds after which a request that has not been answered gets a second one beside it; the
        first answer counts.  Set it a little above what nearly all requests take.  None: never.
    """

    timeout: float = 20.0
    parallel: int = 32
    read_bytes: int = LARGEST_READ
    hedge_after: float | None = None

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise UsageError(f"timeout={self.timeout!r} is not a time; give seconds")
        if self.hedge_after is not None and not 0 < self.hedge_after < self.timeout:
            raise UsageError(
                f"hedge_after={self.hedge_after!r} is not between 0 and the timeout of"
                f" {self.timeout:g} s; give seconds, or None for no second request"
            )
        if self.parallel < 1:
            raise UsageError(f"parallel={self.parallel!r} lets nobody read; give 1 or more")
        if not 4096 <= self.read_bytes <= LARGEST_READ:
            raise UsageError(f"read_bytes={self.read_bytes!r} is not from 4096 to {LARGEST_READ}")


def public(text: str) -> str:
    """A text without what may be secret in its URLs: queries, users and passwords."""
    return _SECRETS.sub(r"://\1", text)


class Refused(Exception):
    """Asking again is of no use; the message says why, and what to do."""


class RemoteStore(ABC):
    """A store behind a network.

    A subclass makes one request in `get_range`, and raises whatever its library raises.

    Parameters
    ----------
    name
        How messages name it; without anything secret.
    policy
        How it is asked.

    Attributes
    ----------
    parallel, read_bytes
        From the policy, for the pager.
    version
        Another one when the content is; None: not known.
    """

    limits_itself = False
    """Whether `get_range` ends by itself when the time is over."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy
        self.parallel = policy.parallel
        self.read_bytes = policy.read_bytes
        self.size = 0
        self.version: str | None = None
        self._make_locks()

    @abstractmethod
    def get_range(self, start: int, end: int) -> Any:
        """Ask once for bytes ``[start, end)``; what is returned has the buffer protocol."""

    def _describe(self, error: BaseException) -> tuple[str, bool]:
        """What `error` means, in words, and whether it is for ever."""
        text = public(str(error).strip())
        return f"{type(error).__name__}: {text}" if text else type(error).__name__, False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on, or raise `StoreError`."""
        buffer[:] = self.fetch(offset, len(buffer))

    def fetch(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset` on, or raise `StoreError`."""
        check_range(self, offset, length, "read")
        return self._fetch(offset, length, self._ask)

    def _fetch(
        self, offset: int, length: int, ask: Callable[[Callable[[], Any], str], Any]
    ) -> memoryview:
        if not length:
            return memoryview(b"")
        doing = f"read {length} bytes at offset {offset}"
        answer = memoryview(ask(lambda: self.get_range(offset, offset + length), doing)).cast("B")
        if len(answer) != length:
            raise StoreError(
                f"{self.name}: cannot {doing}: an answer of {len(answer)} bytes was refused"
            )
        return answer

    def _ask(self, work: Callable[[], T], doing: str) -> T:
        """Make one try, within the time limit."""
        if self.limits_itself and self.policy.hedge_after is None:
            return self._told(work, doing)
        return self._told(lambda: self._tries.run(work), doing)

    def _told(self, work: Callable[[], T], doing: str) -> T:
        """Turn what `work` raises into a `StoreError`."""
        try:
            return work()
        except StoreError:
            raise
        except Refused as error:
            raise StoreError(
                f"{self.name}: cannot {doing}: {error}", permanent=True
            ) from error.__cause__
        except Exception as error:
            text, permanent = self._describe(error)
            raise StoreError(f"{self.name}: cannot {doing}: {text}", permanent=permanent) from error

    def _ask_patiently(self, work: Callable[[], T], doing: str) -> T:
        """Make a few tries: nobody waits in a page fault yet, and nobody else would ask again."""
        for number in range(1, OPENING_TRIES):
            try:
                return self._ask(work, doing)
            except StoreError as error:
                if error.permanent:
                    raise
            time.sleep(OPENING_PAUSE * 2 ** (number - 1) * random.uniform(0.8, 1.2))
        return self._ask(work, doing)

    def _make_locks(self) -> None:
        policy = self.policy
        self._tries = Tries(policy.timeout, policy.hedge_after, 2 * policy.parallel)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_tries"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_locks()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

"""What the guardian says to faults when it cannot answer them."""

from __future__ import annotations

import errno
import os

import pytest

from refault.errors import KernelError
from refault.machine.uffd import EVENT_PAGEFAULT, Again, RangeGone
from refault.pager.guardian import Ward


class Refusing:
    """A userfaultfd with one message, which refuses its answer."""

    def __init__(self, refusal: KernelError) -> None:
        self.refusal = refusal
        self.woken: list[tuple[int, int]] = []

    def read_messages(self, buffer: bytearray) -> list[tuple[int, int, int, int]]:
        return [(EVENT_PAGEFAULT, 0, 0x5678, 7)]

    def poison_absent(self, start: int, length: int) -> None:
        raise self.refusal

    def wake(self, start: int, length: int) -> None:
        self.woken.append((start, length))


@pytest.mark.parametrize(
    "refusal",
    [
        Again(errno.EAGAIN, "the address space is changing", resolved=0),
        RangeGone(errno.ENOENT, "something else lies there", resolved=0),
    ],
)
def test_who_cannot_be_answered_looks_again(
    refusal: KernelError, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr("signal.pidfd_send_signal", lambda _, number: signals.append(number))
    ward = Ward(os.getpid(), -1, -1, -1)
    ward.userfaultfd = refusing = Refusing(refusal)  # type: ignore[assignment]
    ward.answer()
    assert refusing.woken == [(0x5000, 4096)]
    assert ward.doomed is None and not signals

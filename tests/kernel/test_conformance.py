"""The same small programs on the simulated machine and on the kernel: the same tries."""

from __future__ import annotations

import pytest

from helpers.forked import run_forked
from helpers.perf import Faults
from helpers.userfaultfd import needs_userfaultfd
from kernel.conformance import CASES, VERSION, Ask, Case, End, Record, on_the_kernel, simulated

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd]

DIFFERENT = "bare-wakes-while-missing"
MISSING, PROTECTED = Ask("missing"), Ask("protected")
BY_NAME = {case.name: case for case in CASES}


def both(case: Case) -> tuple[Record, Record, list[Faults]]:
    record, sizes = simulated(case)
    ended = run_forked(lambda: on_the_kernel(case, sizes), limit=10)
    if ended.error:
        pytest.fail(ended.error, pytrace=False)
    found, faults = ended.value
    return record, found, faults


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name != DIFFERENT], ids=lambda case: case.name
)
def test_the_simulated_machine_does_what_the_kernel_does(case: Case) -> None:
    record, found, counted = both(case)
    assert record == found
    for entries, faults in zip(found, counted, strict=True):
        if faults.all < 0:
            continue  # perf_event_open is refused
        ends = [entry for entry in entries if isinstance(entry, End)]
        if any(end.how == "SIGBUS" for end in ends):
            continue  # the handler is Python, and has faults of its own
        assert faults.all == len(ends)
        if VERSION >= (6, 8):
            assert faults.major == len([1 for end in ends if end.how == "done" and end.tries > 2])


def test_the_third_retry() -> None:
    """What both sides agree on, in full: one store, three tries."""
    record, found, _ = both(BY_NAME["third-retry"])
    assert record == found == [(MISSING, PROTECTED, End(3, "done"))]


def test_a_signal_ends_the_fault_and_the_next_one_asks_again() -> None:
    record, found, _ = both(BY_NAME["signal-before-the-third-try"])
    assert record == found
    assert found == [
        (MISSING, PROTECTED, End(2, "interrupted"), PROTECTED, End(2, "done")),
    ]


def test_the_one_difference() -> None:
    """Woken for nothing while its page is read, a fault of refault looks again where it is.

    There refault follows the rule of the page lock, not that of userfaultfd: the first try gives
    the lock up and is retried; later ones wait in place.  So it asks as often, and tries twice.
    """
    record, found, _ = both(BY_NAME[DIFFERENT])
    assert record == [(*[MISSING] * 11, End(2, "done"))]
    assert found == [(*[MISSING] * 11, End(12, "done"))]

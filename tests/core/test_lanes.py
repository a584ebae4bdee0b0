"""What is waited for goes first in a lane, and always finds a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from refault.machine.urgency import Urgency
from refault.pager.workers import Job, Lane, Workers

LIMIT = 20.0
"""Seconds; only for what fails."""


class Work:
    """Jobs of one lane, none of which ends before it is let go."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.begun: list[str] = []
        self.changed = threading.Condition()
        self.ended = threading.Event()

    def submit(self, name: str, urgency: Urgency) -> Job:
        def work() -> None:
            with self.changed:
                self.begun.append(name)
                self.changed.notify_all()
            assert self.ended.wait(LIMIT)

        return self.lane.submit(work, lambda *_: None, urgency)

    def wait(self, count: int) -> list[str]:
        """The names of the jobs that have begun, at least so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.begun) >= count, LIMIT), self.begun
            return list(self.begun)


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    os.close(workers.fd)


def finish(work: Work) -> None:
    work.ended.set()
    work.lane.close()
    for _ in range(int(LIMIT / 0.001)):
        if not work.lane.threads:
            return
        work.ended.wait(0)
        threading.Event().wait(0.001)
    raise AssertionError("a thread did not end")


@pytest.mark.parametrize(("width", "most"), [(1, 1), (2, 1), (8, 7), (32, 28)])
def test_reads_ahead_and_writes_leave_threads_to_demand(
    workers: Workers, width: int, most: int
) -> None:
    work = Work(workers.lane(width))
    for number in range(2 * width):
        work.submit(f"other {number}", Urgency.AHEAD if number % 2 else Urgency.WRITE)
    work.wait(most)
    assert work.lane.threads == most
    for number in range(width - most):
        work.submit(f"demand {number}", Urgency.DEMAND)
    begun = work.wait(width)
    assert sorted(begun[most:]) == sorted(f"demand {number}" for number in range(width - most))
    finish(work)
    assert len(work.begun) == 3 * width - most


def test_demand_then_writes_then_reads_ahead(workers: Workers) -> None:
    work = Work(workers.lane(1))
    work.submit("first", Urgency.AHEAD)
    work.wait(1)
    for urgency in reversed(Urgency):
        for number in range(2):
            work.submit(f"{urgency.name} {number}", urgency)
    finish(work)
    rest = [f"{urgency.name} {number}" for urgency in Urgency for number in range(2)]
    assert work.begun == ["first", *rest]


def test_a_read_that_somebody_waits_for_now_moves_up(workers: Workers) -> None:
    work = Work(workers.lane(4))
    jobs = [work.submit(str(number), Urgency.AHEAD) for number in range(9)]
    assert sorted(work.wait(3)) == ["0", "1", "2"]
    for at in (7, 7, 0):  # twice is once, and what has begun already is no matter
        work.lane.hurry(jobs[at])
    assert work.wait(4)[3] == "7"
    work.lane.hurry(jobs[8])
    finish(work)
    assert work.begun[4] == "8"
    assert sorted(work.begun) == [str(number) for number in range(9)]
    assert (work.lane.others, work.lane.others_waiting) == (0, 0)

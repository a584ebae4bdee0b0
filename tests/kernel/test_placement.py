"""Bursts of faults are served under SCHED_IDLE, and nobody waits for that."""

from __future__ import annotations

import os
import pathlib

import pytest

import refault.native
from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd
from refault.cli import doctor

PAGES = 4000
ALWAYS = ENVIRONMENT | {"REFAULT_SCHED_IDLE": "1"}
LOOP = "print(flush=True)\nwhile True: pass"
NEARLY = """
import time
while True:
    end = time.perf_counter() + 0.007
    while time.perf_counter() < end: pass
    time.sleep(0.0005)
"""
"""Leaves a little of its CPU to others, between any two looks of the watch."""
NEVER = ENVIRONMENT | {"REFAULT_SCHED_IDLE": "0"}


def why_not() -> str:
    if not refault.native.available():
        return "no native library: there was no C compiler when refault was installed"
    if len(os.sched_getaffinity(0)) == 1:
        return "one CPU: a program and its pager share it in any case"
    (policy,) = doctor._scheduling()
    return "" if policy.status == "ok" else policy.found


WHY_NOT = why_not()
pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


class Policy:
    """A store that holds the policy of the thread that reads it."""

    name, size = "policy", 64 * 4096

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes([10 + os.sched_getscheduler(0)]) * len(buffer)


def burst(path: str) -> None:
    """Read pages at random; what Python does meanwhile is done as ever."""
    import os

    import numpy as np

    import refault
    from kernel.test_placement import PAGES, Policy

    x = refault.open(path, dtype="u8", page_size=4096, readahead=False)
    y = refault.open(Policy(), dtype="u1", shape=64 * 4096, page_size=4096, readahead=False)
    order = np.random.default_rng(0).permutation(PAGES)
    for number, index in enumerate(order.tolist()):
        assert x[512 * index] == 512 * index
        if number % 64 == 63:
            assert y[4096 * (number // 64)] == 10 + os.SCHED_OTHER, number
    more = refault.region(x).statistics().more
    assert more["bursts"] > 0, more


def test_a_burst(numbers: pathlib.Path) -> None:
    run_child(burst, timeout=60, args=[str(numbers)], env=ALWAYS)


def busy(path: str) -> None:
    """More threads want to run than there are CPUs."""
    import os
    import subprocess
    import sys

    import numpy as np

    import refault
    from kernel.test_placement import LOOP, PAGES

    count = (os.cpu_count() or 1) + 2
    command = [sys.executable, "-c", LOOP]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        x = refault.open(path, dtype="u8", page_size=4096, readahead=False)
        order = np.random.default_rng(0).permutation(PAGES) * 512
        assert (x[order] == order).all()
        more = refault.region(x).statistics().more
        assert more["bursts"] == 0, more
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_none_while_no_cpu_is_idle(numbers: pathlib.Path) -> None:
    run_child(busy, timeout=60, args=[str(numbers)], env=ENVIRONMENT)


def forbidden(path: str) -> None:
    import numpy as np

    import refault
    from kernel.test_placement import PAGES

    x = refault.open(path, dtype="u8", page_size=4096, readahead=False)
    order = np.random.default_rng(0).permutation(PAGES) * 512
    assert (x[order] == order).all()
    assert refault.region(x).statistics().more["bursts"] == 0


def test_forbidden(numbers: pathlib.Path) -> None:
    run_child(forbidden, timeout=60, args=[str(numbers)], env=NEVER)


def calm(path: str) -> None:
    """After a burst there is nothing to do."""
    import os
    import time

    import numpy as np

    import refault
    from kernel.test_placement import PAGES
    from refault.client import connection

    x = refault.open(path, dtype="u8", page_size=4096, readahead=False)
    order = np.random.default_rng(0).permutation(PAGES) * 512
    assert (x[order] == order).all()
    pager = connection.current().pager
    end = time.monotonic() + 20
    while os.sched_getscheduler(pager) != os.SCHED_OTHER:
        assert time.monotonic() < end, "nothing to do, and still SCHED_IDLE"
        time.sleep(0.01)


def test_calm_after_a_burst(numbers: pathlib.Path) -> None:
    run_child(calm, timeout=60, args=[str(numbers)], env=ALWAYS)


def starved(path: str, program: str) -> None:
    """Somebody else wants the CPU that the faults are on: the pager gets it all the same."""
    import os
    import subprocess
    import sys

    import numpy as np

    import refault
    from kernel.test_placement import PAGES

    x = refault.open(path, dtype="u8", page_size=4096, readahead=False)
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    busy = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    try:
        order = np.random.default_rng(0).permutation(PAGES) * 512
        while not refault.region(x).statistics().more["bursts_ended"]:
            assert (x[order] == order).all()
            refault.region(x).evict()
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.parametrize("program", [LOOP, NEARLY], ids=["busy", "nearly"])
def test_a_busy_cpu_ends_a_burst(numbers: pathlib.Path, program: str) -> None:
    run_child(starved, timeout=60, args=[str(numbers), program], env=ALWAYS)


@pytest.fixture
def numbers(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file that holds the word's number in every word."""
    import numpy as np

    path = tmp_path / "numbers"
    np.arange(PAGES * 512, dtype="u8").tofile(path)
    return path

"""The third retry, on real memory: what the mail allowed.

A range is registered for missing pages and for write protection.  A thread stores to a page that is
missing.  Try 1: missing, it sleeps; the answer maps the page write-protected.  Try 2: protected,
it sleeps again; the answer takes the protection away.  Try 3 succeeds.  One store, one exception of
the processor: before the mail the second sleep was not allowed, and the thread was killed by
SIGBUS.

Tries are counted from two sides.  Each sleep is a message.  And the kernel's own counters
say how many exceptions there were, and whether the last try was the first ("minor") or not:
because the first try is made under the lock of the vma alone, it is the *second* retry
that makes a fault "major" (Linux 6.8).  So no message and minor is one try, one message and
minor is two, two messages and major is three or more.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable

import pytest

from helpers.forked import run_forked
from helpers.perf import FaultCounters, Faults, own_all_pages, perf_problem
from helpers.userfaultfd import needs_userfaultfd
from kernel.scenarios.memory import (
    ALL,
    ANON,
    SHMEM,
    SHMEM_PRIVATE,
    Area,
    Kind,
    filled,
    libc,
    load,
    madvise,
    pattern,
    store,
)
from kernel.scenarios.serving import Monitor, Touch, open_monitor
from refault.machine import uffd
from refault.machine.uffd import (
    FAULT_WP,
    FAULT_WRITE,
    MODE_MISSING,
    MODE_WP,
    Message,
    Userfaultfd,
)

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.skipif(perf_problem() is not None, reason=str(perf_problem())),
]

LIMIT = 10.0
SMALL = (ANON, SHMEM, SHMEM_PRIVATE)
VERSION = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
MADV_DONTNEED = 4
FAULT_MISSING = 0


def counted(work: Callable[[], object]) -> Faults:
    """The faults of this thread while `work` runs, and none of Python's own."""
    counters = FaultCounters()
    counters.read()
    before = counters.read()
    work()
    after = counters.read()
    counters.close()
    return Faults(*(now - then for now, then in zip(after, before, strict=True)))


def one_store(address: int) -> Faults:
    return counted(lambda: libc.memset(address, 9, 1))


def one_load(address: int) -> Faults:
    into = ctypes.create_string_buffer(1)
    libc.memset(into, 1, 1)
    return counted(lambda: libc.memcpy(into, address, 1))


def protecting(area: Area) -> Callable[[Userfaultfd, Message], None]:
    """Answers a missing page with a protected one, and a protected page by unprotecting it."""
    source = filled(area.pages, area.page)

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        number = area.number(message[2])
        if message[1] & FAULT_WP:
            descriptor.write_protect(area.at(number), area.page, 0)
        else:
            descriptor.copy(area.at(number), source + number * area.page, area.page, uffd.COPY_WP)

    return answer


def next_messages(descriptor: Userfaultfd, buffer: bytearray) -> list[Message]:
    """What can be read, once there is something."""
    select.select([descriptor], [], [], LIMIT / 2)
    return descriptor.read_messages(buffer)


def faults(all_: int, *, major: int) -> Faults:
    """What the counters say; before 6.8 they did not agree among themselves."""
    return Faults(all_, all_ - major, major)


def check(found: Faults, expected: Faults) -> None:
    assert found.all == expected.all
    if VERSION >= (6, 8):
        assert found == expected


def run(work: Callable[[], object]) -> object:
    def attempt() -> object:
        own_all_pages()
        return work()

    ended = run_forked(attempt, limit=LIMIT)
    if ended.error:
        pytest.fail(ended.error, pytrace=False)
    return ended.value


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_one_store_three_tries_one_exception(kind: Kind, huge_problem: str) -> None:
    if kind.huge and huge_problem:
        pytest.skip(huge_problem)

    def work() -> None:
        area = Area(kind, 2)
        monitor = Monitor(open_monitor(area, MODE_MISSING | MODE_WP), protecting(area))
        touch = Touch(one_store, area.at(1))
        check(touch.result(), faults(1, major=1))
        heard = [(flags, tid) for _, flags, _, tid in monitor.stop()]
        assert heard == [(FAULT_WRITE, touch.tid), (FAULT_WRITE | FAULT_WP, touch.tid)]
        assert load(area.at(1)) == 9
        assert load(area.at(1) + 1) == pattern(1)

    run(work)


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)
def test_one_retry_is_minor_and_none_is_no_fault(kind: Kind) -> None:
    def work() -> None:
        area = Area(kind, 2)
        monitor = Monitor(open_monitor(area, MODE_MISSING | MODE_WP), protecting(area))
        check(one_load(area.at(0)), faults(1, major=0))
        assert one_load(area.at(0)) == (0, 0, 0)
        check(one_store(area.at(0)), faults(1, major=0))
        assert one_store(area.at(0)) == (0, 0, 0)
        assert [flags for _, flags, _, _ in monitor.stop()] == [
            FAULT_MISSING,
            FAULT_WRITE | FAULT_WP,
        ]

    run(work)


@pytest.mark.parametrize("wakes", [1, 2, 10])
@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)
def test_each_bare_wake_is_a_try(kind: Kind, wakes: int) -> None:
    """Ten wakes give eleven tries that ask, and then the one that succeeds; one exception."""

    def work() -> None:
        area = Area(kind, 2)
        source = filled(2, area.page)
        descriptor = open_monitor(area, MODE_MISSING)
        touch = Touch(one_load, area.start)
        buffer = bytearray(64 * uffd.MESSAGE_SIZE)
        heard: list[Message] = []
        for number in range(wakes + 1):
            heard += next_messages(descriptor, buffer)
            assert len(heard) == number + 1
            if number < wakes:
                descriptor.wake(area.start, area.page)
        assert touch.asleep()
        assert descriptor.read_messages(buffer) == []
        descriptor.copy(area.start, source, area.page)
        check(touch.result(), faults(1, major=1))
        assert len(heard) == wakes + 1
        assert {tid for _, _, _, tid in heard} == {touch.tid}

    run(work)


def test_protected_and_evicted() -> None:
    """The page of shared memory is gone and its protection is not: a marker stands for it.

    With swap this is the case of the mail.  For shared memory the kernel makes two exceptions of
    it: the first fills the entry in, still protected, and ends; the second asks.
    """

    def work() -> None:
        area = Area(SHMEM, 2)
        monitor = Monitor(open_monitor(area, MODE_WP), protecting(area))
        store(area.start, pattern(0))
        monitor.uffd.write_protect(area.start, area.length)
        madvise(area.start, area.length, MADV_DONTNEED)
        found = one_store(area.start)
        assert [flags for _, flags, _, _ in monitor.stop()] == [FAULT_WRITE | FAULT_WP]
        assert found.all == 2
        assert found.major == 0
        assert load(area.start) == 9

    run(work)


def test_signals_begin_a_new_exception() -> None:
    """Not a retry: the handler runs, and the instruction faults again from the beginning."""

    def work() -> None:
        libc.pthread_kill.argtypes = (ctypes.c_ulong, ctypes.c_int)
        calls: list[int] = []
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(calls.append)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal(signal.SIGUSR1, ctypes.cast(handler, ctypes.c_void_p))
        area = Area(ANON, 1)
        source = filled(1, area.page)
        descriptor = open_monitor(area, MODE_MISSING)
        idents: list[int] = []

        def touching() -> Faults:
            idents.append(threading.get_ident())
            return one_load(area.start)

        touch = Touch(touching)
        buffer = bytearray(64 * uffd.MESSAGE_SIZE)
        heard: list[Message] = []
        for number in range(6):
            heard += next_messages(descriptor, buffer)
            if number < 5:
                libc.pthread_kill(idents[0], signal.SIGUSR1)
        time.sleep(0.02)
        assert descriptor.read_messages(buffer) == []
        descriptor.copy(area.start, source, area.page)
        found = touch.result()
        assert len(heard) == 6
        assert len(calls) == 5
        # The handlers are Python; their own first touches of memory may add to it.
        assert found.all >= 6
        if VERSION >= (6, 8):
            assert found.major == 0, "one retry each"

    run(work)

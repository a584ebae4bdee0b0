"""The traps of userfaultfd: what a monitor must know, shown on this kernel.

Each test has a name that says what happens; if one fails on a newer kernel, that may be good news,
and the pager may have code that is not needed there any more.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from helpers.forked import run_forked
from helpers.userfaultfd import needs_userfaultfd
from kernel.scenarios.memory import (
    ANON,
    SHMEM,
    Area,
    Kind,
    catching,
    filled,
    libc,
    load,
    madvise,
    map_memory,
    pattern,
    punch,
    store,
)
from kernel.scenarios.registry import KernelRefuses
from kernel.scenarios.serving import Link, Program, Touch, open_descriptor, open_monitor, raw_ioctl
from refault.machine import uffd
from refault.machine.pagemap import PAGE_IS_WRITTEN, Pagemap
from refault.machine.uffd import (
    FAULT_WP,
    FAULT_WRITE,
    MODE_MINOR,
    MODE_MISSING,
    MODE_WP,
    Message,
    Userfaultfd,
)

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd]

LIMIT = 10.0
NOBODY = 65534
MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_READ = 4, 9, 22
MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED = 2, 0x20, 0x10
ARM = platform.machine() == "aarch64"
SYS_FUTEX, SYS_SET_TID_ADDRESS, SYS_EXIT = (98, 96, 93) if ARM else (202, 218, 60)
FUTEX_LOCK_PI, FUTEX_PRIVATE = 6, 128


def run(work: Callable[[], object], user: int | None = None) -> Any:
    """Run it in a process of its own."""

    def attempt() -> tuple[str, object]:
        try:
            return "", work()
        except KernelRefuses as reason:
            return str(reason), None

    ended = run_forked(attempt, limit=LIMIT, user=user)
    if ended.error:
        pytest.fail(ended.error, pytrace=False)
    refused, value = ended.value
    if refused:
        pytest.skip(refused)
    return value


def heard(descriptor: Userfaultfd, seconds: float = 2.0) -> list[Message]:
    """What can be read, once there is something."""
    select.select([descriptor], [], [], seconds)
    return descriptor.read_messages(bytearray(64 * uffd.MESSAGE_SIZE))


def for_privileged_only() -> None:
    opened = uffd.open_userfaultfd(0, 0)
    os.close(opened.fd)
    if opened.user_mode_only:
        raise KernelRefuses("this user gets faults of user code only")


# --- the message storm ----------------------------------------------------------------------


def test_a_system_call_with_a_signal_pending_floods_the_queue() -> None:
    """read(2) into a missing page: it cannot be left, so it spins until the page is there.

    The signal is not delivered meanwhile.  Hence: a message is not a request.
    """

    def work() -> int:
        for_privileged_only()
        caught: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
        area = Area(ANON, 1)
        source = filled(1, area.page)
        descriptor = open_monitor(area, MODE_MISSING)
        zeros = os.open("/dev/zero", os.O_RDONLY)
        idents: list[int] = []

        def reading() -> int:
            idents.append(threading.get_ident())
            return int(libc.read(zeros, area.start, 8))

        touch = Touch(reading)
        (first,) = heard(descriptor)
        assert touch.asleep()
        assert descriptor.read_messages(bytearray(64)) == []
        libc.pthread_kill(ctypes.c_ulong(idents[0]), signal.SIGUSR1)
        duplicates = 0
        buffer = bytearray(1024 * uffd.MESSAGE_SIZE)
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            for message in descriptor.read_messages(buffer):
                assert message == first
                duplicates += 1
        assert not touch.done.is_set()
        states = {touch.state() for _ in range(20)}
        assert "R" in states, f"it does not spin: {states}"
        descriptor.copy(area.start, source, area.page)
        assert touch.result() == 8
        assert caught == [signal.SIGUSR1]
        return duplicates

    duplicates = run(work)
    print(f"{duplicates} duplicates in 100 ms")
    # Thousands when the reader is as quick as the sender; how many is a matter of luck.
    assert duplicates > 3


# --- sleepers that nothing wakes ------------------------------------------------------------


def sleeper_on_missing(area: Area) -> tuple[Userfaultfd, Touch]:
    descriptor = open_monitor(area, MODE_MISSING)
    touch = Touch(load, area.start)
    assert len(heard(descriptor)) == 1
    return descriptor, touch


def sleeper_on_protected(area: Area, modes: int = MODE_WP) -> tuple[Userfaultfd, Touch]:
    libc.memset(area.start, 7, area.length)
    descriptor = open_monitor(area, modes)
    descriptor.write_protect(area.start, area.length)
    touch = Touch(store, area.start, 9)
    ((_, flags, _, _),) = heard(descriptor)
    assert flags == FAULT_WP | FAULT_WRITE
    return descriptor, touch


KINDS = pytest.mark.parametrize("kind", [ANON, SHMEM], ids=lambda kind: kind.name)


@KINDS
def test_a_copy_that_finds_the_page_there_wakes_nobody(kind: Kind) -> None:
    def work() -> None:
        area = Area(kind, 1)
        source = filled(1, area.page)
        descriptor, touch = sleeper_on_missing(area)
        descriptor.copy(area.start, source, area.page, uffd.COPY_DONTWAKE)
        said = raw_ioctl(descriptor.fd, uffd.UFFDIO_COPY, area.start, source, area.page, 0)
        assert said == (errno.EEXIST, -errno.EEXIST)
        assert touch.asleep(), "good news: this kernel wakes"
        descriptor.wake(area.start, area.page)
        assert touch.result() == pattern(0)

    run(work)


@KINDS
def test_munmap_under_a_sleeper_wakes_nobody(kind: Kind) -> None:
    def work() -> None:
        area = Area(kind, 1)
        descriptor, touch = sleeper_on_missing(area)

        def replace(_: int) -> None:
            map_memory(area.page, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, at=area.start)

        with catching(signal.SIGSEGV, replace) as signals:
            libc.munmap(area.start, area.length)
            assert touch.asleep()
            descriptor.wake(area.start, area.length)
            assert touch.result() == 0
        assert signals.addresses == [area.start]

    run(work)


@KINDS
def test_mprotect_under_a_sleeper_wakes_nobody(kind: Kind) -> None:
    def work() -> None:
        area = Area(kind, 1)
        source = filled(1, area.page)
        descriptor, touch = sleeper_on_missing(area)

        def allow(_: int) -> None:
            libc.mprotect(area.start, area.length, 3)

        with catching(signal.SIGSEGV, allow) as signals:
            libc.mprotect(area.start, area.length, 0)
            assert touch.asleep()
            descriptor.wake(area.start, area.length)
            assert len(heard(descriptor)) == 1, "after the signal it faults again"
            descriptor.copy(area.start, source, area.page)
            assert touch.result() == pattern(0)
        assert signals.addresses == [area.start]

    run(work)


@KINDS
def test_dontneed_under_a_sleeper_wakes_nobody(kind: Kind) -> None:
    def work() -> None:
        area = Area(kind, 1)
        descriptor, touch = sleeper_on_protected(area)
        madvise(area.start, area.length, MADV_DONTNEED)
        assert touch.asleep()
        descriptor.wake(area.start, area.length)
        if kind is ANON:
            touch.result()  # the protection went with the page: it may write
        else:
            assert len(heard(descriptor)) == 1, "the marker still protects"
            descriptor.write_protect(area.start, area.length, 0)
            touch.result()

    run(work)


@KINDS
@pytest.mark.parametrize("missing", [False, True], ids=["wp-only", "missing-too"])
def test_unregister_wakes_only_if_missing_was_registered(kind: Kind, missing: bool) -> None:
    def work() -> None:
        area = Area(kind, 1)
        modes = MODE_WP | (MODE_MISSING if missing else 0)
        descriptor, touch = sleeper_on_protected(area, modes)
        # The raw one: `Userfaultfd.unregister` wakes by itself.
        said = raw_ioctl(descriptor.fd, uffd.UFFDIO_UNREGISTER, area.start)
        assert said.errno == errno.EINVAL, "no length"
        argument = struct.pack("=QQ", area.start, area.length)
        fcntl.ioctl(descriptor.fd, uffd.UFFDIO_UNREGISTER, argument)
        if not missing:
            assert touch.asleep(), "good news: this kernel wakes"
            descriptor.wake(area.start, area.length)
        touch.result()
        assert load(area.start) == 9

    run(work)


def test_unregister_of_minor_only_wakes_nobody() -> None:
    def work() -> None:
        area = Area(SHMEM, 1)
        libc.memset(area.alias, 7, area.page)
        descriptor = open_monitor(area, MODE_MINOR)
        touch = Touch(load, area.start)
        assert len(heard(descriptor)) == 1
        argument = struct.pack("=QQ", area.start, area.length)
        fcntl.ioctl(descriptor.fd, uffd.UFFDIO_UNREGISTER, argument)
        assert touch.asleep(), "good news: this kernel wakes"
        descriptor.wake(area.start, area.length)
        assert touch.result() == 7

    run(work)


# --- order ----------------------------------------------------------------------------------


def test_faults_overtake_events() -> None:
    """A fault that came after a REMOVE is read before it."""

    def work() -> None:
        area = Area(ANON, 2)
        source = filled(2, area.page)
        descriptor = open_monitor(area, MODE_MISSING, uffd.FEATURE_EVENT_REMOVE)
        descriptor.copy(area.start, source, area.page)
        remover = Touch(madvise, area.start, area.page, MADV_DONTNEED)
        assert remover.asleep()
        touch = Touch(load, area.at(1))
        assert touch.asleep()
        events = [event for event, _, _, _ in heard(descriptor)]
        assert events == [uffd.EVENT_PAGEFAULT, uffd.EVENT_REMOVE]
        remover.result()
        descriptor.copy(area.at(1), source + area.page, area.page)
        assert touch.result() == pattern(1)

    run(work)


# --- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [False, True], ids=["alone", "with-a-second-descriptor"])
def test_a_killed_monitor_leaves_zeros_unless_the_client_keeps_a_descriptor(keeps: bool) -> None:
    """Why the client keeps one."""

    def work() -> None:
        def monitor(link: Link) -> None:
            _, (fd,) = link.receive()
            select.select([fd], [], [])
            link.send("heard")
            time.sleep(3600)

        program = Program(monitor)
        area = Area(ANON, 1)
        source = filled(1, area.page)
        descriptor = open_monitor(area, MODE_MISSING)
        program.link.send("take it", descriptor.fd)
        if not keeps:
            descriptor.close()
        touch = Touch(load, area.start)
        program.link.receive()
        assert touch.asleep()
        os.kill(program.pid, signal.SIGKILL)
        os.waitpid(program.pid, 0)
        if keeps:
            assert touch.asleep(), "it waits for the next monitor"
            descriptor.copy(area.start, source, area.page)
            assert touch.result() == pattern(0)
        else:
            assert touch.result() == 0, "data that were never there"

    run(work)


def test_a_dying_task_does_not_wait_for_a_missing_page() -> None:
    """The kernel clears a word when a thread ends; this one is lazy."""

    def work() -> float:
        for_privileged_only()
        area = Area(ANON, 1)
        descriptor = open_monitor(area, MODE_MISSING)
        tids: list[int] = []

        def ending() -> None:
            tids.append(threading.get_native_id())
            libc.syscall(ctypes.c_long(SYS_SET_TID_ADDRESS), ctypes.c_void_p(area.start))
            libc.syscall(ctypes.c_long(SYS_EXIT), ctypes.c_long(0))

        begin = time.monotonic()
        Touch(ending)
        while not tids or os.path.exists(f"/proc/self/task/{tids[0]}"):
            assert time.monotonic() < begin + 2
            time.sleep(0.001)
        assert descriptor.read_messages(bytearray(64)) == []
        return time.monotonic() - begin

    assert run(work) < 1


def test_a_task_that_waits_for_a_page_can_be_killed() -> None:
    def work() -> float:
        area = Area(ANON, 1)

        def program(link: Link) -> None:
            descriptor = open_monitor(area, MODE_MISSING)
            link.send("here", descriptor.fd)
            load(area.start)

        victim = Program(program)
        _, (fd,) = victim.link.receive()
        assert len(heard(Userfaultfd(fd))) == 1
        begin = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        _, status = os.waitpid(victim.pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        return time.monotonic() - begin

    assert run(work) < 1


# --- without privilege ----------------------------------------------------------------------


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def system_calls(flags: int) -> tuple[dict[str, int], int]:
    """The errno of system calls that touch missing pages, and how many messages came."""
    area = Area(ANON, 4)
    descriptor = Userfaultfd(uffd.open_userfaultfd(0, 0, flags=flags).fd)
    descriptor.register(area.start, area.length, MODE_MISSING)
    zeros = os.open("/dev/zero", os.O_RDONLY)
    _, writing = os.pipe()
    into = ctypes.create_string_buffer(8)
    local, remote = _Vector(ctypes.addressof(into), 8), _Vector(area.at(2), 8)

    def code(value: int) -> int:
        return ctypes.get_errno() if value < 0 else 0

    one = ctypes.c_ulong(1)
    said = {
        "read": code(libc.read(zeros, area.at(0), 8)),
        "write": code(libc.write(writing, area.at(1), 8)),
        "process_vm_writev": code(
            libc.process_vm_writev(
                os.getpid(), ctypes.byref(local), one, ctypes.byref(remote), one, ctypes.c_ulong(0)
            )
        ),
        "populate": code(libc.madvise(area.at(3), area.page, MADV_POPULATE_READ)),
    }
    return said, len(descriptor.read_messages(bytearray(64 * uffd.MESSAGE_SIZE)))


@pytest.mark.parametrize("user", [None, NOBODY], ids=["user-mode-only", "nobody"])
def test_a_system_call_without_privilege_gets_efault_and_sends_no_message(
    user: int | None,
) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    said, messages = run(
        lambda: system_calls(uffd.DEFAULT_FLAGS | uffd.UFFD_USER_MODE_ONLY), user=user
    )
    assert said == dict.fromkeys(said, errno.EFAULT)
    assert messages == 0


@pytest.mark.parametrize("private", [True, False], ids=["private", "shared"])
def test_a_private_futex_with_priority_inheritance_gets_efault(private: bool) -> None:
    """The kernel repairs that word in a way that allows no retry; through a shared one it waits."""

    def work() -> None:
        for_privileged_only()
        area = Area(ANON, 1)
        source = map_memory(area.page, 3, MAP_PRIVATE | MAP_ANONYMOUS)  # 0: unlocked
        descriptor = open_monitor(area, MODE_MISSING)

        def lock() -> int:
            operation = FUTEX_LOCK_PI | (FUTEX_PRIVATE if private else 0)
            said = libc.syscall(
                ctypes.c_long(SYS_FUTEX),
                ctypes.c_void_p(area.start),
                ctypes.c_long(operation),
                ctypes.c_long(0),
                None,
                None,
                ctypes.c_long(0),
            )
            return ctypes.get_errno() if said else 0

        touch = Touch(lock)
        if private:
            assert touch.result() == errno.EFAULT
            assert descriptor.read_messages(bytearray(64)) == []
            return
        assert len(heard(descriptor)) == 1
        assert touch.state() == "D"
        descriptor.copy(area.start, source, area.page)
        assert touch.result() == 0

    run(work)


# --- what asynchronous write protection does not see ------------------------------------------


CHANGES: dict[str, Callable[[Area], object]] = {
    "store": lambda area: store(area.at(1), 9),
    "punch-hole": lambda area: punch(area.fd, area.page, area.page),
    "madv-remove": lambda area: madvise(area.at(1), area.page, MADV_REMOVE),
    "pwrite": lambda area: os.pwrite(area.fd, b"\x09", area.page),
    "alias": lambda area: store(area.alias + area.page, 9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_shared_memory_that_no_scan_reports(change: str) -> None:
    """The page changes, for all to see, and PAGEMAP_SCAN says that nothing was written."""

    def work() -> list[int]:
        area = Area(SHMEM, 4)
        libc.memset(area.start, 7, area.length)
        descriptor = open_descriptor(uffd.FEATURE_WP_ASYNC)
        descriptor.register(area.start, area.length, MODE_WP)
        descriptor.write_protect(area.start, area.length)
        CHANGES[change](area)
        with Pagemap() as pages:
            found = pages.scan_all(area.start, area.end, require=PAGE_IS_WRITTEN)
            numbers = [area.number(at) for s, e, _ in found for at in range(s, e, area.page)]
        assert load(area.at(1)) == (0 if change in ("punch-hole", "madv-remove") else 9)
        return numbers

    assert run(work) == ([1] if change == "store" else [])

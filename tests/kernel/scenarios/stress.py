"""33 to 36: counters under a mutex inside the page, while the pages move from area to area.

Each bounce takes two areas.  The one with the counters is the source, the other is emptied and
registered.  Lockers (threads; the C functions they call run without the GIL) pick pages of the
empty one, lock the mutex that lies *in* the page, and count.  The first touch of a page faults,
and is answered from the source; meanwhile another thread copies all pages, and frees each page
of the source when it has been copied.  In the end every counter is what was counted, the range is
unregistered, and the areas change places.

The mutex is shared between processes, not robust and without priority inheritance: the kernel
cannot serve the lists of those in lazy memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable

from refault.machine import uffd
from refault.machine.uffd import MODE_MISSING, MODE_WP, Message, Userfaultfd

from .memory import ALL, ANON, Area, Kind, libc, load, read_bytes
from .registry import THIS_RUN, scenario
from .serving import PATIENCE, Monitor, open_descriptor, raw_ioctl

__all__: list[str] = []

SECONDS = float(os.environ.get("REFAULT_STRESS_SECONDS", "0.4"))
LIMIT = 2 * SECONDS + 15
LOCKERS = max(2, min(os.cpu_count() or 2, 8))
ENOUGH = 40
"""How many times each locker counts in a bounce, at least."""

MUTEX, COUNTER, TAG = 0, 64, 72
RANDOM, RACING, VERIFY, POLL = 1, 2, 4, 8
PROCESS_SHARED = 1

libc.pthread_mutex_lock.argtypes = libc.pthread_mutex_unlock.argtypes = (ctypes.c_void_p,)


class Stress:
    """The two areas, and what the counters should be."""

    def __init__(self, kind: Kind, protect: bool) -> None:
        self.protect = protect
        self.pages = 6 if kind.huge else 24
        self.source, self.target = Area(kind, self.pages), Area(kind, self.pages)
        self.expected = [1] * self.pages
        self.size = self.source.page
        self.sentinel = Area(ANON, 1)
        self.faults = self.counted = self.bounces = 0
        self.errors: list[BaseException] = []
        attributes = ctypes.create_string_buffer(64)
        libc.pthread_mutexattr_init(attributes)
        libc.pthread_mutexattr_setpshared(attributes, PROCESS_SHARED)
        for number in range(self.pages):
            at = self.source.at(number)
            libc.pthread_mutex_init(ctypes.c_void_p(at + MUTEX), attributes)
            libc.memcpy(at + COUNTER, struct.pack("=QQ", 1, number ^ 0x5A5A), 16)

    # -- answers ----------------------------------------------------------------------

    def answer(self, descriptor: Userfaultfd, message: Message) -> None:
        _, flags, address, _ = message
        self.faults += 1
        number = self.target.number(address)
        if flags & uffd.FAULT_WP:
            descriptor.write_protect(self.target.at(number), self.size, 0)
        else:
            self.copy(descriptor, number)

    def copy(self, descriptor: Userfaultfd, number: int) -> None:
        """Protected variant: the first half is protected after the copy, the second by it."""
        at, source = self.target.at(number), self.source.at(number)
        second = number >= self.pages // 2
        descriptor.copy(at, source, self.size, uffd.COPY_WP if self.protect and second else 0)
        if self.protect and not second:
            descriptor.write_protect(at, self.size)

    def read_blocking(self, descriptor: Userfaultfd) -> None:
        """A reader that sleeps in read(); a fault in the sentinel ends it."""
        buffer = bytearray(uffd.MESSAGE_SIZE)
        while True:
            (message,) = descriptor.read_messages(buffer)
            if self.sentinel.start <= message[2] < self.sentinel.end:
                descriptor.zeropage(self.sentinel.start, self.sentinel.length)
                return
            self.answer(descriptor, message)

    # -- threads ----------------------------------------------------------------------

    def background(self, descriptor: Userfaultfd, copied: threading.Event) -> None:
        for number in random.Random(self.bounces).sample(range(self.pages), self.pages):
            self.copy(descriptor, number)
            self.source.drop(number, 1)
            time.sleep(5e-5)  # the lockers shall come first, now and then
        copied.set()

    def lock_and_count(self, seed: int, bounce: int, copied: threading.Event) -> None:
        dice = random.Random(seed)
        number = 0 if bounce & RACING else seed % self.pages
        done = 0
        while done < ENOUGH or not copied.is_set():
            number = dice.randrange(self.pages) if bounce & RANDOM else (number + 1) % self.pages
            at = self.target.at(number)
            assert libc.pthread_mutex_lock(at + MUTEX) == 0
            count, tag = struct.unpack("=QQ", read_bytes(at + COUNTER, 16))
            if bounce & VERIFY:
                assert count == self.expected[number], f"page {number} holds {count}"
                assert tag == number ^ 0x5A5A, f"page {number} is tagged {tag:#x}"
            libc.memcpy(at + COUNTER, struct.pack("=Q", count + 1), 8)
            self.expected[number] += 1
            assert libc.pthread_mutex_unlock(at + MUTEX) == 0
            done += 1
        self.counted += done

    def guarded(self, work: Callable[..., None], *args: object) -> threading.Thread:
        def run() -> None:
            try:
                work(*args)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    # -- one bounce -------------------------------------------------------------------

    def bounce(self, descriptor: Userfaultfd) -> None:
        """Move everything from the source to the target."""
        mode = self.bounces
        self.target.drop()
        modes = MODE_MISSING | (MODE_WP if self.protect else 0)
        descriptor.register(self.target.start, self.target.length, modes)
        descriptor.register(self.sentinel.start, self.sentinel.length, MODE_MISSING)

        def ours() -> Userfaultfd:
            return Userfaultfd(descriptor.fd, page_size=self.size)

        polls = not os.get_blocking(descriptor.fd)
        monitors = [Monitor(ours(), self.answer) for _ in range(2)] if polls else []
        threads = [] if polls else [self.guarded(self.read_blocking, ours())]
        copied = threading.Event()
        threads.append(self.guarded(self.background, ours(), copied))
        lockers = [
            self.guarded(self.lock_and_count, mode * 64 + number, mode, copied)
            for number in range(LOCKERS)
        ]
        for thread in lockers:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"a locker hangs; {self.errors}"
        again = raw_ioctl(
            descriptor.fd,
            uffd.UFFDIO_COPY,
            self.target.at(mode % self.pages),
            self.source.at(mode % self.pages),
            self.size,
            0,
        )
        assert again == (errno.EEXIST, -errno.EEXIST), "a page was copied twice"
        if not polls:
            load(self.sentinel.start)
            self.sentinel.drop()
        for monitor in monitors:
            monitor.stop()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]
        if self.protect:
            descriptor.write_protect(self.target.start, self.target.length, 0)
        for number in range(self.pages):
            found = struct.unpack("=QQ", read_bytes(self.target.at(number) + COUNTER, 16))
            assert found == (self.expected[number], number ^ 0x5A5A)
        descriptor.unregister(self.target.start, self.target.length)
        descriptor.unregister(self.sentinel.start, self.sentinel.length)
        self.source, self.target = self.target, self.source
        self.bounces += 1


def run(kind: Kind, protect: bool) -> str:
    sys.setswitchinterval(1e-4)
    stress = Stress(kind, protect)
    polled = open_descriptor(page_size=stress.size)
    blocking = open_descriptor(page_size=stress.size, flags=os.O_CLOEXEC)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or stress.bounces < 2 * POLL:
        stress.bounce(polled if stress.bounces & POLL else blocking)
    return THIS_RUN + f"{stress.bounces} bounces, {stress.faults} faults, {stress.counted} counted"


@scenario(
    33,
    34,
    35,
    title="stress: lockers count under a mutex inside the page while all pages move; random,"
    " racing, verified, polled or blocking; a second COPY is EEXIST",
    kinds=ALL,
    limit=LIMIT,
)
def stress_missing(kind: Kind) -> str:
    return run(kind, protect=False)


@scenario(
    36,
    title="the same stress with write protection, half after the copy and half by it",
    kinds=ALL,
    limit=LIMIT,
)
def stress_protected(kind: Kind) -> str:
    return run(kind, protect=True)

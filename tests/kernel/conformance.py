"""One description of a small program, run on the simulated machine and on the kernel.

What corresponds to what:

=====================  ================================  ===================================
in a `Case`            simulated machine                 kernel
=====================  ================================  ===================================
who handles faults     refault's fault path              the kernel's
who is asked           the store, and the one who        a monitor with a userfaultfd:
                       copies before a write             MISSING, and write protection
a page is asked for    the fault waits (READ,            a message (MISSING, WP)
                       WRITE_PROTECT)
"fill"                 the read ends                     COPY; protected, if the case says so
"fail"                 the read fails for ever           POISON
"copy"                 the page is copied                WRITEPROTECT without WP
"wake"                 the queue is woken, bare          WAKE
"signal"               an interrupt is pending           pthread_kill
=====================  ================================  ===================================

Compared are, for each thread: what it asks for, in order, and how each fault ends: after how many
tries, and with what.  On the kernel a try cannot be seen; every message is one that did not
succeed, and the counters of perf say how many exceptions there were and in which of them more
than one retry was needed, so that nothing is left to be guessed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from helpers.perf import FaultCounters, Faults, own_all_pages, perf_problem
from refault.machine import uffd
from refault.machine.uffd import FAULT_WP, MODE_MISSING, MODE_WP
from refault.memory.wait import WaitReason
from refault.testing import Scenario, World
from refault.testing import load as load_page
from refault.testing import store as store_page

from .scenarios.memory import (
    ANON,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    SHMEM_PRIVATE,
    Area,
    catching,
    filled,
    libc,
    map_memory,
)
from .scenarios.serving import PATIENCE, Touch, open_descriptor, until

__all__ = ["CASES", "Ask", "Case", "End", "on_the_kernel", "simulated"]

Access: TypeAlias = Literal["load", "store"]
Verb: TypeAlias = Literal["touch", "fill", "fail", "copy", "wake", "signal"]
VERSION: Final = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


class Ask(NamedTuple):
    """A fault asks for the page: because it is missing, or because it is protected."""

    why: str


class End(NamedTuple):
    """A fault ends after so many tries: "done", "interrupted" or "SIGBUS"."""

    tries: int
    how: str


Record: TypeAlias = list[tuple[Ask | End, ...]]
"""What happened to each thread."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One page, and what is done with it.

    Parameters
    ----------
    start
        "missing"; "clean": present, and not written yet; "protected": present, and somebody wants
        to copy it first; "both": missing, and protected as well.
    threads
        What each thread does, once.
    script
        What happens: ``("touch", thread)``, ``("signal", thread)``, or a verb with 0.
    """

    name: str
    start: Literal["missing", "clean", "protected", "both"] = "missing"
    threads: tuple[Access, ...]
    script: tuple[tuple[Verb, int], ...]


CASES: Final = (
    Case(name="load-missing", threads=("load",), script=(("touch", 0), ("fill", 0))),
    Case(name="store-missing", threads=("store",), script=(("touch", 0), ("fill", 0))),
    Case(name="store-clean", start="clean", threads=("store",), script=(("touch", 0),)),
    Case(
        name="store-protected",
        start="protected",
        threads=("store",),
        script=(("touch", 0), ("copy", 0)),
    ),
    Case(name="load-protected", start="protected", threads=("load",), script=(("touch", 0),)),
    Case(
        name="third-retry",
        start="both",
        threads=("store",),
        script=(("touch", 0), ("fill", 0), ("copy", 0)),
    ),
    Case(
        name="read-while-another-thread-reads",
        threads=("load", "load"),
        script=(("touch", 0), ("touch", 1), ("fill", 0)),
    ),
    Case(
        name="two-writers-of-a-protected-page",
        start="protected",
        threads=("store", "store"),
        script=(("touch", 0), ("touch", 1), ("copy", 0)),
    ),
    Case(
        name="third-retry-of-two",
        start="both",
        threads=("store", "store"),
        script=(("touch", 0), ("touch", 1), ("fill", 0), ("copy", 0)),
    ),
    Case(
        name="signal-while-missing",
        threads=("load",),
        script=(("touch", 0), ("signal", 0), ("fill", 0)),
    ),
    Case(
        name="signal-before-the-third-try",
        start="both",
        threads=("store",),
        script=(("touch", 0), ("fill", 0), ("signal", 0), ("copy", 0)),
    ),
    Case(
        name="bare-wakes-while-protected",
        start="protected",
        threads=("store",),
        script=(("touch", 0), *(("wake", 0),) * 10, ("copy", 0)),
    ),
    Case(name="failure", threads=("load",), script=(("touch", 0), ("fail", 0))),
    Case(
        name="failure-of-two",
        threads=("load", "store"),
        script=(("touch", 0), ("touch", 1), ("fail", 0)),
    ),
    Case(
        name="bare-wakes-while-missing",
        threads=("load",),
        script=(("touch", 0), *(("wake", 0),) * 10, ("fill", 0)),
    ),
)


# --- simulated ------------------------------------------------------------------------------


MONITOR = "the monitor"


class _Simulation:
    def __init__(self, case: Case) -> None:
        ops = {"load": load_page(0), "store": store_page(0)}
        self.case = case
        # A page that is present is mapped, too: it has been read.
        mapped = case.start in ("clean", "protected")
        first = (load_page(0), *(ops[access] for access in case.threads[:1]))
        rest = tuple((ops[access],) for access in case.threads[1:])
        protected = case.start in ("protected", "both")
        fails = any(verb == "fail" for verb, _ in case.script)
        signals = [at for verb, at in case.script if verb == "signal"]
        self.world = World(
            Scenario(
                name=case.name,
                threads=(first if mapped else first[1:], *rest),
                pages=1,
                private=case.start == "both",
                swapped=frozenset({0} if case.start == "both" else ()),
                dirty=frozenset({0} if case.start == "protected" else ()),
                snapshots=int(protected),
                read_failures={0: ("permanent",)} if fails else {},
                signals=tuple((at, "interrupt") for at in signals),
                allowed=frozenset({"SIGBUS"}) if fails else None,
            )
        )
        self.records: list[list[Ask | End]] = [[] for _ in case.threads]
        self.waits: dict[int, object] = {}
        self.touched: set[int] = set()
        while mapped and not self.world.threads[0].pc:
            self._perform(self.world.steps()[0])
        if protected:
            self._perform(("snapshot", 0))
            while not self.world.snapshots:
                self._perform(("task", 0))
        self.records = [[] for _ in case.threads]

    def run(self) -> tuple[Record, list[int]]:
        """What happened, and how much of it after each line of the script."""
        sizes = []
        for verb, at in self.case.script:
            if verb == "touch":
                self.touched.add(at)
                self._perform(("op", at))
            elif verb in ("fill", "fail"):
                self._fill()
            elif verb == "copy":
                names = [task.name for task in self.world.ready]
                self._perform(("task", names.index(MONITOR)))
            elif verb == "signal":
                self._perform(("signal", 0))
            else:
                for thread in self.world.threads:
                    for task in thread.faults.values():
                        assert task.waiting is not None and task.waiting.queue is not None
                        task.waiting.queue.wake_all()
            self._settle()
            sizes.append(sum(map(len, self.records)))
        assert all(thread.end for thread in self.world.threads)
        return [tuple(record) for record in self.records], sizes

    def _fill(self) -> None:
        while self.world.machine.io:
            self._perform(("io", 0))
        self._settle()

    def _settle(self) -> None:
        while True:
            steps = [
                step
                for step in self.world.steps()
                if (step[0] == "task" and self.world.ready[step[1]].name != MONITOR)
                or (step[0] == "op" and step[1] in self.touched)
            ]
            if not steps:
                return
            self._perform(steps[-1])

    def _perform(self, step: tuple[str, int]) -> None:
        """One step, and what it did to the fault of each thread."""
        world = self.world
        before = [dict(thread.faults) for thread in world.threads]
        attempts = len(world.attempts)
        world.perform(step)
        for number, thread in enumerate(world.threads):
            record = self.records[number]
            if 0 in before[number] and 0 not in thread.faults:
                record.append(self._end(number, world.attempts[attempts]))
                attempts += 1
            elif 0 in thread.faults:
                task = thread.faults[0]
                wait = task.waiting
                if wait is not None and self.waits.get(number) is not wait:
                    self.waits[number] = wait
                    protected = wait.reason is WaitReason.WRITE_PROTECT
                    assert protected or wait.reason is WaitReason.READ
                    record.append(Ask("protected" if protected else "missing"))
        # A fault that began and ended in this very step.
        for tries in world.attempts[attempts:]:
            assert step[0] == "op"
            self.records[step[1]].append(self._end(step[1], tries))

    def _end(self, number: int, tries: int) -> End:
        thread = self.world.threads[number]
        if thread.end and thread.end != "done":
            return End(tries, thread.end)
        entry = self.world.machine.tables[thread.vma].get(0)
        store = self.case.threads[number] == "store"
        fine = entry is not None and (entry or not store)
        return End(tries, "done" if fine or thread.end else "interrupted")


def simulated(case: Case) -> tuple[Record, list[int]]:
    """Run a case on the simulated machine.

    Returns
    -------
    record, sizes
        What happened, and how many entries it had after each line of the script.
    """
    return _Simulation(case).run()


# --- the kernel -----------------------------------------------------------------------------


class _Kernel:
    def __init__(self, case: Case) -> None:
        self.case = case
        # Clean: in the file, mapped for reading; the first write copies it, and asks nobody.
        self.area = Area(SHMEM_PRIVATE if case.start == "clean" else ANON, 1)
        self.source = filled(1, self.area.page)
        self.uffd = open_descriptor()
        self.uffd.register(self.area.start, self.area.length, MODE_MISSING | MODE_WP)
        self.buffer = bytearray(64 * uffd.MESSAGE_SIZE)
        self.records: list[list[Ask | End]] = [[] for _ in case.threads]
        self.tids: dict[int, int] = {}
        self.idents: dict[int, int] = {}
        self.touches: dict[int, Touch] = {}
        self.asks = [0] * len(case.threads)
        self.ended: set[int] = set()
        self.broken: set[int] = set()
        if case.start == "clean":
            os.pwrite(self.area.fd, b"\1", 0)
            into = ctypes.create_string_buffer(1)
            libc.memcpy(into, self.area.start, 1)
        elif case.start == "protected":
            self.uffd.copy(self.area.start, self.source, self.area.page)
            self.uffd.write_protect(self.area.start, self.area.page)

    def run(self, sizes: list[int]) -> tuple[Record, list[Faults]]:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        with catching(signal.SIGBUS, self._broken):
            for (verb, at), size in zip(self.case.script, sizes, strict=True):
                self._do(verb, at)
                self._settle(size)
        counts = [touch.result() for _, touch in sorted(self.touches.items())]
        return [tuple(record) for record in self.records], counts

    def _do(self, verb: Verb, at: int) -> None:
        page = self.area.page
        if verb == "touch":
            self.touches[at] = Touch(functools.partial(self._touch, at))
        elif verb == "fill":
            mode = uffd.COPY_WP if self.case.start == "both" else 0
            self.uffd.copy(self.area.start, self.source, page, mode)
        elif verb == "fail":
            self.uffd.poison(self.area.start, page)
        elif verb == "copy":
            self.uffd.write_protect(self.area.start, page, 0)
        elif verb == "wake":
            self.uffd.wake(self.area.start, page)
        else:
            # It comes back to user mode for it; what it asked for until then is over.
            libc.pthread_kill(ctypes.c_ulong(self.idents[at]), signal.SIGUSR1)
            self._end(at, "interrupted")

    def _touch(self, at: int) -> Faults:
        self.tids[threading.get_native_id()] = at
        self.idents[at] = threading.get_ident()
        counters = FaultCounters() if perf_problem() is None else None
        into = ctypes.create_string_buffer(1)
        libc.memset(into, 1, 1)
        # What the handler of the signal needs is to be there before.
        libc.pthread_kill(ctypes.c_ulong(self.idents[at]), signal.SIGUSR1)
        work: Callable[[], object] = (
            functools.partial(libc.memcpy, into, self.area.start, 1)
            if self.case.threads[at] == "load"
            else functools.partial(libc.memset, self.area.start, 9, 1)
        )
        if counters is None:
            work()
            return Faults(-1, -1, -1)
        counters.read()
        before = counters.read()
        work()
        after = counters.read()
        return Faults(*(now - then for now, then in zip(after, before, strict=True)))

    def _broken(self, _: int) -> None:
        """In the handler of SIGBUS: when all have got theirs, put other memory there."""
        self.broken.add(self.tids[threading.get_native_id()])
        until(lambda: len(self.broken) == len(self.case.threads), "everyone gets a SIGBUS")
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        map_memory(self.area.page, 3, flags, at=self.area.start)

    def _settle(self, size: int) -> None:
        """Take in what happens, until there is as much as on the simulated machine, and no more."""
        end = time.monotonic() + PATIENCE
        while True:
            ready = select.select([self.uffd], [], [], 0.01)[0]
            for event, flags, _, tid in self.uffd.read_messages(self.buffer) if ready else ():
                assert event == uffd.EVENT_PAGEFAULT
                at = self.tids[tid]
                self.asks[at] += 1
                self.records[at].append(Ask("protected" if flags & FAULT_WP else "missing"))
            for at, touch in self.touches.items():
                if touch.done.is_set() and at not in self.ended:
                    self.ended.add(at)
                    self._end(at, "SIGBUS" if at in self.broken else "done")
            if not ready and sum(map(len, self.records)) >= size:
                return
            if time.monotonic() > end:
                return  # the comparison will say what is not there

    def _end(self, at: int, how: str) -> None:
        """Each message is a try that did not succeed; the one that ends it is one more."""
        if self.asks[at] or how != "done" or self.case.start == "clean":
            tries = self.asks[at] + (how != "interrupted")
            self.records[at].append(End(tries, how))
        self.asks[at] = 0


def on_the_kernel(case: Case, sizes: list[int]) -> tuple[Record, list[Faults]]:
    """Run a case on the kernel.

    Parameters
    ----------
    sizes
        How much to wait for after each line of the script; see `simulated`.

    Returns
    -------
    record, faults
        What happened, and what the kernel counted for each thread; -1 if it may not be asked.
    """
    own_all_pages()
    return _Kernel(case).run(sizes)

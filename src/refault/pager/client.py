"""One client: its userfaultfd, its requests, its signals, its end."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any

import msgspec

from refault.errors import Error
from refault.fault.callers import FaultOutcome, user_fault
from refault.fault.gup import readahead
from refault.fault.reclaim import make_room
from refault.fault.results import VM_FAULT_ERROR
from refault.machine.linux import LinuxAddressSpace, LinuxMapping, say
from refault.machine.server import ServedClient
from refault.machine.uffd import (
    EVENT_PAGEFAULT,
    EVENT_REMAP,
    FAULT_WP,
    FAULT_WRITE,
    MESSAGE_SIZE,
    Again,
    RangeGone,
    Userfaultfd,
)
from refault.memory.mapping import Mapping
from refault.memory.page import PG_READING, PG_UPTODATE
from refault.memory.readahead import MAX_BYTES, Window
from refault.memory.vma import Vma
from refault.memory.wait import RESCHEDULE, Signal, Waits
from refault.stores.file import FileStore
from refault.wire import messages as wire

from .interrupts import Interrupts
from .requests import Request, handle
from .service import Pager, Region
from .tasks import PagerTask
from .windows import AgentSocket, Windows

__all__ = ["Client"]

MESSAGES_AT_ONCE = 16
AGAIN_SECONDS = 20e-6
"""For whoever changes the address space to run: it must, before the kernel takes orders again."""
AGAIN_LATER = 0.001
"""What cannot be given up is tried again after that long."""


class FaultTask(PagerTask):
    """A thread's fault that is being handled."""

    __slots__ = ("address", "client", "duplicates", "flags", "key", "timer")

    def __init__(self, client: Client, key: tuple[int, int], address: int, flags: int) -> None:
        super().__init__(client.pager.loop.scheduler, f"thread {key[0]}", client.fault_waits)
        self.client = client
        self.key = key
        self.address = address
        self.flags = flags
        self.duplicates = 0
        self.timer: Any = None

    def finished(self, outcome: Any) -> None:
        """The fault path is done with it."""
        if self.timer is not None:
            self.timer.cancel()
        self.client.fault_done(self, outcome)


class Client:
    """A process whose faults we serve.

    Parameters
    ----------
    pager
        Where it belongs.
    control
        Its control socket.

    Attributes
    ----------
    regions
        By number.
    inherited
        Those of a forked child that it has not asked for yet, by their number in its parent.
    """

    def __init__(self, pager: Pager, control: socket.socket) -> None:
        self.pager = pager
        self.control = control
        control.setblocking(False)
        self.decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(wire.Request)
        self.pid = 0
        self.pidfd = -1
        self.wakeup = -1
        self.lifeline = -1
        self.uffd: Userfaultfd | None = None
        self.agent: AgentSocket | None = None
        self.windows: dict[Vma, Windows] = {}
        self.early: list[tuple[int, int, int, int]] = []
        self.mm: LinuxAddressSpace | None = None
        self.sys_path: list[str] = []
        self.interrupts: Interrupts | None = None
        self.regions: dict[int, Region] = {}
        self.inherited: dict[int, Region] = {}
        self.by_vma: dict[Vma, Region] = {}
        self.faults: dict[tuple[int, int], FaultTask] = {}
        self.requests: set[Request] = set()
        self.messages = bytearray(MESSAGE_SIZE * MESSAGES_AT_ONCE)
        self.duplicates = 0
        self.gone = False
        pager.clients.append(self)
        pager.loop.add(control.fileno(), self.on_control)

    # -- control --------------------------------------------------------------

    def on_control(self, events: int) -> None:
        """A request, or the end of the connection."""
        while not self.gone:
            try:
                received = wire.receive(self.control, self.decoder, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                say(f"pager: a message of process {self.pid} is not understood: {error}")
                return
            except OSError:
                received = None
            if received is None:
                self.end()
                return
            message, fds = received
            if not fds:
                say(f"pager: a message of process {self.pid} came without a reply socket")
                continue
            handle(self, message, fds)

    def hello(self, message: wire.Hello, uffd: int, wakeup: int, lifeline: int) -> None:
        """The client has introduced itself."""
        self.pid = message.pid
        self.pidfd = os.pidfd_open(message.pid)
        self.lifeline = lifeline
        self.pager.guardian.guard(message.pid, self.pidfd, uffd, lifeline)
        self.uffd = Userfaultfd(uffd)
        self.uffd.on_again = self.read_early
        self.mm = LinuxAddressSpace(self.pager.budget, self.uffd)
        self.sys_path = message.sys_path
        self.wakeup = wakeup
        self.interrupts = Interrupts(message.pid, message.interrupt_slot, message.interrupt_handler)
        os.set_blocking(uffd, False)
        os.set_blocking(wakeup, False)
        loop = self.pager.loop
        loop.add(self.pidfd, lambda _: self.end())
        loop.add(uffd, self.on_faults)
        if loop.server is not None:
            self.mm.served = ServedClient(
                loop.server,
                uffd,
                lambda fault: self.on_message(*fault),
                self.on_served,
            )
        loop.add(wakeup, self.on_wakeup)
        if message.user_mode_only:
            say(
                "only faults of user code can be served here: a system call that is handed a page "
                "which is not there (file.write(array), socket.send(array)) fails with EFAULT; "
                "populate or pin first; refault doctor says how to allow more"
            )
        if message.resident is not None:
            self.pager.budget.set_limit(message.resident)
            self.pager.trim(self.pager.budget)

    # -- faults ---------------------------------------------------------------

    def on_faults(self, events: int) -> None:
        """Messages of the userfaultfd."""
        uffd = self.uffd
        assert uffd is not None
        if events & (select.EPOLLHUP | select.EPOLLERR) and not events & select.EPOLLIN:
            self.end()
            return
        for message in uffd.read_messages(self.messages):
            self.on_message(*message)

    def read_early(self) -> None:
        """Somebody waits for messages to be read, and we for him: read now, serve later."""
        assert self.uffd is not None
        messages = self.uffd.read_messages(self.messages)
        if messages and not self.early:
            task = PagerTask(self.pager.loop.scheduler, "early messages")

            def work() -> Waits[None]:
                yield RESCHEDULE
                early, self.early = self.early, []
                for message in early:
                    self.on_message(*message)

            task.scheduler.spawn(task, work())
        self.early += messages
        time.sleep(AGAIN_SECONDS)

    def on_message(self, event: int, flags: int, address: int, tid: int) -> None:
        """One message of the userfaultfd."""
        if event == EVENT_REMAP:
            return  # an agent's, see `windows`; to have read it is all
        if event != EVENT_PAGEFAULT:
            say(f"pager: unexpected userfaultfd event {event:#x} of process {self.pid}")
            return
        key = (tid, address >> 12)
        if key in self.faults:
            # A signal interrupted the thread, or somebody woke it: the fault is the same one.
            self.duplicates += 1
            self.faults[key].duplicates += 1
            return
        self.pager.placement.follow(tid)
        task = FaultTask(self, key, address, flags)
        if self.interrupts is not None and tid == self.pid and self.interrupts.is_pending():
            task.signal = Signal.INTERRUPT
        self.handle_fault(task)

    def handle_fault(self, task: FaultTask) -> None:
        """Begin to handle a fault."""
        assert self.mm is not None
        self.faults[task.key] = task
        task.scheduler.spawn(
            task,
            user_fault(
                self.pager.machine,
                self.mm,
                task,
                task.address,
                write=bool(task.flags & (FAULT_WRITE | FAULT_WP)),
                protected=bool(task.flags & FAULT_WP),
            ),
            task.finished,
        )

    def fault_waits(self, task: PagerTask) -> None:
        """A fault has to wait: from now on its deadline counts."""
        assert isinstance(task, FaultTask) and self.mm is not None
        if task.timer is None:
            vma = self.mm.find(task.address)
            region = self.region_of(vma) if vma is not None else None
            if region is not None and region.deadline is not None:
                task.timer = self.pager.loop.call_later(
                    region.deadline, lambda: task.send_signal(Signal.DEADLINE)
                )

    def fault_done(self, task: FaultTask, outcome: FaultOutcome | BaseException) -> None:
        """A fault has ended: deliver what has not been delivered yet."""
        del self.faults[task.key]
        if self.gone:
            return
        if isinstance(outcome, BaseException):
            found = self.mm.find(task.address) if self.mm is not None else None
            if found is not None:
                self.deliver_error(task, found, f": a defect of refault: {outcome!r}")
            return
        vma = outcome.vma
        if vma is None:
            self.wake(task.address)
        elif outcome.result & VM_FAULT_ERROR:
            self.deliver_error(task, vma, "")
        elif outcome.interrupted:
            if task.signal is Signal.INTERRUPT:
                self.give_up(task, vma)
            elif task.signal is Signal.DEADLINE:
                self.deliver_error(task, vma, "; the time limit of the region is over")
            else:
                self.wake(task.address)
        elif not vma.detached and not task.flags & FAULT_WP:
            self.follow_stream(vma, task.address)

    def on_served(self, address: int) -> None:
        """Native code has served a fault that belongs to a stream of readahead."""
        vma = self.mm.find(address) if self.mm is not None else None
        if vma is not None:
            self.follow_stream(vma, address)

    def follow_stream(self, vma: Vma, address: int) -> None:
        """A fault was served: read ahead, if it belongs to a stream."""
        ahead = vma.mapping.readahead
        for window in ahead.windows(vma.index_of(address)) if ahead is not None else ():
            self.read_ahead(vma, window)

    def read_ahead(self, vma: Vma, window: Window) -> None:
        """Begin to read a window, behind everything that is waiting now.

        Where the file itself can be mapped, nothing is.  The marker, the first unit, stays
        absent: when the reader comes there, the kernel has read it, as the next one in order.  To
        read it now would end the kernel's own readahead there, and begin it anew with small pages.
        """
        first, last, way = window
        mapping = vma.mapping
        ahead = mapping.readahead
        windows = self.windows.get(vma) if mapping.file_windows and way > 0 else None
        task = PagerTask(self.pager.loop.scheduler, "readahead")
        page_size = mapping.page_size

        def read(first: int, last: int, mark: int) -> Waits[None]:
            if vma.detached or not vma.lock.down_read_trylock():
                return
            if mapping.page_size == page_size:
                make_room(self.pager.machine, mapping, first, last)
                yield from readahead(self.pager.machine, vma, task, first, last, mark=mark)
            vma.lock.up_read()

        def work() -> Waits[None]:
            if windows is None:
                yield from read(first, last, way)
                return
            if (yield from windows.open(first + 1, last)) or mapping.page_size != page_size:
                return
            most = min(last, first + max(1, MAX_BYTES // page_size))
            if most < last and ahead is not None:
                ahead.shorten(window, most)
            yield from read(first, windows.uncovered(first, most), way)

        task.generator = work()
        task.scheduler.alive.add(task)
        task.scheduler.ready.append(task)

    def wake(self, address: int) -> None:
        """Let a thread look again."""
        assert self.uffd is not None
        try:
            self.uffd.wake(address & ~4095, 4096)
        except RangeGone:
            pass

    def deliver_error(self, task: FaultTask, vma: Vma, why: str) -> None:
        """The page cannot be had: say why, then let the access die with SIGBUS."""
        assert self.uffd is not None
        mapping = vma.mapping
        index = vma.index_of(task.address)
        if mapping.flags[index] & PG_UPTODATE:
            self.wake(task.address)  # it has come after all
            return
        error = mapping.errors.get(index)
        cause = f": {error.cause}" if error is not None else ""
        start, end = mapping.index_bytes(index)
        mapping.counters.given_up += 1
        say(
            f"{mapping.name}: thread {task.key[0]} of process {self.pid} touches bytes {start} to "
            f"{end}, which cannot be had{cause}{why}; it gets SIGBUS. To get an exception "
            f"instead, call populate or pin first"
        )
        self.poison(mapping, task.address & ~4095)

    def poison(self, mapping: Mapping, page: int) -> None:
        """Make a page one that nobody can touch without SIGBUS."""
        if self.gone:
            return
        assert self.uffd is not None
        try:
            self.uffd.poison_absent(page, 4096)
        except RangeGone:
            pass  # the file itself is there now, or the region is gone
        except Again:
            self.pager.loop.call_later(AGAIN_LATER, lambda: self.poison(mapping, page))
            return
        except Error as problem:
            say(f"{mapping.name}: SIGBUS cannot be delivered ({problem}): the thread stays")
            return
        self.wake(page)

    # -- Ctrl-C ---------------------------------------------------------------

    def on_wakeup(self, events: int) -> None:
        """The client's C-level handler wrote the numbers of signals."""
        try:
            numbers = os.read(self.wakeup, 256)
        except (BlockingIOError, ConnectionResetError):
            return
        if not numbers:
            self.pager.loop.remove(self.wakeup)
            return
        if self.interrupts is not None and self.interrupts.arrived(numbers):
            for task in list(self.faults.values()):
                if task.key[0] == self.pid:
                    task.send_signal(Signal.INTERRUPT)

    def give_up(self, task: FaultTask, vma: Vma) -> None:
        """Ctrl-C: let the access end with 0xFF; KeyboardInterrupt comes before anyone uses it."""
        assert self.uffd is not None and self.interrupts is not None
        mapping = vma.mapping
        assert isinstance(mapping, LinuxMapping)
        index = vma.index_of(task.address)
        page = task.address & ~4095
        if vma.detached or mapping.flags[index] & PG_UPTODATE:
            self.wake(page)
            return
        if any(other.address & ~4095 == page for other in self.faults.values()):
            # Another thread would go on with 0xFF, and no exception stops it: wait on.
            self.handle_fault(FaultTask(self, task.key, task.address, task.flags))
            return
        mapping.counters.given_up += 1
        mapping.give_up(index)
        os.pwrite(mapping.memfd, b"\xff" * 4096, page - vma.start + vma.offset)
        self.interrupts.given_up.append((mapping, index))
        try:
            self.uffd.continue_(page, 4096)
        except (Again, RangeGone):
            self.wake(page)  # it looks again, and finds the page there, or the file
        except Error as problem:
            say(f"{mapping.name}: cannot interrupt thread {task.key[0]}: {problem}")

    def handled(self) -> None:
        """The client's own handler runs: forget the interrupt and what was given up for it."""
        assert self.interrupts is not None
        for mapping, index in self.interrupts.handled():
            if index in mapping.given_up and not mapping.closed:
                if not mapping.flags[index] & PG_READING:
                    mapping.take_back(index)
                # Else a thread may have filled it already: its end has it read again.
                self.pager.machine.punch(mapping, [index])

    # -- regions ----------------------------------------------------------------

    def attached(self, vma: Vma, region: Region) -> None:
        """A region is mapped."""
        self.by_vma[vma] = region
        mapping = region.mapping
        if (
            self.agent is not None
            and self.agent.alive
            and self.uffd is not None
            and isinstance(mapping.store, FileStore)
            and not mapping.private
            and not mapping.writable
        ):
            self.windows[vma] = Windows(self.pager.machine, vma, mapping, self.uffd, self.agent)
            mapping.use_file_windows(True)

    def unmapped(self, vma: Vma) -> Waits[None]:
        """The client has put something else in the place of a region."""
        self.by_vma.pop(vma, None)
        windows = self.windows.pop(vma, None)
        if windows is not None:
            yield from windows.settled()
            windows.close()

    def region_of(self, vma: Vma) -> Region | None:
        """The region that a vma belongs to."""
        return self.by_vma.get(vma)

    def stop_waiting(self, region: Region, signal: Signal) -> None:
        """Send a signal to everybody who waits in a region."""
        vma = region.vma
        if vma is None:
            return
        for task in list(self.faults.values()):
            if vma.start <= task.address < vma.end:
                task.send_signal(signal)
        for request in list(self.requests):
            if request.region is region and request.task is not None:
                request.task.send_signal(signal)

    # -- the end ----------------------------------------------------------------

    def end(self) -> None:
        """The client is gone: write its changes back, give everything up."""
        if self.gone:
            return
        self.gone = True
        loop = self.pager.loop
        for fd in (self.control.fileno(), self.pidfd, self.wakeup):
            if fd >= 0:
                loop.remove(fd)
        if self.agent is not None:
            self.agent.close()
        for windows in self.windows.values():
            windows.close()
        self.windows.clear()
        if self.mm is not None:
            self.mm.dead = True
            if self.mm.served is not None:
                self.mm.served.close()
        for task in list(self.faults.values()):
            task.send_signal(Signal.KILL)
        for request in list(self.requests):
            if request.task is not None:
                request.task.send_signal(Signal.KILL)
            if request.answered:
                request.close()
        last = PagerTask(loop.scheduler, f"end of {self.pid}")
        loop.scheduler.spawn(last, self._write_back(last), lambda _: self._ended())

    def _write_back(self, task: PagerTask) -> Waits[None]:
        for region in list(self.regions.values()):
            try:
                yield from self.pager.drop_region(region, task)
            except Error:
                pass

    def _ended(self) -> None:
        pager = self.pager
        self.regions.clear()
        pager.clients.remove(self)
        if self.pid:
            pager.guardian.forget(self.pid)
        self.control.close()
        if self.uffd is not None:
            pager.loop.remove(self.uffd.fd)
            self.uffd.close()
        for fd in (self.pidfd, self.wakeup, self.lifeline):
            if fd >= 0:
                os.close(fd)
        pager.stop_if_idle()

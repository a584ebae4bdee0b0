"""Who watches the pager: after ``kill -9`` of it nobody may wait for ever, or read zeros."""

# Why a process of its own
# ------------------------
#
# The clients hold their userfaultfds themselves, so when the pager dies the kernel hands out no
# pages of zeros.  It does nothing at all: whoever touches a missing page, or writes to a
# protected one, sleeps until somebody answers.  In Python that is mostly a thread with the GIL,
# and with it the whole program, deaf to Ctrl-C.
#
# The program cannot help itself.  None of its Python code runs.  The kernel could signal it: a
# socket whose other end the pager holds, with O_ASYNC and F_SETSIG, has SIGBUS sent on
# hang-up.  But that also ends a program that would never have touched a page again, it says
# nothing on stderr, and a thread that faults *inside a system call* does not get out: the kernel
# tries such a fault again and again until the signal is SIGKILL.  So that is the last resort.
#
# So the pager forks before it has done anything.  The child holds a copy of every client's
# userfaultfd, sleeps, and ends with the pager.  If the pager ends without saying so, the
# child answers the faults:
#
# * a missing page: UFFDIO_POISON.  The thread that touches it gets SIGBUS (a system call: EFAULT),
#   at exactly that instruction, like anybody whose mapped file has become too short.  An idle
#   program lives on.
# * a write to a protected page: it cannot be poisoned, since it is there, and it must not be let
#   through, since nobody would ever store it.  The process gets SIGBUS, and after
#   `GRACE_SECONDS` SIGKILL: it may handle SIGBUS in Python, or sit in a system call.
#
# Messages that the pager had read from the userfaultfd do not come a second time by themselves.
# UFFDIO_WAKE makes every sleeping thread fault again.  All of the address space is woken: a thread
# may sleep where the client's agent has put something else meanwhile (`refault.pager.windows`), and
# nothing there tells of us.  Likewise a message about such an address, or one that cannot be
# answered while the address space is being changed: who sleeps there looks again.
#
# What is in memory stays readable, and pages that were dirty stay writable: no fault happens
# there, so nothing can be noticed.  `flush`, `close` and the end of the program say that it is
# lost.
#
# Against a death of both there is the client's lifeline (`refault.client.lifeline`).

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from refault.errors import KernelError
from refault.machine.uffd import (
    EVENT_PAGEFAULT,
    FAULT_WP,
    MESSAGE_SIZE,
    Again,
    RangeGone,
    Userfaultfd,
)

__all__ = ["Guardian"]

GRACE_SECONDS = 2.0
DISMISSED = b"dismissed"


class Guardian:
    """The pager's side: a process that answers faults when the pager cannot any more.

    It is forked here, so this comes first in the pager's life: before any thread, and before
    anything is open that the child must not keep open.

    Parameters
    ----------
    control
        Descriptor of the first client's control socket; the child closes it.
    """

    def __init__(self, control: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pager = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            os.close(control)
            self._socket.close()
            _run(theirs, pager)
        theirs.close()

    def fileno(self) -> int:
        """Readable when the guardian has ended; then call `ended`."""
        return self._socket.fileno()

    def guard(self, pid: int, pidfd: int, userfaultfd: int, lifeline: int) -> None:
        """A client has come."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [b"%d" % pid], [pidfd, userfaultfd, lifeline])

    def forget(self, pid: int) -> None:
        """A client is served no more."""
        with contextlib.suppress(OSError):
            self._socket.send(b"%d" % pid)

    def dismiss(self) -> None:
        """The pager ends as it should."""
        with contextlib.suppress(OSError):
            self._socket.send(DISMISSED)
        self.ended()

    def ended(self) -> None:
        """Take the exit status; a second call does nothing."""
        self._socket.close()
        if self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0


class Ward:
    """A client, seen from the guardian."""

    def __init__(self, pid: int, pidfd: int, userfaultfd: int, lifeline: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.lifeline = lifeline
        self.userfaultfd = Userfaultfd(userfaultfd)
        self.doomed: float | None = None
        self._buffer = bytearray(16 * MESSAGE_SIZE)

    def wake_all(self) -> None:
        """Have everybody who sleeps in a fault ask again."""
        try:
            with open(f"/proc/{self.pid}/maps") as maps:
                ranges = [line.split()[0].split("-") for line in maps if "[vsyscall]" not in line]
        except OSError as error:
            self._doom(f"cannot be looked at ({error.strerror})")
            return
        if ranges:
            start, end = int(ranges[0][0], 16), int(ranges[-1][1], 16)
            self.userfaultfd.wake(start, end - start)

    def answer(self) -> None:
        """Faults have come: nobody will ever have those pages."""
        for event, flags, address, tid in self.userfaultfd.read_messages(self._buffer):
            if event != EVENT_PAGEFAULT:
                continue
            if flags & FAULT_WP:
                self._doom(f"writes to address {address:#x} in thread {tid}")
                continue
            page = address & ~4095
            try:
                self.userfaultfd.poison_absent(page, 4096)
                self.userfaultfd.wake(page, 4096)
            except (RangeGone, Again):
                self.userfaultfd.wake(page, 4096)
                continue
            except KernelError:  # a kernel before 6.6
                self._doom(f"touches address {address:#x} in thread {tid}")
                continue
            _say(
                f"thread {tid} of process {self.pid} touches a page that nobody brings; it gets"
                " SIGBUS"
            )

    def remind(self, now: float) -> None:
        """End a process that does not end by SIGBUS."""
        if self.doomed is not None and now >= self.doomed:
            _say(f"process {self.pid} is still there after SIGBUS; it gets SIGKILL")
            self.doomed = now + GRACE_SECONDS
            self._signal(signal.SIGKILL)

    def close(self) -> None:
        os.close(self.pidfd)
        self.userfaultfd.close()
        os.close(self.lifeline)

    def _doom(self, why: str) -> None:
        if self.doomed is None:
            _say(f"process {self.pid} {why}, which nobody will store or serve; it gets SIGBUS")
            self.doomed = time.monotonic() + GRACE_SECONDS
            self._signal(signal.SIGBUS)

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except OSError as error:
            _say(f"process {self.pid} cannot be ended ({error.strerror}); kill it")


class Watch:
    """The guardian's side."""

    def __init__(self, pager: socket.socket) -> None:
        self._pager = pager
        self._wards: dict[int, Ward] = {}

    def until_pager_ends(self) -> bool:
        """Keep the list of wards; returns whether the pager said that it would end."""
        while True:
            for fd, _ in self._poll(self._pager.fileno()).poll():
                if fd == self._pager.fileno():
                    packet, fds, _, _ = socket.recv_fds(self._pager, 64, 3)
                    if not packet or packet == DISMISSED:
                        return bool(packet)
                    self._drop(int(packet))
                    if fds:
                        self._wards[int(packet)] = Ward(int(packet), *fds)
                else:
                    self._drop_ended(fd)

    def take_over(self) -> None:
        """Answer faults until the last ward has ended."""
        for ward in self._wards.values():
            ward.wake_all()
        while self._wards:
            faulting = {ward.userfaultfd.fd: ward for ward in self._wards.values()}
            doomed = [ward for ward in self._wards.values() if ward.doomed is not None]
            poll = self._poll(*faulting)
            for fd, _ in poll.poll(100 if doomed else None):
                if fd in faulting:
                    faulting[fd].answer()
                else:
                    self._drop_ended(fd)
            for ward in self._wards.values():
                ward.remind(time.monotonic())

    def _poll(self, *fds: int) -> select.poll:
        poll = select.poll()
        for fd in (*fds, *(ward.pidfd for ward in self._wards.values())):
            poll.register(fd, select.POLLIN)
        return poll

    def _drop_ended(self, pidfd: int) -> None:
        for ward in list(self._wards.values()):
            if ward.pidfd == pidfd:
                self._drop(ward.pid)

    def _drop(self, pid: int) -> None:
        ward = self._wards.pop(pid, None)
        if ward is not None:
            ward.close()


def _run(pager: socket.socket, pid: int) -> NoReturn:
    try:
        watch = Watch(pager)
        if not watch.until_pager_ends():
            _say(
                f"the pager process {pid} has been killed (by hand, or for lack of memory: see the"
                " kernel's log). Changes that it had not written are lost. Whoever touches a page"
                " that is not in memory gets SIGBUS, calls raise KernelError: restart the program"
            )
            watch.take_over()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"refault: {text}", file=sys.stderr, flush=True)

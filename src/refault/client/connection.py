"""The connection of this process to its pager."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from refault import errors, native
from refault.client import libc, lifeline, registry
from refault.client.agent import Agent
from refault.client.interrupts import Interrupts
from refault.client.settings import read_settings
from refault.client.spawn import spawn_pager
from refault.errors import Error, KernelError, StoreError
from refault.machine import uffd
from refault.stores.objects import import_path
from refault.wire import messages

__all__ = ["Connection", "adopt", "connect", "current", "pager_ahead", "set_budget"]

REQUIRED = (
    uffd.FEATURE_PAGEFAULT_FLAG_WP
    | uffd.FEATURE_MISSING_SHMEM
    | uffd.FEATURE_MINOR_SHMEM
    | uffd.FEATURE_WP_HUGETLBFS_SHMEM
    | uffd.FEATURE_THREAD_ID
    | uffd.FEATURE_EXACT_ADDRESS
)
WANTED = REQUIRED | uffd.FEATURE_POISON | uffd.FEATURE_EVENT_REMAP
"""Features that change nothing unless they are used: we move ranges only by the agent."""

MODES = uffd.MODE_MISSING | uffd.MODE_MINOR | uffd.MODE_WP
REAP_SECONDS = 5.0
EXIT_SECONDS = 1.0
"""How long our exit waits for that of a pager; one that serves children of ours stays."""

_decoder: msgspec.msgpack.Decoder[messages.Reply] = msgspec.msgpack.Decoder(messages.Reply)


class Connection:
    """A control socket, and the userfaultfd whose other copy the pager has.

    The userfaultfd stays open as long as anything mapped through it is: with the
    last copy the kernel would forget the registration, and a missing page would
    read as zeros.

    Parameters
    ----------
    control
        Our end of the control socket.
    pager
        Process id of the pager.
    process
        The pager, if it is our child.
    opened
        The userfaultfd of this process.
    """

    def __init__(
        self,
        control: socket.socket,
        pager: int,
        process: subprocess.Popen[bytes] | None,
        opened: uffd.Opened,
    ) -> None:
        self.owner = os.getpid()
        self.pager = pager
        self._control = control
        self._process = process
        self._opened = opened
        self._userfaultfd = opened.fd
        self._lifeline: socket.socket | None = None
        self._agent: Agent | None = None
        self._agent_tried = False
        self._waiting: set[socket.socket] = set()
        self._ended = False

    @property
    def usable(self) -> bool:
        """Whether requests can be sent: not after the end, not in a forked child."""
        return not self._ended and self.owner == os.getpid()

    def register(self, address: int, length: int) -> None:
        """Have the faults of a range go to the pager."""
        # An object of its own: they are not for two threads at once.
        uffd.Userfaultfd(self._userfaultfd).register(address, length, MODES)

    def hello(self, interrupts: Interrupts, resident: int | None) -> None:
        """Introduce this process."""
        libc.set_ptracer(self.pager)
        message = messages.Hello(
            pid=self.owner,
            features=self._opened.features,
            user_mode_only=self._opened.user_mode_only,
            sys_path=import_path(),
            resident=resident,
            interrupt_slot=interrupts.slot,
            interrupt_handler=interrupts.handler if interrupts.slot else 0,
        )
        self._lifeline, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.call(message, [self._userfaultfd, interrupts.wakeup, theirs.fileno()])
        if not lifeline.arm(self._lifeline):
            raise self._end()

    def start_agent(self) -> None:
        """Have an agent, if there can be one; without it everything works, a little slower."""
        if self._agent_tried or not native.available():
            return
        self._agent_tried = True
        if not self._opened.features & uffd.FEATURE_EVENT_REMAP:
            return
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return
        with ours, theirs:
            ours.setblocking(True)
            try:
                agent = Agent(ours)
            except OSError:
                return
            self._agent = agent
            self.call(messages.Agent(), [theirs.fileno()])

    def pause_agent(self) -> None:
        """Before a fork: there is no thread, and nothing is half done."""
        if self._agent is not None:
            self._agent.pause()

    def resume_agent(self) -> None:
        """After a fork, in the parent."""
        if self._agent is not None:
            self._agent.resume()

    def stop_agent(self) -> None:
        """After this nothing changes our mappings but ourselves."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.stop()

    def call(self, request: messages.Request, fds: Sequence[int] = ()) -> messages.Done:
        """Ask, and wait for the answer with the GIL free.

        An exception that a signal handler raises meanwhile (Ctrl-C) closes the reply
        socket, and with that cancels the work in the pager.

        Raises
        ------
        Error
            What the pager says; `KernelError` if it has ended.
        """
        answer, received, reply = self._ask(request, fds)
        self._forget(reply)
        if received or not isinstance(answer, messages.Done):
            raise self._nonsense(request, answer, received)
        return answer

    def map(
        self, request: messages.Request, fds: Sequence[int] = ()
    ) -> tuple[messages.Mapped, int]:
        """Ask for a region; returns the answer and the descriptor of its memory."""
        answer, received, reply = self._ask(request, fds)
        self._forget(reply)
        if isinstance(answer, messages.Mapped) and not received:
            raise KernelError(
                errno.EMFILE,
                "the descriptor of the region's memory could not be received; raise the limit of"
                " open files (ulimit -n)",
            )
        if not isinstance(answer, messages.Mapped) or len(received) != 1:
            raise self._nonsense(request, answer, received)
        return answer, received[0]

    def hold(self, request: messages.Request) -> tuple[socket.socket, messages.Done]:
        """Ask for what lasts until its reply socket is closed (by `let_go`)."""
        answer, received, reply = self._ask(request, ())
        if received or not isinstance(answer, messages.Done):
            self._forget(reply)
            raise self._nonsense(request, answer, received)
        return reply, answer

    def let_go(self, reply: socket.socket, *, wait: bool) -> None:
        """End what `hold` began; with `wait`, return when the pager has taken note."""
        try:
            if wait and self.usable:
                # The pager closes its end when ours is shut.
                reply.shutdown(socket.SHUT_WR)
                reply.recv(1)
        except OSError:
            pass  # it has ended, and so has whatever it held
        finally:
            self._forget(reply)

    def shutdown(self, *, mapped: bool) -> None:
        """Have everything written back; the last request of this process.

        Parameters
        ----------
        mapped
            Whether regions are still mapped.  Then the pager goes on to serve them, and
            ends after us; otherwise its end is waited for.
        """
        try:
            self.call(messages.Shutdown())
        except KeyboardInterrupt:
            print(
                "refault: interrupted; the pager writes what is dirty in the background",
                file=sys.stderr,
            )
        finally:
            self._ended = True
            if mapped:
                self._leave_open()
            else:
                self._close()
            self._reap(0 if mapped else EXIT_SECONDS)

    def abandon(self) -> None:
        """Close everything: our parent's connection, or one whose Hello failed."""
        self._ended = True
        for reply in list(self._waiting):
            self._forget(reply)
        self._close()
        self._reap(REAP_SECONDS if self.owner == os.getpid() else 0)

    def _ask(
        self, request: messages.Request, fds: Sequence[int]
    ) -> tuple[messages.Done | messages.Mapped, list[int], socket.socket]:
        if not self.usable:
            raise self._end()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise KernelError(
                error.errno or 0,
                f"no socket for a request to the pager ({error.strerror}); raise the limit of"
                " open files (ulimit -n)",
            ) from error
        self._waiting.update((ours, theirs))
        try:
            # Sockets of a program that has called socket.setdefaulttimeout, too.
            ours.setblocking(True)
            try:
                messages.send(self._control, request, [theirs.fileno(), *fds])
                self._forget(theirs)
                answer = messages.receive(ours, _decoder)
            except ConnectionError:
                answer = None
            if answer is None:
                raise self._end()
            message, received = answer
            if isinstance(message, messages.Failed):
                raise _error(message)
        except BaseException:
            self._forget(theirs)
            self._forget(ours)
            raise
        return message, received, ours

    def _forget(self, reply: socket.socket) -> None:
        self._waiting.discard(reply)
        reply.close()

    def _end(self) -> KernelError:
        """Say why there is no answer, and notice the end of the pager."""
        if self.owner != os.getpid():
            return KernelError(
                "this process was forked without refault noticing, and has no connection to the"
                " pager; fork with os.fork or multiprocessing, or open the array in the child"
            )
        if not self._ended:
            poll = select.poll()
            poll.register(self._control, 0)
            self._ended = bool(poll.poll(0))
            self._reap(REAP_SECONDS if self._ended else 0)
        status = None if self._process is None else self._process.returncode
        how = f" with status {status}" if status is not None else ""
        return KernelError(
            f"the pager process {self.pager} has ended{how}; its last words are on stderr. What"
            " was dirty then may be lost, and regions of that pager can no longer be used:"
            " drop them, and open the arrays again"
        )

    def _nonsense(
        self, request: messages.Request, answer: object, received: list[int]
    ) -> KernelError:
        for fd in received:
            os.close(fd)
        return KernelError(
            f"the pager answers {type(request).__name__} with {answer!r}; client and pager are of"
            " different versions: restart the program"
        )

    def _leave_open(self) -> None:
        """Keep the descriptors until the process is gone, whatever becomes of this object."""
        with contextlib.suppress(OSError):
            self._control.detach()
        if self._lifeline is not None:
            self._lifeline.detach()

    def _close(self) -> None:
        self.stop_agent()
        if self._lifeline is not None:
            self._lifeline.close()
        self._control.close()
        fd, self._userfaultfd = self._userfaultfd, -1
        if fd >= 0:
            os.close(fd)

    def _reap(self, seconds: float) -> None:
        """Take the exit status of the pager, if it is our child and ends in time."""
        if self._process is None:
            return
        if self.owner == os.getpid():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        if self._process.returncode is None and self._ended:
            # It outlives us on purpose, and whoever inherits it reaps it.
            self._process.returncode = 0

    def __del__(self) -> None:
        # A connection to a pager that has ended, after the last of its regions; the one
        # that is alive is kept by this module.
        if sys.is_finalizing():
            self._leave_open()
        elif self._ended:
            self._close()


class Started(NamedTuple):
    """A pager that has no client yet, and ends with its control socket."""

    owner: int
    control: socket.socket
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(REAP_SECONDS)


_lock = threading.Lock()
_current: Connection | None = None
_ahead: Started | None = None
_interrupts: Interrupts | None = None
_inherited: tuple[socket.socket, int] | None = None
_budget: tuple[int | None] | None = None
_at_exit_registered = False


def current() -> Connection | None:
    """Return the connection of this process if there is one that works."""
    connection = _current
    return connection if connection is not None and connection.usable else None


def connect() -> Connection:
    """Return the connection of this process; the first call starts the pager."""
    global _current
    connection = current()
    if connection is None:
        with _lock:
            connection = current()
            if connection is None:
                connection = _current = _establish()
    if _interrupts is not None:
        _interrupts.ensure()
    return connection


@contextlib.contextmanager
def pager_ahead() -> Iterator[None]:
    """Let the pager start, if there is none, while what comes before `connect` is done."""
    global _ahead
    started = None
    with _lock:
        if current() is None and _inherited is None and _ahead is None:
            # What is wrong `connect` will say, if anybody needs it.
            with contextlib.suppress(KernelError, OSError):
                started = _ahead = _start()
    try:
        yield
    finally:
        with _lock:
            unused = started if _ahead is started else None
            if unused is not None:
                _ahead = None
        if unused is not None:
            unused.stop()


def adopt(control: socket.socket | None, pager: int) -> None:
    """In a forked child: forget the parent's connection; `control` is for our own."""
    global _current, _inherited, _lock
    _lock = threading.Lock()
    parent, _current = _current, None
    if parent is not None:
        parent.abandon()
    if _inherited is not None:
        _inherited[0].close()
    _inherited = None if control is None else (control, pager)
    if _interrupts is not None:
        _interrupts.after_fork()


def set_budget(resident: int | None) -> None:
    """Set the budget of all regions of the process together."""
    global _budget
    _budget = (resident,)
    connection = current()
    if connection is not None:
        connection.call(messages.Configure(resident))


def _establish() -> Connection:
    global _ahead, _inherited, _at_exit_registered
    resident = read_settings().resident if _budget is None else _budget[0]
    connection = None
    if _inherited is not None:
        (control, pager), _inherited = _inherited, None
        # The pager may have ended since the fork: then we start one of our own.
        with contextlib.suppress(KernelError):
            connection = _introduce(control, _open_userfaultfd(), pager, None, resident)
    if connection is None:
        opened = _open_userfaultfd()
        started, _ahead = _ahead, None
        if started is None or started.owner != os.getpid():
            try:
                started = _start()
            except BaseException:
                os.close(opened.fd)
                raise
        process = started.process
        connection = _introduce(started.control, opened, process.pid, process, resident)
    if not _at_exit_registered:
        atexit.register(_at_exit)
        _at_exit_registered = True
    return connection


def _start() -> Started:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            return Started(os.getpid(), ours, spawn_pager(theirs))
        except BaseException:
            ours.close()
            raise


def _introduce(
    control: socket.socket,
    opened: uffd.Opened,
    pager: int,
    process: subprocess.Popen[bytes] | None,
    resident: int | None,
) -> Connection:
    global _interrupts
    control.setblocking(True)
    connection = Connection(control, pager, process, opened)
    try:
        if _interrupts is None:
            _interrupts = Interrupts(_handled)
        connection.hello(_interrupts, resident)
    except BaseException:
        connection.abandon()
        raise
    return connection


def _open_userfaultfd() -> uffd.Opened:
    return uffd.open_userfaultfd(WANTED, REQUIRED)


def _handled() -> None:
    connection = current()
    if connection is not None:
        # Whatever went wrong there, Ctrl-C is to raise KeyboardInterrupt here.
        with contextlib.suppress(Error):
            connection.call(messages.Handled())


def _at_exit() -> None:
    connection = current()
    if connection is not None:
        connection.shutdown(mapped=bool(registry.live()))


def _error(failed: messages.Failed) -> Error:
    if failed.error == "StoreError":
        return StoreError(failed.message, permanent=failed.permanent)
    kind = getattr(errors, failed.error, None) if failed.error in errors.__all__ else None
    return (kind or Error)(failed.message)

"""The one who answers: a thread with a userfaultfd; and raw ioctls, where what they say matters."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import select
import socket
import struct
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from refault.errors import KernelError
from refault.machine import uffd
from refault.machine.uffd import Message, Userfaultfd

from .memory import PAGE, Area, filled
from .registry import KernelRefuses, NotApplicable

__all__ = [
    "Monitor",
    "Program",
    "Raw",
    "Touch",
    "offered",
    "open_monitor",
    "raw_ioctl",
    "until",
]

PATIENCE = 5.0
USEFUL = (
    uffd.FEATURE_PAGEFAULT_FLAG_WP
    | uffd.FEATURE_MISSING_SHMEM
    | uffd.FEATURE_MISSING_HUGETLBFS
    | uffd.FEATURE_THREAD_ID
    | uffd.FEATURE_WP_HUGETLBFS_SHMEM
    | uffd.FEATURE_MINOR_SHMEM
    | uffd.FEATURE_MINOR_HUGETLBFS
    | uffd.FEATURE_POISON
    | uffd.FEATURE_MOVE
)


def offered() -> int:
    """The features that the kernel offers, whichever door is open to us."""
    for door in ("device", "syscall", "user-mode-only"):
        try:
            return uffd.supported_features(door)
        except OSError:
            continue
    raise KernelRefuses("no userfaultfd for this user")


def until(condition: Callable[[], object], what: str, limit: float = PATIENCE) -> None:
    """Wait for a condition that nothing announces."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.001)


class Raw(NamedTuple):
    """What an ioctl said: errno (0: success), and the last field of its argument."""

    errno: int
    out: int


def raw_ioctl(fd: int, request: int, *fields: int) -> Raw:
    """An ioctl of userfaultfd with 64-bit fields, the last of which the kernel writes."""
    argument = bytearray(struct.pack(f"={len(fields)}Qq", *fields, 0))
    code = 0
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        code = error.errno or -1
    return Raw(code, struct.unpack_from("=q", argument, len(argument) - 8)[0])


class Monitor:
    """Serves userfaultfds from a thread.

    Parameters
    ----------
    answer
        Called with each message; its errors are raised by `stop`.
    """

    def __init__(
        self,
        descriptor: Userfaultfd,
        answer: Callable[[Userfaultfd, Message], object],
        *,
        start: bool = True,
    ) -> None:
        self.uffd = descriptor
        self.answer = answer
        self.heard: list[Message] = []
        self.others: list[Userfaultfd] = []
        self.errors: list[str] = []
        self._poll = select.poll()
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        self._poll.register(self._reading, select.POLLIN)
        self._by_fd: dict[int, Userfaultfd] = {}
        self.add(descriptor)
        self._thread = threading.Thread(target=self._run, daemon=True)
        if start:
            self.start()

    def start(self) -> None:
        self._thread.start()

    def add(self, descriptor: Userfaultfd) -> None:
        """Serve this one too."""
        self._by_fd[descriptor.fd] = descriptor
        self._poll.register(descriptor.fd, select.POLLIN)

    def remove(self, descriptor: Userfaultfd) -> None:
        del self._by_fd[descriptor.fd]
        self._poll.unregister(descriptor.fd)

    def _run(self) -> None:
        buffer = bytearray(16 * uffd.MESSAGE_SIZE)
        while True:
            for fd, events in self._poll.poll():
                if fd == self._reading:
                    return
                descriptor = self._by_fd[fd]
                if events & ~select.POLLIN:
                    self.remove(descriptor)
                    continue
                for message in descriptor.read_messages(buffer):
                    self.heard.append(message)
                    try:
                        self.answer(descriptor, message)
                    except BaseException:
                        self.errors.append(traceback.format_exc())
                        descriptor.wake(0, (1 << 47) - PAGE)
                        return

    def stop(self) -> list[Message]:
        """End the thread; all that it heard."""
        os.write(self._writing, b".")
        self._thread.join(PATIENCE)
        assert not self.errors, f"the monitor failed:\n{self.errors[0]}"
        assert not self._thread.is_alive(), "the monitor does not end"
        return self.heard

    def faults(self, flags: int | None = None) -> int:
        """How many fault messages came; of these flags only, if given."""
        return sum(
            event == uffd.EVENT_PAGEFAULT and (flags is None or found == flags)
            for event, found, _, _ in self.heard
        )

    def events(self) -> Counter[int]:
        """How many messages of each event came."""
        return Counter(event for event, _, _, _ in self.heard)


def open_monitor(
    area: Area, modes: int, features: int = 0, *, flags: int = uffd.DEFAULT_FLAGS
) -> Userfaultfd:
    """A userfaultfd for `area`, registered."""
    descriptor = open_descriptor(features, page_size=area.page, flags=flags)
    try:
        descriptor.register(area.start, area.length, modes)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            raise NotApplicable(f"modes {modes:#x} are not for {area.kind.name}") from error
        raise
    return descriptor


def open_descriptor(
    features: int = 0, *, page_size: int = PAGE, flags: int = uffd.DEFAULT_FLAGS
) -> Userfaultfd:
    """A userfaultfd with these features, or the reason why there is none."""
    try:
        opened = uffd.open_userfaultfd(USEFUL, features, flags=flags)
    except KernelError as error:
        why = str(error).partition(";")[0]
        if error.errno == errno.EPERM and features & uffd.FEATURE_EVENT_FORK:
            why = "the event of fork needs CAP_SYS_PTRACE"
        raise KernelRefuses(why) from error
    return Userfaultfd(opened.fd, page_size=page_size)


def copier(area: Area, mode: int = 0) -> Callable[[Userfaultfd, Message], None]:
    """An answer to missing pages: `pattern`, by COPY."""
    source = filled(area.pages, area.page)

    def answer(descriptor: Userfaultfd, message: Message) -> None:
        number = area.number(message[2])
        descriptor.copy(area.at(number), source + number * area.page, area.page, mode)

    return answer


class Touch:
    """A thread that does something to lazy memory."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._work = work
        self._args = args
        self.value: Any = None
        self.tid = 0
        self.begun = threading.Event()
        self.done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self.begun.wait(PATIENCE)

    def _run(self) -> None:
        self.tid = threading.get_native_id()
        self.begun.set()
        self.value = self._work(*self._args)
        self.done.set()

    def result(self) -> Any:
        assert self.done.wait(PATIENCE), "a thread was not woken"
        return self.value

    def asleep(self, seconds: float = 0.03) -> bool:
        return not self.done.wait(seconds)

    def state(self) -> str:
        """What the kernel says of the thread: R, S, D."""
        with open(f"/proc/self/task/{self.tid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]


class Program:
    """A forked process whose memory this one serves.

    For scenarios in which the program forks: a Python program holds the GIL while fork() waits
    for its event to be read, so it cannot read it itself.

    Parameters
    ----------
    body
        Run in the child with its end of the link.
    """

    def __init__(self, body: Callable[[Link], object]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            link = Link(theirs)
            try:
                link.send(("done", body(link)))
            except (KernelRefuses, NotApplicable) as reason:
                link.send(reason)
            except BaseException:
                link.send(("failed", traceback.format_exc()))
            os._exit(0)
        theirs.close()
        self.link = Link(ours)

    def result(self) -> Any:
        """What its body returned."""
        (how, value), _ = self.link.receive()
        os.waitpid(self.pid, 0)
        assert how == "done", f"in the program:\n{value}"
        return value


class Link:
    """A socket that carries Python objects and descriptors."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.settimeout(PATIENCE)

    def send(self, value: Any, *fds: int) -> None:
        socket.send_fds(self._end, [pickle.dumps(value)], fds)

    def receive(self) -> tuple[Any, list[int]]:
        data, fds, _, _ = socket.recv_fds(self._end, 1 << 16, 4)
        assert data, "the other end is gone"
        value = pickle.loads(data)
        if isinstance(value, (KernelRefuses, NotApplicable)):
            raise value
        return value, fds

"""The userfaultfd binding against the real kernel.

A thread that touches a lazy page must not hold the GIL while it sleeps there, or the
handler in the same process never runs.  So all touching is done by C functions called
through ctypes, which gives the GIL up; never by indexing a memoryview or an array.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from refault.errors import KernelError
from refault.machine import uffd
from refault.machine.uffd import (
    EVENT_PAGEFAULT,
    FAULT_MINOR,
    FAULT_WP,
    FAULT_WRITE,
    MODE_MINOR,
    MODE_MISSING,
    MODE_WP,
    Again,
    PageAbsent,
    ProcessGone,
    RangeGone,
    Userfaultfd,
    open_userfaultfd,
)

PAGE = mmap.PAGESIZE
LIMIT = 5.0
REQUIRED = (
    uffd.FEATURE_PAGEFAULT_FLAG_WP
    | uffd.FEATURE_MISSING_SHMEM
    | uffd.FEATURE_MINOR_SHMEM
    | uffd.FEATURE_THREAD_ID
    | uffd.FEATURE_EXACT_ADDRESS
    | uffd.FEATURE_WP_HUGETLBFS_SHMEM
)
OPTIONAL = uffd.FEATURE_POISON | uffd.FEATURE_WP_UNPOPULATED
PR_SET_DUMPABLE = 4
MADV_DONTNEED = 4
MADV_POPULATE_READ = 22

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.memcpy.restype = ctypes.c_void_p
libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
libc.memset.restype = ctypes.c_void_p
libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
libc.read.restype = ctypes.c_ssize_t
libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
libc.write.restype = ctypes.c_ssize_t
libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


def refusal() -> str | None:
    try:
        os.close(open_userfaultfd(OPTIONAL, REQUIRED).fd)
    except KernelError as error:
        return str(error)
    return None


REFUSAL = refusal()
pytestmark = [
    pytest.mark.userfaultfd,
    pytest.mark.timeout(30),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),  # fork, 3.12
    pytest.mark.skipif(REFUSAL is not None, reason=f"no userfaultfd here: {REFUSAL}"),
]


class Touch(threading.Thread):
    """A thread that reads or writes a byte of lazy memory."""

    all: ClassVar[list[Touch]] = []

    def __init__(self, address: int, write: int | None = None) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.byte = write
        self.tid = 0
        self.seen: int | None = None
        self.ready = threading.Event()
        self.done = threading.Event()
        self.all.append(self)
        self.start()
        assert self.ready.wait(LIMIT)

    def run(self) -> None:
        self.tid = threading.get_native_id()
        into = ctypes.create_string_buffer(1)
        self.ready.set()
        if self.byte is None:
            libc.memcpy(into, self.address, 1)
            self.seen = into.raw[0]
        else:
            libc.memset(self.address, self.byte, 1)
        self.done.set()

    def finished(self, limit: float = LIMIT) -> bool:
        return self.done.wait(limit)

    def asleep(self) -> bool:
        return not self.done.wait(0.03)


class Lazy:
    """A registered mapping of a memfd, and the userfaultfd that serves it."""

    def __init__(
        self, pages: int = 8, modes: int = MODE_MISSING | MODE_MINOR | MODE_WP, flags: int = 0
    ) -> None:
        self.opened = open_userfaultfd(OPTIONAL, REQUIRED, flags=uffd.DEFAULT_FLAGS | flags)
        self.uffd = Userfaultfd(self.opened.fd)
        self.memfd = os.memfd_create("refault-test", os.MFD_CLOEXEC)
        self.length = pages * PAGE
        os.ftruncate(self.memfd, self.length)
        address = libc.mmap(None, self.length, 3, mmap.MAP_SHARED, self.memfd, 0)
        assert address != ctypes.c_void_p(-1).value
        self.start: int = address
        self.ioctls = self.uffd.register(self.start, self.length, modes)
        self.buffer = bytearray(64 * uffd.MESSAGE_SIZE)
        self.source = mmap.mmap(-1, self.length)
        for page in range(pages):
            self.source[page * PAGE : (page + 1) * PAGE] = bytes([page + 1]) * PAGE
        self.source_address = ctypes.addressof(ctypes.c_char.from_buffer(self.source))

    def close(self) -> None:
        self.uffd.close()  # wakes whoever still sleeps
        os.close(self.memfd)
        for touch in Touch.all:
            touch.join(1)
        if not any(touch.is_alive() for touch in Touch.all):  # else: rather a leak than SIGSEGV
            libc.munmap(self.start, self.length)
            Touch.all.clear()

    def page(self, number: int) -> int:
        return self.start + number * PAGE

    def copy(self, number: int, pages: int = 1, mode: int = 0) -> None:
        self.uffd.copy(self.page(number), self.source_address + number * PAGE, pages * PAGE, mode)

    def fill_cache(self, number: int, byte: int) -> None:
        os.pwrite(self.memfd, bytes([byte]) * PAGE, number * PAGE)

    def message(self, limit: float = LIMIT) -> uffd.Message:
        """The next message, of which there must be no more than one."""
        (only,) = self.messages(limit)
        return only

    def messages(self, limit: float = LIMIT) -> list[uffd.Message]:
        poll = select.poll()
        poll.register(self.uffd, select.POLLIN)
        if not poll.poll(limit * 1000):
            return []
        return self.uffd.read_messages(self.buffer)

    def quiet(self) -> bool:
        return self.messages(0.03) == []


@pytest.fixture
def lazy() -> Iterator[Lazy]:
    lazy = Lazy()
    yield lazy
    lazy.close()


def in_child(work: Callable[[], Any], *, user: int | None = None, limit: float = 10.0) -> Any:
    """Run `work` in a forked child, as `user` if we may change; its result, or its error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            if user is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            try:
                answer = (True, work())
            except BaseException:
                answer = (False, traceback.format_exc())
            os.write(writing, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        data = b""
        end = time.monotonic() + limit
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([reading], [], [], left)[0]:
                pytest.fail(f"the child did not answer in {limit} s")
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            data += piece
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    fine, result = pickle.loads(data)
    if not fine:
        pytest.fail(f"in the child:\n{result}")
    return result


# --- opening --------------------------------------------------------------------------------


def test_open_enables_what_is_required_and_what_is_there_of_the_wanted() -> None:
    unknown = 1 << 60
    opened = open_userfaultfd(OPTIONAL | unknown, REQUIRED)
    try:
        assert opened.features & REQUIRED == REQUIRED
        assert not opened.features & unknown
        assert opened.ioctls & (1 << 0 | 1 << 1) == 3  # REGISTER and UNREGISTER
        assert not os.get_inheritable(opened.fd)
        assert not os.get_blocking(opened.fd)
        assert opened.user_mode_only == (opened.how == "user-mode-only")
    finally:
        os.close(opened.fd)


def test_the_api_is_agreed_once(lazy: Lazy) -> None:
    with pytest.raises(OSError) as caught:
        uffd.negotiate(lazy.uffd.fd, 0)
    assert caught.value.errno == errno.EINVAL


def test_a_missing_feature_is_named_with_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    real = uffd.negotiate

    def old_kernel(fd: int, features: int) -> tuple[int, int]:
        offered, ioctls = real(fd, features)
        return offered & ~(uffd.FEATURE_MINOR_SHMEM | uffd.FEATURE_WP_HUGETLBFS_SHMEM), ioctls

    monkeypatch.setattr(uffd, "negotiate", old_kernel)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError) as caught:
        open_userfaultfd(0, REQUIRED)
    message = str(caught.value)
    assert "MINOR_SHMEM (since Linux 5.14)" in message
    assert "WP_HUGETLBFS_SHMEM (since Linux 5.19)" in message
    assert "EXACT_ADDRESS" not in message
    assert "refault doctor" in message
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_the_ladder(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    doors = ["device", "syscall", "user-mode-only"]
    tried = []
    real = uffd.open_door

    def porter(door: uffd.Door, flags: int = 0) -> int:
        tried.append(door)
        if door in doors[:refused]:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real("user-mode-only", flags)

    monkeypatch.setattr(uffd, "open_door", porter)
    if refused == 3:
        with pytest.raises(KernelError) as caught:
            open_userfaultfd(0, 0)
        assert caught.value.errno == errno.EPERM
        assert all(door in str(caught.value) for door in doors)
        assert "refault doctor" in str(caught.value)
        assert tried == doors
        return
    opened = open_userfaultfd(0, 0)
    os.close(opened.fd)
    assert opened.how == doors[refused]
    assert opened.user_mode_only == (refused == 2)
    assert tried[: refused + 1] == doors[: refused + 1]
    assert tried[refused + 1 :] == [doors[refused]]


def test_an_unknown_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname()
    fake = os.uname_result((name.sysname, name.nodename, name.release, name.version, "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: fake)
    with pytest.raises(KernelError, match=r"riscv64.*refault doctor"):
        open_userfaultfd(0, 0)


def test_a_descriptor_that_never_agreed_cannot_be_read() -> None:
    fd = uffd.open_door("user-mode-only")
    with Userfaultfd(fd) as bare, pytest.raises(KernelError, match="never agreed"):
        bare.read_messages(bytearray(64))
    assert bare.fd == -1
    bare.close()


# --- one page -------------------------------------------------------------------------------


def test_nothing_to_read(lazy: Lazy) -> None:
    assert lazy.uffd.read_messages(lazy.buffer) == []


def test_messages_are_decoded_whole() -> None:
    """From a pipe: events that cannot be had here, or only with effort."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    big = 1 << 45
    raw = [
        struct.pack("=B7xQQI4x", EVENT_PAGEFAULT, FAULT_WP, big + 1, 77),
        struct.pack("=B7xI20x", uffd.EVENT_FORK, 9),
        struct.pack("=B7xQQQ", uffd.EVENT_REMAP, big, 2 * big, big + 2),
        struct.pack("=B7xQQ8x", uffd.EVENT_UNMAP, big, big + 3),
    ]
    expected = [
        (EVENT_PAGEFAULT, FAULT_WP, big + 1, 77),
        (uffd.EVENT_FORK, 9, 0, 0),
        (uffd.EVENT_REMAP, big, 2 * big, big + 2),
        (uffd.EVENT_UNMAP, big, big + 3, 0),
    ]
    with Userfaultfd(reading) as pipe:
        for buffer in (bytearray(64 * 32), memoryview(bytearray(2 * 32))):
            os.write(writing, b"".join(raw))
            heard = pipe.read_messages(buffer)
            if len(buffer) == 64:
                heard += pipe.read_messages(buffer)
            assert heard == expected
        os.write(writing, raw[0])
        assert pipe.read_messages(bytearray(64 * 32)) == expected[:1]
        assert pipe.read_messages(bytearray(64 * 32)) == []
    os.close(writing)


def test_copy(lazy: Lazy) -> None:
    touch = Touch(lazy.page(3) + 77)
    assert lazy.message() == (EVENT_PAGEFAULT, 0, lazy.page(3) + 77, touch.tid)
    assert touch.asleep()
    lazy.copy(3)
    assert touch.finished()
    assert touch.seen == 4
    assert lazy.quiet()


def test_continue(lazy: Lazy) -> None:
    lazy.fill_cache(2, 0x5A)
    touch = Touch(lazy.page(2), write=1)
    event, flags, address, tid = lazy.message()
    assert (event, flags, address, tid) == (
        EVENT_PAGEFAULT,
        FAULT_MINOR | FAULT_WRITE,
        lazy.page(2),
        touch.tid,
    )
    lazy.uffd.continue_(lazy.page(2), PAGE)
    assert touch.finished()
    assert os.pread(lazy.memfd, 2, 2 * PAGE) == b"\x01\x5a"


def test_continue_protected_then_the_first_write_is_told(lazy: Lazy) -> None:
    lazy.fill_cache(0, 7)
    lazy.uffd.continue_(lazy.page(0), PAGE, uffd.CONTINUE_WP)
    reader = Touch(lazy.page(0))
    assert reader.finished()
    assert reader.seen == 7
    assert lazy.quiet()
    writer = Touch(lazy.page(0), write=8)
    assert lazy.message() == (EVENT_PAGEFAULT, FAULT_WP | FAULT_WRITE, lazy.page(0), writer.tid)
    assert writer.asleep()
    lazy.uffd.write_protect(lazy.page(0), PAGE, 0)
    assert writer.finished()
    assert os.pread(lazy.memfd, 1, 0) == b"\x08"


def test_write_protect_again(lazy: Lazy) -> None:
    lazy.copy(0, 8)
    lazy.uffd.write_protect(lazy.start, lazy.length)
    touch = Touch(lazy.page(5), write=9)
    assert lazy.message()[1] & FAULT_WP
    lazy.uffd.write_protect(lazy.start, lazy.length)  # wakes nobody
    assert touch.asleep()
    lazy.uffd.write_protect(lazy.start, lazy.length, uffd.WRITEPROTECT_DONTWAKE)
    assert touch.asleep()
    lazy.uffd.wake(lazy.start, lazy.length)
    assert touch.finished()


def test_zeropage_leaves_a_private_page_of_zeros() -> None:
    lazy = Lazy(modes=MODE_MISSING)
    touch = Touch(lazy.page(1))
    lazy.message()
    lazy.uffd.zeropage(lazy.page(1), PAGE)
    assert touch.finished()
    assert touch.seen == 0
    lazy.close()


def test_poison_is_sigbus_for_code_and_efault_for_system_calls(lazy: Lazy) -> None:
    if not lazy.opened.features & uffd.FEATURE_POISON:
        pytest.skip("UFFDIO_POISON needs Linux 6.6")
    lazy.uffd.poison(lazy.page(4), PAGE)
    with open("/dev/zero", "rb") as zeros:
        assert libc.read(zeros.fileno(), lazy.page(4), 8) == -1
        assert ctypes.get_errno() == errno.EFAULT
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        signal.alarm(5)
        inner = Lazy(pages=1)
        inner.uffd.poison(inner.start, PAGE)
        libc.memset(inner.start, 1, 1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS


def test_move() -> None:
    if not uffd.supported_features("user-mode-only") & uffd.FEATURE_MOVE:
        pytest.skip("UFFDIO_MOVE needs Linux 6.8")
    opened = open_userfaultfd(0, uffd.FEATURE_MOVE)
    with Userfaultfd(opened.fd) as descriptor:
        start = libc.mmap(None, 4 * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        libc.madvise(start, 4 * PAGE, 15)  # MADV_NOHUGEPAGE
        libc.memset(start, 0x33, 2 * PAGE)
        descriptor.register(start + 2 * PAGE, 2 * PAGE, MODE_MISSING)
        descriptor.move(start + 2 * PAGE, start, 2 * PAGE)
        touch = Touch(start + 3 * PAGE)
        assert touch.finished()
        assert touch.seen == 0x33
        libc.munmap(start, 4 * PAGE)


def test_thread_id_names_each_sleeper(lazy: Lazy) -> None:
    touches = [Touch(lazy.page(6) + n) for n in range(4)]
    heard: set[int] = set()
    end = time.monotonic() + LIMIT
    while len(heard) < 4 and time.monotonic() < end:
        heard |= {tid for _, _, _, tid in lazy.messages(0.1)}
    assert heard == {touch.tid for touch in touches}
    lazy.copy(6)
    assert all(touch.finished() for touch in touches)


def test_duplicates_after_bare_wakes(lazy: Lazy) -> None:
    touch = Touch(lazy.page(1))
    count = 0
    for _ in range(10):
        count += lazy.message()[3] == touch.tid
        lazy.uffd.wake(lazy.page(1), PAGE)
    count += lazy.message()[3] == touch.tid
    assert count == 11
    assert touch.asleep()
    lazy.copy(1)
    assert touch.finished()
    assert lazy.quiet()


def test_one_store_two_messages(lazy: Lazy) -> None:
    touch = Touch(lazy.page(2), write=0x77)
    assert lazy.message() == (EVENT_PAGEFAULT, FAULT_WRITE, lazy.page(2), touch.tid)
    lazy.copy(2, mode=uffd.COPY_WP)
    assert lazy.message() == (EVENT_PAGEFAULT, FAULT_WRITE | FAULT_WP, lazy.page(2), touch.tid)
    assert touch.asleep()
    lazy.uffd.write_protect(lazy.page(2), PAGE, 0)
    assert touch.finished()
    assert lazy.quiet()
    assert os.pread(lazy.memfd, 2, 2 * PAGE) == b"\x77\x03"


def test_dontwake(lazy: Lazy) -> None:
    touch = Touch(lazy.page(0))
    lazy.message()
    lazy.copy(0, mode=uffd.COPY_DONTWAKE)
    assert touch.asleep()
    lazy.uffd.wake(lazy.page(0), PAGE)
    assert touch.finished()


# --- ranges ---------------------------------------------------------------------------------


def sleeper_behind_a_mapped_page(lazy: Lazy, number: int) -> Touch:
    """A thread that sleeps at a page which is mapped meanwhile: nobody woke it."""
    touch = Touch(lazy.page(number))
    lazy.message()
    lazy.copy(number, mode=uffd.COPY_DONTWAKE)
    assert touch.asleep()
    return touch


@pytest.mark.parametrize("where", [0, 3, 7])
def test_copy_skips_what_exists_and_wakes_it(lazy: Lazy, where: int) -> None:
    touch = sleeper_behind_a_mapped_page(lazy, where)
    lazy.copy(0, 8)
    assert touch.finished(), "EEXIST woke nobody, and so did we"
    for number in range(8):
        other = Touch(lazy.page(number))
        assert other.finished()
        assert other.seen == number + 1
    assert lazy.quiet()


def test_continue_skips_what_is_mapped_and_wakes_it(lazy: Lazy) -> None:
    for number in range(8):
        lazy.fill_cache(number, number)
    lazy.uffd.continue_(lazy.page(2), 2 * PAGE)
    touch = Touch(lazy.page(5))
    lazy.message()
    lazy.uffd.continue_(lazy.page(5), PAGE, uffd.CONTINUE_DONTWAKE)
    assert touch.asleep()
    lazy.uffd.continue_(lazy.start, lazy.length)
    assert touch.finished()
    assert all(Touch(lazy.page(number)).finished() for number in range(8))
    assert lazy.quiet()


def test_dontwake_holds_for_what_is_skipped(lazy: Lazy) -> None:
    touch = sleeper_behind_a_mapped_page(lazy, 3)
    lazy.copy(0, 8, uffd.COPY_DONTWAKE)
    assert touch.asleep()
    lazy.uffd.wake(lazy.start, lazy.length)
    assert touch.finished()


def test_skipped_pages_are_woken_even_if_the_rest_fails(lazy: Lazy) -> None:
    lazy.fill_cache(0, 1)
    touch = Touch(lazy.page(0))
    lazy.message()
    lazy.uffd.continue_(lazy.page(0), PAGE, uffd.CONTINUE_DONTWAKE)
    with pytest.raises(PageAbsent) as caught:
        lazy.uffd.continue_(lazy.start, 2 * PAGE)
    assert caught.value.resolved == PAGE
    assert touch.finished()


def test_partial_progress_of_the_kernel_is_what_we_think(lazy: Lazy) -> None:
    lazy.copy(2)
    argument = bytearray(struct.pack("=QQQQq", lazy.start, lazy.source_address, 4 * PAGE, 0, 0))
    with pytest.raises(BlockingIOError):
        fcntl.ioctl(lazy.uffd.fd, uffd.UFFDIO_COPY, argument)
    assert struct.unpack_from("=q", argument, 32)[0] == 2 * PAGE


def test_progress_is_kept(monkeypatch: pytest.MonkeyPatch, lazy: Lazy) -> None:
    """Up to the mapped page, the mapped page, the rest, and the wake: four calls."""
    lazy.copy(3)
    calls: list[int] = []

    def count(fd: int, request: int, argument: bytearray) -> int:
        calls.append(request)
        return int(fcntl.ioctl(fd, request, argument))

    monkeypatch.setattr(uffd, "ioctl", count)
    lazy.copy(0, 8)
    assert calls == [uffd.UFFDIO_COPY] * 3 + [uffd.UFFDIO_WAKE]
    calls.clear()
    lazy.copy(0, 8, uffd.COPY_DONTWAKE)
    assert uffd.UFFDIO_WAKE not in calls


def test_page_absent_tells_where(lazy: Lazy) -> None:
    for number in (0, 1, 2):
        lazy.fill_cache(number, 1)
    with pytest.raises(PageAbsent) as caught:
        lazy.uffd.continue_(lazy.start, lazy.length)
    assert caught.value.resolved == 3 * PAGE
    assert caught.value.errno == errno.EFAULT
    assert isinstance(caught.value, KernelError)


def test_range_gone_after_munmap(lazy: Lazy) -> None:
    libc.munmap(lazy.start, lazy.length)
    operations: list[Callable[[], None]] = [
        lambda: lazy.copy(0),
        lambda: lazy.uffd.continue_(lazy.start, PAGE),
        lambda: lazy.uffd.zeropage(lazy.start, PAGE),
        lambda: lazy.uffd.write_protect(lazy.start, PAGE),
        lambda: lazy.uffd.write_protect(lazy.start, PAGE, 0),
    ]
    for operation in operations:
        with pytest.raises(RangeGone) as caught:
            operation()
        assert caught.value.errno == errno.ENOENT
        assert not isinstance(caught.value, ProcessGone)
    lazy.uffd.wake(lazy.start, lazy.length)


def test_range_gone_after_unregister_and_its_sleeper_woken() -> None:
    lazy = Lazy(modes=MODE_WP)
    libc.memset(lazy.start, 1, lazy.length)
    lazy.uffd.write_protect(lazy.start, lazy.length)
    touch = Touch(lazy.page(0), write=2)
    lazy.message()
    lazy.uffd.unregister(lazy.start, lazy.length)
    assert touch.finished()
    with pytest.raises(RangeGone):
        lazy.copy(0)
    lazy.close()


def test_copy_crossing_out_of_the_mapping_does_nothing(lazy: Lazy) -> None:
    libc.munmap(lazy.page(4), 4 * PAGE)
    with pytest.raises(RangeGone) as caught:
        lazy.copy(0, 8)
    assert caught.value.resolved == 0


def test_process_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        lazy = Lazy()
        socket.send_fds(theirs, [struct.pack("=Q", lazy.start)], [lazy.uffd.fd])
        theirs.recv(1)
        os._exit(0)
    ours.settimeout(LIMIT)
    packet, (fd,), _, _ = socket.recv_fds(ours, 64, 1)
    (start,) = struct.unpack("=Q", packet)
    source = ctypes.create_string_buffer(2 * PAGE)
    with Userfaultfd(fd) as remote, ours, theirs:
        remote.copy(start, ctypes.addressof(source), PAGE)
        ours.send(b".")
        os.waitpid(pid, 0)
        operations: list[Callable[[], None]] = [
            lambda: remote.copy(start + PAGE, ctypes.addressof(source), PAGE),
            lambda: remote.continue_(start, PAGE),
            lambda: remote.write_protect(start, PAGE, 0),
        ]
        for operation in operations:
            with pytest.raises(ProcessGone) as caught:
                operation()
            assert caught.value.errno == errno.ESRCH
        remote.wake(start, PAGE)
        assert remote.read_messages(bytearray(64)) == []


def test_another_process_answers() -> None:
    """The faulting process is the child; its memory is served from here, by COPY."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        lazy = Lazy()
        socket.send_fds(theirs, [struct.pack("=Q", lazy.start)], [lazy.uffd.fd])
        os._exit(ctypes.string_at(lazy.page(1), 1)[0])  # with the GIL held
    ours.settimeout(LIMIT)
    packet, (fd,), _, _ = socket.recv_fds(ours, 64, 1)
    (start,) = struct.unpack("=Q", packet)
    source = ctypes.create_string_buffer(b"\x2a" * PAGE)
    with Userfaultfd(fd) as remote, ours, theirs:
        assert select.select([remote], [], [], LIMIT)[0]
        ((event, _, address, tid),) = remote.read_messages(bytearray(64))
        assert (event, address, tid) == (EVENT_PAGEFAULT, start + PAGE, pid)
        remote.copy(address, ctypes.addressof(source), PAGE)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0x2A


def test_again_while_an_event_is_unread() -> None:
    """madvise sleeps until its event is read; until then every answer is EAGAIN."""
    opened = open_userfaultfd(0, REQUIRED | uffd.FEATURE_EVENT_REMOVE)
    start = libc.mmap(None, 4 * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    source = ctypes.create_string_buffer(b"\x11" * 4 * PAGE)
    with Userfaultfd(opened.fd) as descriptor:
        descriptor.register(start, 4 * PAGE, MODE_MISSING | MODE_WP)
        descriptor.copy(start, ctypes.addressof(source), PAGE)
        madvise = threading.Thread(
            target=libc.madvise, args=(start, PAGE, MADV_DONTNEED), daemon=True
        )
        madvise.start()
        assert select.select([descriptor], [], [], LIMIT)[0]
        with pytest.raises(Again) as caught:
            descriptor.copy(start + PAGE, ctypes.addressof(source), 2 * PAGE)
        assert caught.value.resolved == 0
        assert isinstance(caught.value, BlockingIOError)
        with pytest.raises(Again):
            descriptor.write_protect(start, PAGE)
        messages = descriptor.read_messages(bytearray(128))
        assert messages == [(uffd.EVENT_REMOVE, start, start + PAGE, 0)]
        madvise.join(LIMIT)
        descriptor.copy(start + PAGE, ctypes.addressof(source), 2 * PAGE)
    libc.munmap(start, 4 * PAGE)


def test_a_short_change_of_the_address_space_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, lazy: Lazy
) -> None:
    """A kernel that leaves the out field untouched, and answers after two refusals."""
    refusals = [None, None]

    def busy(fd: int, request: int, argument: bytearray) -> int:
        if refusals:
            refusals.pop()
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return int(fcntl.ioctl(fd, request, argument))

    monkeypatch.setattr(uffd, "ioctl", busy)
    lazy.copy(0, 2)
    refusals.extend([None, None])
    lazy.uffd.write_protect(lazy.start, 2 * PAGE)
    monkeypatch.undo()
    assert Touch(lazy.page(1)).finished()


def test_negative_out_field_is_no_progress(monkeypatch: pytest.MonkeyPatch, lazy: Lazy) -> None:
    def changing(fd: int, request: int, argument: bytearray) -> int:
        struct.pack_into("=q", argument, len(argument) - 8, -errno.EAGAIN)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(uffd, "ioctl", changing)
    with pytest.raises(Again) as caught:
        lazy.uffd.continue_(lazy.start, 2 * PAGE)
    assert caught.value.resolved == 0


def test_misuse_is_a_kernel_error(lazy: Lazy) -> None:
    with pytest.raises(KernelError, match="COPY of 1 bytes") as caught:
        lazy.uffd.copy(lazy.start, lazy.source_address, 1)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(KernelError, match="align it"):
        lazy.uffd.register(lazy.start + 1, PAGE, MODE_MISSING)
    with pytest.raises(KernelError) as caught:
        lazy.uffd.copy(lazy.start, 16, PAGE)
    assert caught.value.errno == errno.EFAULT
    assert not isinstance(caught.value, PageAbsent)
    with Userfaultfd(open_userfaultfd(0, REQUIRED).fd) as other:
        with pytest.raises(KernelError, match="another userfaultfd"):
            other.register(lazy.start, lazy.length, MODE_MISSING)


def test_the_last_descriptor_hands_out_zeros(lazy: Lazy) -> None:
    """Why the client keeps a copy of its descriptor."""
    copy = os.dup(lazy.uffd.fd)
    touch = Touch(lazy.page(0))
    lazy.message()
    lazy.uffd.close()
    assert touch.asleep()
    os.close(copy)
    assert touch.finished()
    assert touch.seen == 0


# --- user mode only -------------------------------------------------------------------------


def user_mode_only() -> dict[str, Any]:
    lazy = Lazy(flags=uffd.UFFD_USER_MODE_ONLY)
    touch = Touch(lazy.page(1), write=5)
    message = lazy.message()
    lazy.copy(1)
    served = touch.finished()
    zeros = os.open("/dev/zero", os.O_RDONLY)
    got = libc.read(zeros, lazy.page(2), 8)
    code = ctypes.get_errno()
    reading, writing = os.pipe()
    sent = libc.write(writing, lazy.page(3), 8)
    code_of_write = ctypes.get_errno()
    populated = libc.madvise(lazy.page(4), PAGE, MADV_POPULATE_READ)
    quiet = lazy.quiet()
    lazy.copy(2)
    after = libc.read(zeros, lazy.page(2), 8)
    for fd in (zeros, reading, writing):
        os.close(fd)
    result = {
        "user_mode_only": lazy.opened.user_mode_only,
        "served": served and message[0] == EVENT_PAGEFAULT,
        "read": (got, code),
        "write": (sent, code_of_write),
        "populate": populated,
        "quiet": quiet,
        "read when present": after,
    }
    lazy.close()
    return result


@pytest.mark.parametrize("user", [None, 65534], ids=["self", "nobody"])
def test_user_mode_only(user: int | None) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    assert in_child(user_mode_only, user=user) == {
        "user_mode_only": True,
        "served": True,
        "read": (-1, errno.EFAULT),
        "write": (-1, errno.EFAULT),
        "populate": -1,
        "quiet": True,
        "read when present": 8,
    }


def test_a_system_call_on_a_missing_page_is_served_with_privilege(lazy: Lazy) -> None:
    if lazy.opened.user_mode_only:
        pytest.skip("this machine serves user-mode faults only")
    zeros = os.open("/dev/zero", os.O_RDONLY)
    results: list[int] = []
    thread = threading.Thread(
        target=lambda: results.append(libc.read(zeros, lazy.page(2), 8)), daemon=True
    )
    thread.start()
    assert lazy.message()[2] == lazy.page(2)
    lazy.copy(2)
    thread.join(LIMIT)
    os.close(zeros)
    assert results == [8]


def nobodys_ladder() -> tuple[str, bool]:
    opened = open_userfaultfd(OPTIONAL, REQUIRED)
    os.close(opened.fd)
    return opened.how, opened.user_mode_only


def test_nobody_gets_what_nobody_may() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    how, user_mode_only = in_child(nobodys_ladder, user=65534)
    with open("/proc/sys/vm/unprivileged_userfaultfd") as setting:
        everybody = setting.read().strip() == "1"
    public = os.path.exists(uffd.DEVICE) and os.stat(uffd.DEVICE).st_mode & 0o006 == 0o006
    expected = "device" if public else "syscall" if everybody else "user-mode-only"
    assert how == expected
    assert user_mode_only == (expected == "user-mode-only")

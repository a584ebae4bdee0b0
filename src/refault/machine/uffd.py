"""The userfaultfd ABI in pure Python: open one, read it, answer it.

Nothing here knows what a page of refault is or where its bytes come from: this is the
kernel's interface, made safe to call, and nothing more.
"""

# Some facts about userfaultfd
# ----------------------------
#
# A userfaultfd is a promise.  Whoever opens one and registers a range of its own memory
# with it says to the kernel: if a thread touches a page of this range and finds it
# missing (or present in the page cache but not mapped, or write-protected), do not decide
# for yourself what that means.  Put the thread to sleep, write 32 bytes about it into this
# file descriptor, and wait until somebody has answered.
#
# The descriptor belongs to an *address space*, not to a process.  It can be sent over a
# socket, and whoever holds it answers for the process that opened it: all addresses in all
# ioctls are addresses of the opener.  With one exception: the source of COPY is read from
# the memory of the caller.  That is all the magic that a pager in another process needs.
#
#
# A message is not a request
# --------------------------
#
# It is tempting to think of the descriptor as a queue of requests, each to be answered
# once.  It is neither.  A thread that sleeps in a fault is woken by a resolution, by a bare
# WAKE, by a signal, by the end of the descriptor; it does not look at what woke it.  It
# goes back to the beginning, and looks at the page table.  If the page is there, it goes
# on.  If not, it sleeps again, and queues *another message*.  So:
#
# - ten bare WAKEs give eleven messages for one touch of one page;
# - four threads that touch one page give four messages, and one COPY ends them all;
# - one store can need two answers of different kinds: the page is missing, then (because
#   the answer mapped it write-protected) it is protected.  Two messages, three tries, one
#   exception of the processor;
# - a message can be read after its page has been resolved;
# - poll can say that there is something to read, and then there is nothing;
# - a thread in a *system call* that touches a missing page while a non-fatal signal is
#   pending does not sleep at all: it spins through fault and retry, and queues tens of
#   thousands of messages, until somebody resolves the page.
#
# A message means "somebody was here", and nothing else.  Do not count them.
#
# read() hands out faults before other events, even if the event came first.
#
# Whoever asks for EVENT_REMAP and EVENT_UNMAP gets both of one mremap: the move, and then the
# unmapping of the addresses that it left.
#
#
# Who wakes the sleepers
# ----------------------
#
# An ioctl that succeeds wakes exactly the bytes that it resolved.  An ioctl that fails
# wakes *nobody*.  The trap is EEXIST.  A page is missing, thread A faults, and before the
# answer arrives another thread's answer has mapped the page.  COPY says EEXIST: there is
# nothing left to do.  But A may have been queued between that answer's wake and ours, and
# it sleeps; all that it needs is to be told to look again.  So "exists already" is always
# followed by a WAKE.  Too many wakes cost a retry each; one too few is a hang.
#
# Also silent: munmap, mprotect, MADV_DONTNEED, and a hole punched under a sleeper;
# UNREGISTER, if the range was not registered for missing pages.  UFFDIO_WAKE works
# on ranges that are registered no longer, and even on ranges that are not mapped.
#
# WRITEPROTECT wakes when it removes protection, and never when it adds it.
#
#
# How an ioctl over a range fails
# -------------------------------
#
# The range operations (COPY, CONTINUE, ZEROPAGE, POISON, MOVE) work page by page, and stop
# at the first page that they cannot do.  If that is the first page of all, errno says why.
# If not, errno says EAGAIN, the out field of the argument says how many *bytes* were done
# (and those have been woken), and why it stopped shows only when one asks again from there.
# So success needs no look at the out field: it is then the whole length.
#
# EAGAIN has a second meaning: the address space is being changed (a fork, mremap or
# madvise whose event has not been read, or whose sender has not run since).  Nothing was
# done, and the out field is -EAGAIN, or, on kernels before about 6.15, still what the
# caller left in it.  And if the process is gone, the field is not written at all.
# Hence the rule: decide by errno; set the field to 0 before the call; a value that is not
# positive means that nothing was done.
#
#   errno   of            means
#   EEXIST  all           the first page is mapped already
#   EAGAIN  all           partial progress, or none: see above
#   ENOENT  all           no such range: unmapped, not registered, or it crosses a mapping
#   ESRCH   all           the process is gone
#   EFAULT  COPY          the source cannot be read, or the target lies behind the end of
#                         its file
#   EFAULT  CONTINUE      the page cache has no page there: nothing to continue with
#   EINVAL  all           not aligned to pages, unknown mode, or a protected mapping was
#                         wanted of a range that is not registered for it
#
#
# The end
# -------
#
# When the *last* copy of the descriptor is closed (duplicated, inherited and sent ones
# count), the registration is gone, everyone is woken, and a thread that was waiting for
# data gets a page of zeros.  It is not told.  So the process that must never see such
# zeros keeps a copy for itself.
#
# An ordinary fork() gives the child the memory without the registration.
#
#
# Who may
# -------
#
# Three doors.  /dev/userfaultfd (since Linux 6.1), a device with ordinary permissions.
# The system call, for CAP_SYS_PTRACE or when vm.unprivileged_userfaultfd is 1.  And the
# system call with UFFD_USER_MODE_ONLY, for everybody; but then only faults of user code
# are served, and a system call that touches a missing page fails with EFAULT, without a
# message.
#
# A descriptor does nothing before UFFDIO_API, and UFFDIO_API can be done once.  Asked for
# no features, it answers with all that the kernel has, and enables none; asked for one that
# the kernel lacks, it fails.  To ask first and choose then, one needs two descriptors.
#
# poll on a descriptor that was opened without O_NONBLOCK reports an error for ever.

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, ENOSYS, EPERM, ESRCH
from fcntl import ioctl
from struct import Struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ..errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = [
    "ALL_FEATURES",
    "COPY_DONTWAKE",
    "COPY_WP",
    "CONTINUE_DONTWAKE",
    "CONTINUE_WP",
    "DEFAULT_FLAGS",
    "DEVICE",
    "DONTWAKE",
    "EVENT_FORK",
    "EVENT_PAGEFAULT",
    "EVENT_REMAP",
    "EVENT_REMOVE",
    "EVENT_UNMAP",
    "FAULT_MINOR",
    "FAULT_WP",
    "FAULT_WRITE",
    "FEATURES",
    "FEATURE_EVENT_FORK",
    "FEATURE_EVENT_REMAP",
    "FEATURE_EVENT_REMOVE",
    "FEATURE_EVENT_UNMAP",
    "FEATURE_EXACT_ADDRESS",
    "FEATURE_MINOR_HUGETLBFS",
    "FEATURE_MINOR_SHMEM",
    "FEATURE_MISSING_HUGETLBFS",
    "FEATURE_MISSING_SHMEM",
    "FEATURE_MOVE",
    "FEATURE_PAGEFAULT_FLAG_WP",
    "FEATURE_POISON",
    "FEATURE_SIGBUS",
    "FEATURE_THREAD_ID",
    "FEATURE_WP_ASYNC",
    "FEATURE_WP_HUGETLBFS_SHMEM",
    "FEATURE_WP_UNPOPULATED",
    "MESSAGE_SIZE",
    "MODE_MINOR",
    "MODE_MISSING",
    "MODE_WP",
    "MOVE_ALLOW_SRC_HOLES",
    "MOVE_DONTWAKE",
    "POISON_DONTWAKE",
    "UFFD_USER_MODE_ONLY",
    "WRITEPROTECT_DONTWAKE",
    "WRITEPROTECT_WP",
    "ZEROPAGE_DONTWAKE",
    "Again",
    "Door",
    "Feature",
    "Message",
    "Opened",
    "PageAbsent",
    "ProcessGone",
    "RangeGone",
    "Userfaultfd",
    "feature_names",
    "negotiate",
    "open_door",
    "open_userfaultfd",
    "supported_features",
]

# --- numbers (the same on x86_64 and arm64, but for the system call) -----------------------

_SYSCALLS: Final = {"x86_64": 323, "amd64": 323, "aarch64": 282, "arm64": 282}

DEVICE: Final = "/dev/userfaultfd"
USERFAULTFD_IOC_NEW: Final = 0x0000AA00

UFFD_API: Final = 0xAA
UFFD_USER_MODE_ONLY: Final = 1

UFFDIO_API: Final = 0xC018AA3F
UFFDIO_REGISTER: Final = 0xC020AA00
UFFDIO_UNREGISTER: Final = 0x8010AA01
UFFDIO_WAKE: Final = 0x8010AA02
UFFDIO_COPY: Final = 0xC028AA03
UFFDIO_ZEROPAGE: Final = 0xC020AA04
UFFDIO_MOVE: Final = 0xC028AA05
UFFDIO_WRITEPROTECT: Final = 0xC018AA06
UFFDIO_CONTINUE: Final = 0xC020AA07
UFFDIO_POISON: Final = 0xC020AA08

EVENT_PAGEFAULT: Final = 0x12
EVENT_FORK: Final = 0x13
EVENT_REMAP: Final = 0x14
EVENT_REMOVE: Final = 0x15
EVENT_UNMAP: Final = 0x16

FAULT_WRITE: Final = 1
FAULT_WP: Final = 2
FAULT_MINOR: Final = 4

MODE_MISSING: Final = 1
MODE_WP: Final = 2
MODE_MINOR: Final = 4

DONTWAKE: Final = 1
"""Wake nobody: COPY, CONTINUE, ZEROPAGE, POISON and MOVE (not WRITEPROTECT)."""
COPY_DONTWAKE: Final = 1
COPY_WP: Final = 2
CONTINUE_DONTWAKE: Final = 1
CONTINUE_WP: Final = 2
"""Linux 6.4; no feature bit tells."""
ZEROPAGE_DONTWAKE: Final = 1
POISON_DONTWAKE: Final = 1
MOVE_DONTWAKE: Final = 1
MOVE_ALLOW_SRC_HOLES: Final = 2
WRITEPROTECT_WP: Final = 1
WRITEPROTECT_DONTWAKE: Final = 2

FEATURE_PAGEFAULT_FLAG_WP: Final = 1 << 0
FEATURE_EVENT_FORK: Final = 1 << 1
FEATURE_EVENT_REMAP: Final = 1 << 2
FEATURE_EVENT_REMOVE: Final = 1 << 3
FEATURE_MISSING_HUGETLBFS: Final = 1 << 4
FEATURE_MISSING_SHMEM: Final = 1 << 5
FEATURE_EVENT_UNMAP: Final = 1 << 6
FEATURE_SIGBUS: Final = 1 << 7
FEATURE_THREAD_ID: Final = 1 << 8
FEATURE_MINOR_HUGETLBFS: Final = 1 << 9
FEATURE_MINOR_SHMEM: Final = 1 << 10
FEATURE_EXACT_ADDRESS: Final = 1 << 11
FEATURE_WP_HUGETLBFS_SHMEM: Final = 1 << 12
FEATURE_WP_UNPOPULATED: Final = 1 << 13
FEATURE_POISON: Final = 1 << 14
FEATURE_WP_ASYNC: Final = 1 << 15
FEATURE_MOVE: Final = 1 << 16


class Feature(NamedTuple):
    """A userfaultfd feature bit and the first Linux that has it."""

    bit: int
    name: str
    since: str


FEATURES: Final = (
    Feature(FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP", "5.7"),
    Feature(FEATURE_EVENT_FORK, "EVENT_FORK", "4.11"),
    Feature(FEATURE_EVENT_REMAP, "EVENT_REMAP", "4.11"),
    Feature(FEATURE_EVENT_REMOVE, "EVENT_REMOVE", "4.11"),
    Feature(FEATURE_MISSING_HUGETLBFS, "MISSING_HUGETLBFS", "4.11"),
    Feature(FEATURE_MISSING_SHMEM, "MISSING_SHMEM", "4.11"),
    Feature(FEATURE_EVENT_UNMAP, "EVENT_UNMAP", "4.11"),
    Feature(FEATURE_SIGBUS, "SIGBUS", "4.14"),
    Feature(FEATURE_THREAD_ID, "THREAD_ID", "4.14"),
    Feature(FEATURE_MINOR_HUGETLBFS, "MINOR_HUGETLBFS", "5.13"),
    Feature(FEATURE_MINOR_SHMEM, "MINOR_SHMEM", "5.14"),
    Feature(FEATURE_EXACT_ADDRESS, "EXACT_ADDRESS", "5.18"),
    Feature(FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM", "5.19"),
    Feature(FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED", "6.4"),
    Feature(FEATURE_POISON, "POISON", "6.6"),
    Feature(FEATURE_WP_ASYNC, "WP_ASYNC", "6.7"),
    Feature(FEATURE_MOVE, "MOVE", "6.8"),
)
ALL_FEATURES: Final = (1 << 17) - 1

_API = Struct("=QQQ")
_RANGE = Struct("=QQ")
_REGISTER = Struct("=QQQQ")
_SOURCED = Struct("=QQQQq")  # copy, move: dst, src, length, mode, out
_PLAIN = Struct("=QQQq")  # continue, zeropage, poison: start, length, mode, out
_WRITEPROTECT = Struct("=QQQ")
_SIGNED = Struct("=q")
_MESSAGE = Struct("=B7xQQQ")

MESSAGE_SIZE: Final = _MESSAGE.size
_EAGAIN_TRIES: Final = 8

_pack_sourced = _SOURCED.pack_into
_pack_plain = _PLAIN.pack_into
_pack_writeprotect = _WRITEPROTECT.pack_into
_pack_range = _RANGE.pack_into
_unpack_messages = _MESSAGE.iter_unpack
_unpack_message = _MESSAGE.unpack_from

Message: TypeAlias = tuple[int, int, int, int]
"""``(event, flags, address, tid)``; see `Userfaultfd.read_messages`."""


# --- errors ---------------------------------------------------------------------------------


class RangeGone(KernelError):
    """The range is not mapped or not registered (any longer).

    Parameters
    ----------
    number
        errno of the ioctl.
    message
        What was asked for.
    resolved
        Bytes from the start of the range that were resolved before.
    """

    def __init__(self, number: int, message: str, *, resolved: int = 0) -> None:
        super().__init__(number, message)
        self.resolved = resolved


class ProcessGone(RangeGone):
    """The process whose memory it was is gone."""


class PageAbsent(KernelError):
    """CONTINUE: the page cache has no page there.

    Parameters
    ----------
    number
        errno of the ioctl.
    message
        What was asked for.
    resolved
        Bytes from the start of the range that were resolved before; the page that is
        absent begins there.
    """

    def __init__(self, number: int, message: str, *, resolved: int = 0) -> None:
        super().__init__(number, message)
        self.resolved = resolved


class Again(KernelError, BlockingIOError):
    """The address space is being changed: ask again a little later.

    Parameters
    ----------
    number
        errno of the ioctl.
    message
        What was asked for.
    resolved
        Bytes from the start of the range that were resolved; go on from there.
    """

    def __init__(self, number: int, message: str, *, resolved: int = 0) -> None:
        super().__init__(number, message)
        self.resolved = resolved


# --- opening --------------------------------------------------------------------------------

Door: TypeAlias = Literal["device", "syscall", "user-mode-only"]
DEFAULT_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK


class Opened(NamedTuple):
    """A userfaultfd that has been opened and has agreed on its features.

    Attributes
    ----------
    fd
        The descriptor; the caller closes it.
    features
        ``UFFD_FEATURE_*`` bits that are enabled.
    ioctls
        Bit mask of the ioctls that the descriptor itself answers.
    user_mode_only
        Only faults of user code are served: a system call that touches a missing page
        fails with EFAULT.
    how
        Which door let us in.
    """

    fd: int
    features: int
    ioctls: int
    user_mode_only: bool
    how: Door


def _syscall_number() -> int:
    if sys.platform != "linux":
        raise KernelError(
            ENOSYS, f"userfaultfd exists on Linux only, this is {sys.platform}; run: refault doctor"
        )
    machine = os.uname().machine.lower()
    number = _SYSCALLS.get(machine)
    if number is None or sys.maxsize < 1 << 32:
        bits = 64 if sys.maxsize > 1 << 32 else 32
        raise KernelError(
            ENOSYS,
            f"refault knows userfaultfd on 64-bit x86_64 and arm64, not on {machine} "
            f"({bits}-bit Python); run: refault doctor",
        )
    return number


def open_door(door: Door, flags: int = DEFAULT_FLAGS) -> int:
    """Open a bare userfaultfd in one given way.

    Parameters
    ----------
    door
        ``"device"``, ``"syscall"`` or ``"user-mode-only"``.
    flags
        ``O_CLOEXEC``, ``O_NONBLOCK``, `UFFD_USER_MODE_ONLY`.

    Returns
    -------
    int
        The descriptor; it does nothing yet, see `negotiate`.

    Raises
    ------
    OSError
        What the kernel said.
    KernelError
        Not Linux, or a processor we do not know.
    """
    number = _syscall_number()
    if door == "device":
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            return ioctl(device, USERFAULTFD_IOC_NEW, flags)
        finally:
            os.close(device)
    if door == "user-mode-only":
        flags |= UFFD_USER_MODE_ONLY
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = (ctypes.c_long, ctypes.c_long)
    fd = int(syscall(number, flags))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "userfaultfd(2)")
    return fd


def negotiate(fd: int, features: int) -> tuple[int, int]:
    """Agree with the kernel on `features` of a fresh userfaultfd; possible once.

    Returns
    -------
    features, ioctls
        Feature bits: with ``features=0`` all that the kernel has (none is enabled),
        otherwise at least those asked for.

    Raises
    ------
    OSError
        EINVAL: the kernel lacks one of them, or it was asked before.  EPERM: a feature
        needs a privilege.
    """
    argument = bytearray(_API.pack(UFFD_API, features, 0))
    ioctl(fd, UFFDIO_API, argument)
    _, features, ioctls = _API.unpack(argument)
    return features, ioctls


def feature_names(features: int) -> list[str]:
    """Name each bit of `features` and the kernel that brought it."""
    return [f"{name} (since Linux {since})" for bit, name, since in FEATURES if features & bit]


def _open_first(flags: int) -> tuple[int, Door]:
    doors: tuple[Door, ...] = ("device", "syscall", "user-mode-only")
    refusals = []
    for door in doors:
        try:
            return open_door(door, flags), door
        except KernelError:
            raise
        except OSError as error:
            refusals.append(f"{door}: {error.strerror}")
            code = error.errno or 0
    raise KernelError(
        code,
        f"the kernel gives us no userfaultfd ({'; '.join(refusals)}); run: refault doctor",
    )


def supported_features(door: Door) -> int:
    """Feature bits that the kernel offers; opens and closes a userfaultfd to ask."""
    fd = open_door(door)
    try:
        return negotiate(fd, 0)[0]
    finally:
        os.close(fd)


def open_userfaultfd(
    features_wanted: int = 0, features_required: int = 0, *, flags: int = DEFAULT_FLAGS
) -> Opened:
    """Open a userfaultfd for this process in the best way that it may.

    Parameters
    ----------
    features_wanted
        Feature bits to enable if the kernel has them.
    features_required
        Feature bits without which there is no use in going on.
    flags
        `UFFD_USER_MODE_ONLY` may be added to serve user code only.

    Returns
    -------
    Opened
        The descriptor and what it can do.

    Raises
    ------
    KernelError
        None may be opened, or the kernel lacks required features; the message names
        each of them and the kernel that brought it.
    """
    probe, door = _open_first(flags)
    try:
        offered, _ = negotiate(probe, 0)
    except OSError as error:
        raise KernelError(
            error.errno or 0,
            f"the kernel does not speak userfaultfd API {UFFD_API:#x} ({error.strerror}); "
            f"run: refault doctor",
        ) from error
    finally:
        os.close(probe)
    if missing := features_required & ~offered:
        names = feature_names(missing) or [f"unknown bits {missing:#x}"]
        raise KernelError(
            EINVAL,
            f"this kernel (Linux {os.uname().release}) lacks userfaultfd features that refault "
            f"needs: {', '.join(names)}; run: refault doctor",
        )
    try:
        fd = open_door(door, flags)
    except KernelError:
        raise
    except OSError as error:
        raise KernelError(
            error.errno or 0,
            f"the kernel gave us one userfaultfd and refuses a second ({error.strerror}); "
            f"run: refault doctor",
        ) from error
    try:
        features, ioctls = negotiate(fd, (features_wanted | features_required) & offered)
    except OSError as error:
        os.close(fd)
        asked = ", ".join(feature_names(features_wanted | features_required))
        raise KernelError(
            error.errno or 0,
            f"the kernel refuses the userfaultfd features {asked} ({error.strerror}); EVENT_FORK "
            f"needs CAP_SYS_PTRACE; run: refault doctor",
        ) from error
    except BaseException:
        os.close(fd)
        raise
    user_mode_only = door == "user-mode-only" or bool(flags & UFFD_USER_MODE_ONLY)
    return Opened(fd, features, ioctls, user_mode_only, door)


# --- using ----------------------------------------------------------------------------------


class Userfaultfd:
    """The operations on a userfaultfd, of this or of any other process.

    The argument block of the ioctls is allocated once and used again: so an object of
    this class is for *one* thread, the loop that answers faults.  Another thread makes
    its own `Userfaultfd` around the same descriptor; the kernel does not mind.

    Parameters
    ----------
    fd
        The descriptor, after `negotiate`.  It stays the caller's: it is closed only by
        `close` or by leaving a ``with`` block.
    page_size
        What EEXIST skips: the page size of the memory behind it.

    Attributes
    ----------
    on_again
        Called when the kernel says that the address space is being changed, before it is asked
        again.  It may wait for whoever reads messages; if that is us, they are to be read here.

    Notes
    -----
    The range operations return when the *whole* range is resolved and its sleepers are
    woken (without `DONTWAKE`): partial progress is resumed, and a page that is mapped
    already is skipped, and woken; it keeps the protection that it has.  Each raises

    - `RangeGone`: it is not mapped or not registered;
    - `ProcessGone`: nor will it ever be;
    - `Again`: the address space is being changed, and was so after several tries;
    - `KernelError` for anything else.

    The first three say in ``resolved`` how far the operation got.
    """

    __slots__ = ("_plain", "_range", "_sourced", "_writeprotect", "fd", "on_again", "page_size")

    def __init__(self, fd: int, *, page_size: int = mmap.PAGESIZE) -> None:
        self.fd = fd
        self.page_size = page_size
        self.on_again: Callable[[], None] | None = None
        self._sourced = bytearray(_SOURCED.size)
        self._plain = bytearray(_PLAIN.size)
        self._writeprotect = bytearray(_WRITEPROTECT.size)
        self._range = bytearray(_RANGE.size)

    def __repr__(self) -> str:
        return f"<Userfaultfd fd={self.fd}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for epoll."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def read_messages(self, buffer: bytearray | memoryview) -> list[Message]:
        """Read what is there, at most as many messages as fit in `buffer`.

        Parameters
        ----------
        buffer
            Working space, a multiple of `MESSAGE_SIZE` bytes.

        Returns
        -------
        list of (event, flags, address, tid)
            Empty if there is nothing to read.  For `EVENT_PAGEFAULT`, `flags` are
            ``FAULT_*`` bits and `tid` is 0 without ``FEATURE_THREAD_ID``.  For other
            events the last three are: ``EVENT_FORK`` (new descriptor, 0, 0),
            ``EVENT_REMAP`` (from, to, length), ``EVENT_REMOVE`` and ``EVENT_UNMAP``
            (start, end, 0).
        """
        try:
            size = os.readv(self.fd, (buffer,))
        except BlockingIOError:
            return []
        except OSError as error:
            raise KernelError(
                error.errno or 0,
                f"userfaultfd {self.fd} cannot be read ({error.strerror}): the buffer holds no "
                f"whole message, or the descriptor never agreed on its features",
            ) from error
        if size == MESSAGE_SIZE:
            return [_unpack_message(buffer)]
        with memoryview(buffer) as view, view[:size] as messages:
            return list(_unpack_messages(messages))

    def register(self, start: int, length: int, mode: int) -> int:
        """Have faults of `mode` in the range reported; returns the bits of its ioctls."""
        argument = bytearray(_REGISTER.pack(start, length, mode, 0))
        try:
            ioctl(self.fd, UFFDIO_REGISTER, argument)
        except OSError as error:
            hint = _REGISTER_HINTS.get(error.errno or 0, "run: refault doctor")
            raise _translate("REGISTER", start, length, error, 0, hint) from error
        return int(_REGISTER.unpack(argument)[3])

    def unregister(self, start: int, length: int) -> None:
        """Have no more faults of the range reported, and wake who sleeps there."""
        _pack_range(self._range, 0, start, length)
        try:
            ioctl(self.fd, UFFDIO_UNREGISTER, self._range)
        except OSError as error:
            raise _translate("UNREGISTER", start, length, error, 0) from error
        # The kernel wakes only if the range was registered for missing pages.
        self.wake(start, length)

    def wake(self, start: int, length: int) -> None:
        """Have everyone who sleeps in the range look again; it need not be mapped."""
        _pack_range(self._range, 0, start, length)
        try:
            ioctl(self.fd, UFFDIO_WAKE, self._range)
        except OSError as error:
            raise _translate("WAKE", start, length, error, 0) from error

    def copy(self, dst: int, src_address: int, length: int, mode: int = 0) -> None:
        """Give missing pages a content, read from *our* memory at `src_address`."""
        argument = self._sourced
        _pack_sourced(argument, 0, dst, src_address, length, mode, 0)
        try:
            ioctl(self.fd, UFFDIO_COPY, argument)
        except OSError as error:
            self._go_on("COPY", UFFDIO_COPY, dst, src_address, length, mode, error)

    def continue_(self, start: int, length: int, mode: int = 0) -> None:
        """Map the pages that the page cache holds.

        Raises
        ------
        PageAbsent
            It does not hold them all.
        """
        argument = self._plain
        _pack_plain(argument, 0, start, length, mode, 0)
        try:
            ioctl(self.fd, UFFDIO_CONTINUE, argument)
        except OSError as error:
            self._go_on("CONTINUE", UFFDIO_CONTINUE, start, None, length, mode, error)

    def zeropage(self, start: int, length: int, mode: int = 0) -> None:
        """Give missing pages zeros."""
        _pack_plain(self._plain, 0, start, length, mode, 0)
        try:
            ioctl(self.fd, UFFDIO_ZEROPAGE, self._plain)
        except OSError as error:
            self._go_on("ZEROPAGE", UFFDIO_ZEROPAGE, start, None, length, mode, error)

    def poison(self, start: int, length: int, mode: int = 0) -> None:
        """Make every access to missing pages a SIGBUS (EFAULT in a system call)."""
        _pack_plain(self._plain, 0, start, length, mode, 0)
        try:
            ioctl(self.fd, UFFDIO_POISON, self._plain)
        except OSError as error:
            self._go_on("POISON", UFFDIO_POISON, start, None, length, mode, error)

    def poison_absent(self, start: int, length: int) -> None:
        """`poison` pages of a write-protected range that nobody can map meanwhile.

        A protected page of shared memory that is freed leaves a marker in the page table, and to
        POISON the page is there then (EEXIST).  To remove protection removes the marker; from
        a page that is present it would take the protection, and let writes through unseen.
        """
        self.write_protect(start, length, WRITEPROTECT_DONTWAKE)
        self.poison(start, length)

    def move(self, dst: int, src: int, length: int, mode: int = 0) -> None:
        """Move pages of private anonymous memory, both ranges of the opener.

        A page that `dst` has already stays, and so does that of `src`.  A hole in `src`
        is a `RangeGone` without `MOVE_ALLOW_SRC_HOLES`.
        """
        _pack_sourced(self._sourced, 0, dst, src, length, mode, 0)
        try:
            ioctl(self.fd, UFFDIO_MOVE, self._sourced)
        except OSError as error:
            self._go_on("MOVE", UFFDIO_MOVE, dst, src, length, mode, error)

    def write_protect(self, start: int, length: int, mode: int = WRITEPROTECT_WP) -> None:
        """Write-protect the range; with ``mode=0`` unprotect it, and wake."""
        argument = self._writeprotect
        _pack_writeprotect(argument, 0, start, length, mode)
        try:
            ioctl(self.fd, UFFDIO_WRITEPROTECT, argument)
            return
        except OSError as error:
            refusal = error
        for _ in range(_EAGAIN_TRIES):
            if refusal.errno != EAGAIN:
                break
            if self.on_again is not None:
                self.on_again()
            try:
                ioctl(self.fd, UFFDIO_WRITEPROTECT, argument)
                return
            except OSError as error:
                refusal = error
        raise _translate("WRITEPROTECT", start, length, refusal, 0) from refusal

    def _go_on(
        self,
        name: str,
        request: int,
        start: int,
        source: int | None,
        length: int,
        mode: int,
        error: OSError,
    ) -> None:
        """Resume an operation whose first ioctl failed, up to its end or a real error."""
        done = 0
        patience = _EAGAIN_TRIES
        skipped: list[tuple[int, int]] = []
        argument = self._plain if source is None else self._sourced
        field = len(argument) - 8
        try:
            while True:
                if error.errno == EAGAIN:
                    progress = _SIGNED.unpack_from(argument, field)[0]
                    if progress > 0:
                        done += progress
                        patience = _EAGAIN_TRIES
                    elif patience:
                        patience -= 1
                        if self.on_again is not None:
                            self.on_again()
                    else:
                        raise _translate(name, start, length, error, done) from error
                elif error.errno == EEXIST:
                    at = start + done
                    if skipped and sum(skipped[-1]) == at:
                        skipped[-1] = (skipped[-1][0], skipped[-1][1] + self.page_size)
                    else:
                        skipped.append((at, self.page_size))
                    done += self.page_size
                else:
                    raise _translate(name, start, length, error, done) from error
                if done >= length:
                    return
                if source is None:
                    _pack_plain(argument, 0, start + done, length - done, mode, 0)
                else:
                    _pack_sourced(argument, 0, start + done, source + done, length - done, mode, 0)
                try:
                    ioctl(self.fd, request, argument)
                    return
                except OSError as again:
                    error = again
        finally:
            if not mode & DONTWAKE:
                for at, size in skipped:
                    self.wake(at, size)


_REGISTER_HINTS: Final = {
    EINVAL: "align it to pages, map it first, and ask for modes that its memory knows",
    EBUSY: "another userfaultfd has it already: unregister it there",
    EPERM: "map the file from a descriptor that is open for writing",
    ENOMEM: "the process has too many mappings: raise vm.max_map_count; run: refault doctor",
}


def _translate(
    name: str, start: int, length: int, error: OSError, resolved: int, hint: str = ""
) -> KernelError:
    number = error.errno or 0
    what = f"{name} of {length} bytes at {start:#x}"
    if resolved:
        what += f", after {resolved} bytes"
    if number == ENOENT:
        return RangeGone(number, f"{what}: not mapped, or not registered", resolved=resolved)
    if number == ESRCH:
        return ProcessGone(number, f"{what}: the process is gone", resolved=resolved)
    if number == EAGAIN:
        return Again(number, f"{what}: the address space is changing, ask again", resolved=resolved)
    if number == EFAULT and name == "CONTINUE":
        return PageAbsent(number, f"{what}: the page cache has no page there", resolved=resolved)
    if number == ENOMEM and not hint:
        hint = "no memory: lower `resident`, or raise the memory limit of the container"
    return KernelError(number, f"{what}: {error.strerror}" + (f"; {hint}" if hint else ""))

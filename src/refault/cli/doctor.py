"""Look at this machine: what refault needs, what is missing, and how to get it.

Exit status 1 if something is missing that refault cannot do without.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from ..machine.uffd import Userfaultfd

__all__ = ["Check", "checks", "prepare_parser", "render", "run"]

Status: TypeAlias = Literal["ok", "warn", "fail"]

OLDEST: Final = (6, 4)
"""UFFDIO_CONTINUE can map a page write-protected since Linux 6.4; no feature bit tells."""

UPGRADE: Final = "Use a newer kernel: Linux 6.8 or later has all that refault can use."
SECCOMP: Final = """\
If this is a container, let it pass the device, or allow the system call:
  docker run --device /dev/userfaultfd ...
  docker run --security-opt seccomp=refault.json ...
where refault.json is the default profile of the container engine with this added to "syscalls":
  {"names": ["userfaultfd"], "action": "SCMP_ACT_ALLOW"}
Kubernetes: put it into the seccomp directory of the kubelet, and into the securityContext
  seccompProfile: {type: Localhost, localhostProfile: refault.json}"""
SYSCTL: Final = """\
Either allow the system call to everybody:
  sudo sysctl -w vm.unprivileged_userfaultfd=1
  echo vm.unprivileged_userfaultfd=1 | sudo tee /etc/sysctl.d/60-userfaultfd.conf
or give the program CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE)."""
DEVICE_RIGHTS: Final = """\
Give the device to a group, now and after the next boot, and join it (then log in again):
  sudo groupadd --system --force userfaultfd
  sudo chgrp userfaultfd /dev/userfaultfd && sudo chmod 660 /dev/userfaultfd
  echo 'KERNEL=="userfaultfd", GROUP="userfaultfd", MODE="0660"' | \
sudo tee /etc/udev/rules.d/60-userfaultfd.rules
  sudo usermod -aG userfaultfd "$USER"
In a container: docker run --device /dev/userfaultfd --group-add NUMBER_OF_THAT_GROUP"""
DEVICE_ABSENT: Final = """\
On Linux 6.1 and later the device exists on the host; hand it to the container:
  docker run --device /dev/userfaultfd ...
On older kernels use the system call:
  sudo sysctl -w vm.unprivileged_userfaultfd=1"""
USER_MODE_ONLY: Final = """\
Arrays work, but a system call on a page that is not resident fails with EFAULT ("Bad address"): \
array.tofile(file), file.readinto(array), socket.send(array). Without more rights, make the pages \
resident first:
  with refault.region(array).pin(slice): array[slice].tofile(file)
To be rid of it, open one of the two doors above (device or system call)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the machine should have."""

    name: str
    status: Status
    found: str
    fix: str = ""
    """What to do; empty if `status` is "ok".  Lines that begin with two spaces are commands."""


def checks() -> list[Check]:
    """Look at everything that refault needs from this machine.

    Nothing is changed, and nothing that is refused raises: a check that itself breaks is
    reported as a failure.

    Returns
    -------
    list of Check
        In the order in which one would mend them.
    """
    found = list(_guarded("operating system", _system))
    if any(check.status == "fail" for check in found):
        return [*found, *_guarded("Python", _python)]
    for name, look in (
        ("userfaultfd", _userfaultfd),
        ("memfd", _memfd),
        ("pidfd_open", _pidfd),
        ("RWF_NOWAIT", _rwf_nowait),
        ("PAGEMAP_SCAN", _pagemap_scan),
        ("ptrace", _ptrace),
        ("limits", _limits),
        ("temporary directory", _temporary),
        ("Python", _python),
        ("native library", _native),
        ("scheduling", _scheduling),
    ):
        found += _guarded(name, look)
    return found


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from look()
    except Exception as error:
        yield Check(
            name,
            "fail",
            f"the check itself failed: {type(error).__name__}: {error}",
            "Please report this, with the output of: refault doctor --json",
        )


# --- the system -----------------------------------------------------------------------------


def _system() -> Iterator[Check]:
    if sys.platform != "linux":
        yield Check(
            "operating system",
            "fail",
            sys.platform,
            "refault needs Linux: use a Linux machine, a virtual machine, or WSL 2.",
        )
        return
    name = os.uname()
    yield Check("operating system", "ok", f"Linux {name.release}")
    bits = 64 if sys.maxsize > 1 << 32 else 32
    known = name.machine in {"x86_64", "aarch64"} and bits == 64
    yield Check(
        "architecture",
        "ok" if known else "fail",
        f"{name.machine}, {bits}-bit Python",
        "" if known else "refault needs 64-bit Python on x86_64 or arm64 (aarch64).",
    )
    version = _version(name.release)
    # Write protection came to arm64 later.
    oldest = (6, 10) if name.machine == "aarch64" else OLDEST
    old = version < oldest
    yield Check(
        "kernel version",
        "warn" if old else "ok",
        ".".join(map(str, version)) + (f" is older than {oldest[0]}.{oldest[1]}" if old else ""),
        f"{UPGRADE} What counts is the check 'page fault' below." if old else "",
    )


def _version(release: str) -> tuple[int, int]:
    numbers = release.replace("-", ".").replace("+", ".").split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError):
        return 0, 0


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _reason(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    return f"{name} ({error.strerror})" if name else str(error)


# --- userfaultfd ----------------------------------------------------------------------------


def _userfaultfd() -> Iterator[Check]:
    from ..machine import uffd

    doors: tuple[uffd.Door, ...] = ("device", "syscall", "user-mode-only")
    refused: dict[str, OSError] = {}
    for door in doors:
        try:
            os.close(uffd.open_door(door))
        except OSError as error:
            refused[door] = error
    fully = "device" not in refused or "syscall" not in refused
    none = len(refused) == len(doors)
    bad: Status = "ok" if fully else "fail" if none else "warn"
    yield _device(refused.get("device"), bad)
    yield _syscall(refused.get("syscall"), refused.get("user-mode-only"), bad)
    if none:
        yield Check(
            "userfaultfd",
            "fail",
            "no way to open one: refault cannot work here",
            "Open one of the two doors above (device or system call).",
        )
        return
    if fully:
        yield Check("userfaultfd", "ok", "serves user code and system calls")
    else:
        yield Check("userfaultfd", "warn", "serves user code only", USER_MODE_ONLY)
    door = next(door for door in doors if door not in refused)
    yield from _features(door)
    yield from _guarded("page fault", _page_fault)


def _device(error: OSError | None, bad: Status) -> Check:
    name = "/dev/userfaultfd"
    if error is None:
        return Check(name, "ok", "may be opened")
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        found, fix = "not there", DEVICE_ABSENT
    elif error.errno == errno.EPERM:
        found, fix = f"{_reason(error)}: not for this container", DEVICE_ABSENT
    else:
        found, fix = _reason(error), DEVICE_RIGHTS
        with contextlib.suppress(OSError):
            status = os.stat(name)
            found += f", mode {status.st_mode & 0o777:o}, owner {status.st_uid}:{status.st_gid}"
    if bad == "ok":
        return Check(name, "ok", f"{found}; not needed, the system call is allowed")
    return Check(name, bad, found, fix)


def _syscall(error: OSError | None, user_mode_only: OSError | None, bad: Status) -> Check:
    name = "system call userfaultfd"
    setting = _read("/proc/sys/vm/unprivileged_userfaultfd")
    if error is None:
        why = "for everybody" if setting == "1" else "to this user (CAP_SYS_PTRACE)"
        return Check(name, "ok", f"allowed {why}")
    if error.errno == errno.ENOSYS:
        found = "ENOSYS: the kernel was built without it, or a seccomp filter hides it"
        fix = f"The kernel needs CONFIG_USERFAULTFD=y.\n{SECCOMP}"
    elif user_mode_only is not None:
        filtered = "Seccomp:\t2" in (_read("/proc/self/status") or "")
        by = "a seccomp filter is active" if filtered else "a security module, or a filter"
        found, fix = f"{_reason(user_mode_only)} even for user-mode-only: {by}", SECCOMP
        if error.errno == errno.EPERM and setting == "0":
            fix += f"\nThen, for system calls on pages that are not resident:\n{SYSCTL}"
    else:
        found = f"{_reason(error)}: vm.unprivileged_userfaultfd is {setting or 'not there'}"
        fix = f"{SYSCTL}\nroot in a container has no CAP_SYS_PTRACE unless it is given."
    if bad == "ok":
        return Check(name, "ok", f"{found}; not needed, the device is open to us")
    return Check(name, bad, found, fix)


def _features(door: Literal["device", "syscall", "user-mode-only"]) -> Iterator[Check]:
    from ..machine import uffd

    offered = uffd.supported_features(door)
    needed = {
        "PAGEFAULT_FLAG_WP": "changed pages are not noticed",
        "MISSING_SHMEM": "shared memory cannot be lazy",
        "MINOR_SHMEM": "filled pages cannot be mapped",
        "WP_HUGETLBFS_SHMEM": "changed pages of shared memory are not noticed",
        "THREAD_ID": "the pager does not know who waits",
        "EXACT_ADDRESS": "the pager does not know which byte was touched",
    }
    useful = {
        "WP_UNPOPULATED": "pages that are not there cannot be protected in advance",
        "POISON": "pages given up for good cannot be made to fail for every thread at once",
    }
    for name, lost in (needed | useful).items():
        feature = next(feature for feature in uffd.FEATURES if feature.name == name)
        title = f"feature {name}"
        if offered & feature.bit:
            yield Check(title, "ok", f"there (since Linux {feature.since})")
            continue
        fix = f"Linux {feature.since} brought it. {UPGRADE}"
        if _version(os.uname().release) >= _version(feature.since):
            fix = f"This kernel was built without it, or does not have it on this processor. {fix}"
        yield Check(title, "fail" if name in needed else "warn", f"missing: {lost}", fix)


def _page_fault() -> Iterator[Check]:
    """Serve one real fault: fill, map protected, be told of the write, unprotect."""
    from ..machine import uffd

    name = "page fault"
    required = uffd.FEATURE_PAGEFAULT_FLAG_WP | uffd.FEATURE_MINOR_SHMEM
    page = mmap.PAGESIZE
    try:
        step = "open"
        opened = uffd.open_userfaultfd(0, required | uffd.FEATURE_WP_HUGETLBFS_SHMEM)
        step = "map"
        with uffd.Userfaultfd(opened.fd) as descriptor, _memory_file(page) as memory:
            mapping = mmap.mmap(memory, page)
            address = _address(mapping)
            step = "register"
            descriptor.register(address, page, uffd.MODE_MISSING | uffd.MODE_MINOR | uffd.MODE_WP)
            step = "first fault"
            # In a thread, by a C function: this gives up the GIL while it waits.
            writer = threading.Thread(
                target=ctypes.CDLL(None).memset,
                args=(ctypes.c_void_p(address), 1, ctypes.c_size_t(1)),
                daemon=True,
            )
            writer.start()
            try:
                _await(descriptor)
                step = "fill"
                os.pwrite(memory, b"\x02" * page, 0)
                step = "map it write-protected (Linux 6.4)"
                descriptor.continue_(address, page, uffd.CONTINUE_WP)
                step = "fault of the write"
                flags = _await(descriptor)
                if not flags & uffd.FAULT_WP:
                    raise OSError(errno.EPROTO, f"fault flags {flags:#x}")
                step = "unprotect"
                descriptor.write_protect(address, page, 0)
                step = "end"
                writer.join(2)
                if writer.is_alive() or os.pread(memory, 2, 0) != b"\x01\x02":
                    raise OSError(errno.EPROTO, "the write did not arrive")
            finally:
                descriptor.close()  # wakes the writer, whatever happened
                writer.join(2)
                if not writer.is_alive():
                    mapping.close()
    except OSError as error:
        yield Check(name, "fail", f"step '{step}' failed: {error}", UPGRADE)
        return
    yield Check(name, "ok", "a write to a missing page was served, and noticed")


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _await(descriptor: Userfaultfd) -> int:
    """Flags of the next message."""
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if poll.poll(2000):
        for _, flags, _, _ in descriptor.read_messages(bytearray(32)):
            return flags
    raise TimeoutError(errno.ETIMEDOUT, "the kernel told us of no page fault")


# --- the rest of the kernel -----------------------------------------------------------------


@contextlib.contextmanager
def _memory_file(size: int) -> Iterator[int]:
    memory = os.memfd_create("refault-doctor", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, size)
        yield memory
    finally:
        os.close(memory)


def _memfd() -> Iterator[Check]:
    keep_size, punch_hole = 1, 2
    page = mmap.PAGESIZE
    try:
        with _memory_file(2 * page) as memory:
            yield Check("memfd_create", "ok", "works")
            os.pwrite(memory, b"\x01" * 2 * page, 0)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
            if libc.fallocate(memory, keep_size | punch_hole, 0, page) < 0:
                code = ctypes.get_errno()
                reason = _reason(OSError(code, os.strerror(code)))
            elif os.fstat(memory).st_blocks * 512 > page or os.pread(memory, 1, 0) != b"\0":
                reason = "the page is still there"
            else:
                yield Check("fallocate PUNCH_HOLE", "ok", "works")
                return
    except OSError as error:
        yield Check("memfd_create", "fail", _reason(error), f"{_allow('memfd_create')}\n{UPGRADE}")
        return
    yield Check("fallocate PUNCH_HOLE", "fail", reason, f"{_allow('fallocate')}\n{UPGRADE}")


def _allow(syscall: str) -> str:
    return (
        "If this is a container, allow the system call in its seccomp profile:\n"
        f'  {{"names": ["{syscall}"], "action": "SCMP_ACT_ALLOW"}}'
    )


def _pidfd() -> Iterator[Check]:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        yield Check(
            "pidfd_open",
            "warn",
            f"{_reason(error)}: the pager sees the end of a client by its socket alone",
            f"{_allow('pidfd_open')}\n{UPGRADE}",
        )
        return
    yield Check("pidfd_open", "ok", "works")


def _rwf_nowait() -> Iterator[Check]:
    name = "RWF_NOWAIT"
    with tempfile.TemporaryFile() as file:
        file.write(b"\x01" * 4096)
        file.flush()
        try:
            os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError as error:
            yield Check(
                name,
                "warn",
                f"{_reason(error)} in {tempfile.gettempdir()}: each fault of a file on such a "
                f"file system is handed to a worker thread, even if it is cached",
                "Keep data on ext4, xfs, btrfs or tmpfs; network and overlay file systems may "
                "lack it. Nothing breaks without it.",
            )
            return
    yield Check(name, "ok", f"works in {tempfile.gettempdir()}")


def _pagemap_scan() -> Iterator[Check]:
    name = "PAGEMAP_SCAN"
    request, present = 0xC0606610, 8
    lost = "pages are looked up one by one"
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        memory[0] = 1
        start = _address(memory)
        room = ctypes.create_string_buffer(24)
        argument = bytearray(
            struct.pack(
                "=12Q",
                *(96, 0, start, start + mmap.PAGESIZE, 0, ctypes.addressof(room), 1, 0),
                *(0, present, 0, present),
            )
        )
        import fcntl

        try:
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(pagemap, request, argument)
            finally:
                os.close(pagemap)
        except OSError as error:
            yield Check(
                name,
                "warn",
                f"{_reason(error)}: {lost}",
                f"Linux 6.7 brought it; nothing breaks without it. {UPGRADE}",
            )
            return
    yield Check(name, "ok", "works")


def _ptrace() -> Iterator[Check]:
    name = "ptrace by the pager"
    lost = "Ctrl-C cannot interrupt a touch that waits for its store"
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    reason = _child_reads_us()
    if reason is None:
        yield Check(name, "ok", "a child process may read our memory")
        return
    found = f"{reason}; kernel.yama.ptrace_scope is {scope or 'not there'}: {lost}"
    fix = "If that matters, allow it, or give the program CAP_SYS_PTRACE:\n"
    if scope not in (None, "0"):
        fix += "  sudo sysctl -w kernel.yama.ptrace_scope=0\n"
    fix += _allow("process_vm_readv") + "\n  docker run --cap-add SYS_PTRACE ..."
    yield Check(name, "warn", found, fix)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _child_reads_us() -> str | None:
    """Have a child read a word of this process, as the pager does; why it could not."""
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.create_string_buffer(b"refault", 8)
    into = ctypes.create_string_buffer(8)
    local = _IoVec(ctypes.addressof(into), 8)
    remote = _IoVec(ctypes.addressof(word), 8)
    with warnings.catch_warnings():
        # From 3.12 on: that other threads may hold locks.  The child takes none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 255
        try:
            arguments = (ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
            into.raw = bytes(8)
            got = libc.process_vm_readv(os.getppid(), *arguments)
            code = 0 if got == 8 and into.raw == word.raw else ctypes.get_errno()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == 0 else _reason(OSError(code, os.strerror(code)))


def _limits() -> Iterator[Check]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= 1024
    yield Check(
        "open files (RLIMIT_NOFILE)",
        "ok" if enough else "warn",
        f"{soft} (hard limit {hard})",
        ""
        if enough
        else "A region needs up to three descriptors, and each waiting call two more:\n"
        "  ulimit -n 4096\nor LimitNOFILE=4096 in the systemd unit.",
    )
    text = _read("/proc/sys/vm/max_map_count")
    if text is None:
        yield Check("vm.max_map_count", "ok", "cannot be read; taken to be 65530")
        return
    enough = int(text) >= 65530
    yield Check(
        "vm.max_map_count",
        "ok" if enough else "warn",
        text,
        "" if enough else "Regions may fail with ENOMEM:\n  sudo sysctl -w vm.max_map_count=65530",
    )


def _temporary() -> Iterator[Check]:
    name = "temporary directory"
    folder = tempfile.gettempdir()
    other = "Let changed pages spill to a roomy disk:\n  export TMPDIR=/path/on/a/big/disk"
    free = shutil.disk_usage(folder).free
    kind = _file_system(folder)
    found = f"{folder} ({kind}), {free / (1 << 30):.1f} GiB free"
    if kind in {"tmpfs", "ramfs"}:
        yield Check(name, "warn", f"{found}: it is memory, spilling there saves none", other)
    elif free < 1 << 30:
        yield Check(name, "warn", f"{found}: little room for changed pages", other)
    else:
        yield Check(name, "ok", found)


def _file_system(folder: str) -> str:
    """Type of the file system of `folder`, by the longest mount point above it."""
    folder = os.path.realpath(folder)
    best, kind = "", "unknown"
    for line in (_read("/proc/self/mounts") or "").splitlines():
        _, point, this, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, this
    return kind


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info[:2] >= (3, 11)
    yield Check(
        "Python",
        "ok" if fits else "fail",
        f"{sys.implementation.name} {version}",
        "" if fits else "refault needs Python 3.11 or later.",
    )
    zstd = "compression.zstd" if sys.version_info[:2] >= (3, 14) else "backports.zstd"
    for module in ("numpy", "msgspec", zstd):
        try:
            loaded = import_module(module)
        except ImportError as error:
            fix = f"  {sys.executable} -m pip install {module}"
            if module == "compression.zstd":
                fix = "This Python was built without zstd: build it with libzstd 1.4.5 or later."
            yield Check(f"module {module}", "fail", str(error), fix)
        else:
            yield Check(f"module {module}", "ok", str(getattr(loaded, "__version__", "there")))


def _native() -> Iterator[Check]:
    from ..native import available

    name = "native library"
    if available():
        yield Check(name, "ok", "there is one: faults that need not wait are served by it")
        return
    if os.environ.get("REFAULT_NATIVE") == "0":
        yield Check(name, "warn", "switched off by REFAULT_NATIVE=0", "  unset REFAULT_NATIVE")
        return
    yield Check(
        name,
        "warn",
        "there is none: faults are served by plain Python, three times as slowly",
        "Install a C compiler, then install refault anew:\n"
        "  pip install --force-reinstall --no-deps --no-binary refault refault",
    )


def _scheduling() -> Iterator[Check]:
    name = "scheduling policy"
    if len(os.sched_getaffinity(0)) == 1:
        yield Check(name, "ok", "one CPU: a program that faults and its pager share it")
        return
    if os.environ.get("REFAULT_SCHED_IDLE") == "0":
        why = "SCHED_IDLE is switched off by REFAULT_SCHED_IDLE=0"
        yield Check(name, "warn", why, "  unset REFAULT_SCHED_IDLE")
        return
    refused: list[OSError] = []

    def both_ways() -> None:
        try:
            for policy in (os.SCHED_IDLE, os.SCHED_OTHER):
                os.sched_setscheduler(0, policy, os.sched_param(0))
        except OSError as error:
            refused.append(error)

    # A policy is a thread's own, and the way back may be closed.
    thread = threading.Thread(target=both_ways)
    thread.start()
    thread.join()
    if not refused:
        yield Check(
            name, "ok", "may become SCHED_IDLE and come back: bursts of faults stay on a CPU"
        )
        return
    yield Check(
        name,
        "warn",
        f"no way back from SCHED_IDLE ({_reason(refused[0])}): on a machine with idle CPUs a fault "
        "that comes in a burst can take ten times as long",
        "Give the program CAP_SYS_NICE (docker run --cap-add SYS_NICE), or a limit: ulimit -e 20. "
        "Or bind a thread that faults all the time, and with it its pager:\n"
        "  taskset -c 0 python program.py",
    )


# --- telling --------------------------------------------------------------------------------


def render(found: list[Check], width: int) -> str:
    """Lay the checks out as a table of at most `width` columns; commands are never broken."""
    names = max(len(check.name) for check in found)
    narrow = width < names + 36
    indent = " " * (6 if narrow else names + 8)
    lines = []
    for check in found:
        head = f"{check.status:<4}  {check.name:<{names}}  "
        if narrow:
            lines.append(f"{check.status:<4}  {check.name}")
            lines += _wrap(check.found, width, indent)
        else:
            first, *rest = _wrap(check.found, width, indent)
            lines += [head + first[len(indent) :], *rest]
        for paragraph in check.fix.splitlines():
            if paragraph.startswith("  "):
                lines.append("      " + paragraph)
            else:
                lines += _wrap(paragraph, width, "      ")
    return "\n".join(line.rstrip() for line in lines)


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, len(indent) + 24),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    ) or [indent]


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the checks; 1 if one failed."""
    found = checks()
    failed = sum(check.status == "fail" for check in found)
    warned = sum(check.status == "warn" for check in found)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in found]}))
    else:
        print(render(found, shutil.get_terminal_size((100, 24)).columns))
        print()
        if failed:
            print(f"{failed} failed: refault does not work here until that is mended.")
        elif warned:
            print(f"refault works here, with {warned} restriction{'s' * (warned > 1)}.")
        else:
            print("refault works here.")
    return 1 if failed else 0

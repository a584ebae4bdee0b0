"""`refault doctor`: it tells the truth here, and still tells something where all is refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
import types
from collections.abc import Callable

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd
from refault import cli
from refault.cli import doctor
from refault.cli.doctor import Check, checks, render
from refault.errors import KernelError
from refault.machine import uffd

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="what is looked at is Linux"),
]
Patch = pytest.MonkeyPatch


def by_name(found: list[Check]) -> dict[str, Check]:
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    for check in found:
        assert check.status in ("ok", "warn", "fail")
        assert check.found
        assert bool(check.fix) == (check.status != "ok"), check
    return {check.name: check for check in found}


def refuse(monkeypatch: Patch, **refusals: int) -> None:
    """Have the kernel refuse these doors; the others open as user-mode-only."""
    real = uffd.open_door

    def porter(door: uffd.Door, flags: int = uffd.DEFAULT_FLAGS) -> int:
        code = refusals.get(door.replace("-", "_"))
        if code is not None:
            raise OSError(code, os.strerror(code))
        return real("user-mode-only", flags)

    monkeypatch.setattr(uffd, "open_door", porter)


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
def test_here() -> None:
    found = by_name(checks())
    assert found["page fault"].status == "ok"
    assert found["fallocate PUNCH_HOLE"].status == "ok"
    assert not [check for check in found.values() if check.status == "fail"]


@needs_userfaultfd
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "page fault" in text
    assert "refault works here" in text
    assert cli.main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert {"name", "status", "found", "fix"} == set(answer["checks"][0])


@needs_userfaultfd
def test_as_nobody() -> None:
    code = "import sys\nfrom refault import cli\nsys.exit(cli.main(['doctor', '--json']))"
    result = run_child(code, timeout=30, user=65534, watchdog=False)
    answer = json.loads(result.stdout)
    assert answer["ok"] is True
    found = {check["name"]: check for check in answer["checks"]}
    assert found["page fault"]["status"] == "ok"
    if found["userfaultfd"]["status"] == "ok":
        return  # everybody may, on this machine
    assert found["userfaultfd"]["status"] == "warn"
    assert "EFAULT" in found["userfaultfd"]["fix"]
    assert "tofile" in found["userfaultfd"]["fix"]
    assert found["system call userfaultfd"]["status"] == "warn"
    assert "vm.unprivileged_userfaultfd=1" in found["system call userfaultfd"]["fix"]
    assert found["/dev/userfaultfd"]["status"] == "warn"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_where_everything_is_refused(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    refuse(monkeypatch, device=errno.ENOENT, syscall=code, user_mode_only=code)
    assert cli.main(["doctor", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    found = {check["name"]: check for check in answer["checks"]}
    assert found["userfaultfd"]["status"] == "fail"
    assert "docker run --device /dev/userfaultfd" in found["/dev/userfaultfd"]["fix"]
    fix = found["system call userfaultfd"]["fix"]
    assert "--security-opt seccomp=" in fix
    (fragment,) = (line for line in fix.splitlines() if line.startswith("  {"))
    assert json.loads(fragment) == {"names": ["userfaultfd"], "action": "SCMP_ACT_ALLOW"}
    assert found["memfd_create"]["status"] == "ok"  # it goes on to the end
    assert found["Python"]["status"] == "ok"
    assert cli.main(["doctor"]) == 1
    assert "does not work here" in capsys.readouterr().out


@needs_userfaultfd
def test_device_without_rights(monkeypatch: Patch) -> None:
    refuse(monkeypatch, device=errno.EACCES, syscall=errno.EPERM)
    found = by_name(checks())
    device = found["/dev/userfaultfd"]
    assert device.status == "warn"
    assert "chmod 660 /dev/userfaultfd" in device.fix
    assert "/etc/udev/rules.d/" in device.fix
    assert found["userfaultfd"].status == "warn"
    assert found["page fault"].status == "ok"


@needs_userfaultfd
@pytest.mark.parametrize("door", ["device", "syscall"])
def test_one_door_is_enough(monkeypatch: Patch, door: str) -> None:
    refuse(monkeypatch, **{door: errno.EPERM})
    found = by_name(checks())
    assert found["userfaultfd"].status == "ok"
    assert "not needed" in (
        found["/dev/userfaultfd"].found + found["system call userfaultfd"].found
    )


@needs_userfaultfd
def test_missing_features(monkeypatch: Patch) -> None:
    missing = uffd.FEATURE_MINOR_SHMEM | uffd.FEATURE_POISON
    monkeypatch.setattr(uffd, "supported_features", lambda _: uffd.ALL_FEATURES & ~missing)
    found = by_name(checks())
    assert found["feature MINOR_SHMEM"].status == "fail"
    assert "Linux 5.14" in found["feature MINOR_SHMEM"].fix
    assert found["feature POISON"].status == "warn"
    assert found["feature EXACT_ADDRESS"].status == "ok"


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
def test_a_kernel_that_cannot_map_protected(monkeypatch: Patch) -> None:
    def continue_(self: uffd.Userfaultfd, start: int, length: int, mode: int = 0) -> None:
        raise KernelError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(uffd.Userfaultfd, "continue_", continue_)
    check = by_name(checks())["page fault"]
    assert check.status == "fail"
    assert "6.4" in check.found


@needs_userfaultfd
def test_a_kernel_that_tells_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(uffd.Userfaultfd, "read_messages", lambda *_: [])
    check = by_name(checks())["page fault"]
    assert check.status == "fail"
    assert "no page fault" in check.found


def test_not_linux(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    found = by_name(checks())
    assert found["operating system"].status == "fail"
    assert "Python" in found


def test_an_unknown_processor(monkeypatch: Patch) -> None:
    fake = os.uname_result(("Linux", "host", "6.18.0", "#1", "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: fake)
    assert by_name(checks())["architecture"].status == "fail"


@pytest.mark.parametrize(
    ("release", "machine", "status"),
    [
        ("6.18.44-generic", "x86_64", "ok"),
        ("6.4", "x86_64", "ok"),
        ("6.3.9+", "x86_64", "warn"),
        ("5.15.167-microsoft-standard-WSL2", "x86_64", "warn"),
        ("6.8.0", "aarch64", "warn"),
        ("strange", "x86_64", "warn"),
    ],
)
def test_kernel_version(monkeypatch: Patch, release: str, machine: str, status: str) -> None:
    fake = os.uname_result(("Linux", "host", release, "#1", machine))
    monkeypatch.setattr(os, "uname", lambda: fake)
    assert by_name(checks())["kernel version"].status == status


def refused_call(code: int) -> Callable[..., int]:
    def call(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("target", "check", "status", "fix"),
    [
        ("memfd_create", "memfd_create", "fail", "SCMP_ACT_ALLOW"),
        ("pidfd_open", "pidfd_open", "warn", "SCMP_ACT_ALLOW"),
        ("preadv", "RWF_NOWAIT", "warn", "file system"),
    ],
)
def test_refused_calls(monkeypatch: Patch, target: str, check: str, status: str, fix: str) -> None:
    monkeypatch.setattr(os, target, refused_call(errno.EPERM))
    found = by_name(checks())[check]
    assert found.status == status
    assert fix in found.fix


def test_limits(monkeypatch: Patch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(doctor, "_read", lambda path: "1000" if "max_map_count" in path else None)
    found = by_name(checks())
    assert "ulimit -n" in found["open files (RLIMIT_NOFILE)"].fix
    assert "sysctl -w vm.max_map_count=" in found["vm.max_map_count"].fix


@pytest.mark.parametrize(("kind", "free"), [("tmpfs", 1 << 40), ("ext4", 1 << 20)])
def test_temporary_directory(monkeypatch: Patch, kind: str, free: int) -> None:
    monkeypatch.setattr(doctor, "_file_system", lambda _: kind)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
    check = by_name(checks())["temporary directory"]
    assert check.status == "warn"
    assert "TMPDIR" in check.fix


def test_file_system_of_a_folder(monkeypatch: Patch) -> None:
    mounts = "a / ext4 rw 0 0\nb /mnt xfs rw 0 0\nc /mnt/a\\040b tmpfs rw 0 0"
    monkeypatch.setattr(doctor, "_read", lambda _: mounts)
    assert doctor._file_system("/mnt/a b/c") == "tmpfs"
    assert doctor._file_system("/mnt/a bc") == "xfs"
    assert doctor._file_system("/mntx") == "ext4"


def test_yama(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "_child_reads_us", lambda: "EPERM (Operation not permitted)")
    monkeypatch.setattr(doctor, "_read", lambda path: "1" if "ptrace_scope" in path else None)
    check = by_name(checks())["ptrace by the pager"]
    assert check.status == "warn"
    assert "sysctl -w kernel.yama.ptrace_scope=0" in check.fix


@pytest.mark.parametrize("absent", ["numpy", "msgspec", "zstd"])
def test_missing_modules(monkeypatch: Patch, absent: str) -> None:
    def import_module(name: str) -> types.ModuleType:
        if name.endswith(absent):
            raise ImportError(f"No module named {name!r}")
        return types.ModuleType(name)

    monkeypatch.setattr(doctor, "import_module", import_module)
    (check,) = (one for one in checks() if one.name.startswith("module") and one.status == "fail")
    assert absent in check.name
    assert check.fix


def test_a_check_that_breaks_is_reported(monkeypatch: Patch) -> None:
    def broken() -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(doctor, "_pidfd", broken)
    check = by_name(checks())["pidfd_open"]
    assert check.status == "fail"
    assert "nobody thought of this" in check.found


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_table_fits(monkeypatch: Patch, width: int) -> None:
    refuse(monkeypatch, device=errno.EACCES, syscall=errno.EPERM, user_mode_only=errno.EPERM)
    found = checks()
    text = render(found, width)
    commands = {line for check in found for line in check.fix.splitlines() if line[:2] == "  "}
    for line in text.splitlines():
        if line[6:] in commands:
            commands.discard(line[6:])
        elif len(line.split()) > 1:
            assert len(line) <= max(width, 50), line
    assert not commands, "commands are printed whole"

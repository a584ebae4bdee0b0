"""Run in a child process whatever may hang, with a limit enforced from outside.

A Python thread that touches a page nobody serves holds the GIL for ever: no
timer, signal handler or timeout of the same interpreter can run then.  So such
a test is a child process.  When its time is up, the test fails with

- where every thread of every descendant stands in the kernel,
- the Python stacks of the child (a watchdog thread written in C prints them
  shortly before the limit) and of its descendants, the pager first of all
  (SIGABRT, which faulthandler answers without the GIL),
- what it had printed,

and exactly these processes are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import inspect
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

import pytest

from helpers import processes

__all__ = ["Result", "run_child"]

BOOTSTRAP = pathlib.Path(__file__).with_name("bootstrap.py")


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How a child ended; `returncode` is negative for a signal, as in subprocess."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def run_child(
    code: str | Callable[..., object],
    *,
    timeout: float,
    user: int | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    expect: int | None = 0,
    files: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    orphans: float = 10.0,
    watchdog: bool = True,
    beside: Callable[[], Iterable[int]] = tuple,
) -> Result:
    """Run Python code in a child process of its own session.

    Warnings are errors in the child and in the Python processes it starts, and
    faulthandler is on in all of them.

    Parameters
    ----------
    code
        Source text (it is dedented), or a function that needs nothing from
        around it: its source is taken, and it is called with `args`.
    timeout
        Seconds until the test fails with everybody's stacks.
    user
        Run as this user id (needs root), with no groups and no capabilities.
        Where the interpreter lies under a directory of root's, the child has
        one, CAP_DAC_READ_SEARCH, to find it; that gives no access to
        userfaultfd.  If not even that helps, the test is skipped.
    args
        ``sys.argv[1:]`` of the child.
    env
        Variables added to the environment.
    expect
        The exit status that is right; None: any.
    files
        Text files to put beside the child's code, by name: modules it can
        import, and that the pager can import too.
    cwd
        Working directory; by default the directory with the child's code.
    orphans
        Seconds that descendants may outlive the child before the test fails.
    watchdog
        False for code that forks: from Python 3.12 on a fork warns if there is
        any other thread, and the watchdog is one.
    beside
        Returns the ids of processes that the test itself has started, perhaps since
        the child was: they may outlive it.
    """
    if user is not None:
        reason = _user_problem(user)
        if reason is not None:
            pytest.skip(reason)
    known = {one.key for one in processes.descendants()}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="child-")))
        (folder / "child.py").write_text(_source(code))
        for name, text in (files or {}).items():
            (folder / name).write_text(textwrap.dedent(text))
        if user is not None:
            os.chown(folder, user, user)
        # Files, not pipes: a pager that inherits them must not keep us waiting.
        stdout = stack.enter_context(tempfile.TemporaryFile())
        stderr = stack.enter_context(tempfile.TemporaryFile())
        command = [sys.executable, "-X", "faulthandler", "-W", "error", str(BOOTSTRAP)]
        command += [str(folder / "child.py"), str(timeout if watchdog else 0), *args]
        begin = time.monotonic()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder if cwd is None else cwd,
            env=_environment(env),
            start_new_session=True,
            **_identity(user),
        )
        try:
            returncode = child.wait(timeout)
            others = set(beside())
            known |= {one.key for one in processes.descendants() if one.pid in others}
            result = Result(returncode, "", "", time.monotonic() - begin)
            alive = processes.wait_until_gone(known, orphans)
        except subprocess.TimeoutExpired:
            report = _end_all(child, known)
            text = _show(_text(stdout), _text(stderr))
            pytest.fail(f"child: not done after {timeout} s\n{report}\n{text}", pytrace=False)
        except BaseException:
            _kill_all(child, known)
            raise
        if alive:
            report = _end_all(child, known)
            text = _show(_text(stdout), _text(stderr))
            pytest.fail(
                f"child: ended with {returncode}, but its descendants live on after"
                f" {orphans} s\n{report}\n{text}",
                pytrace=False,
            )
        # Now: descendants may have said more after the child had ended.
        result = dataclasses.replace(result, stdout=_text(stdout), stderr=_text(stderr))
    if expect is not None and returncode != expect:
        pytest.fail(
            f"child: ended with {_status(returncode)}, not {_status(expect)}\n"
            f"{_show(result.stdout, result.stderr)}",
            pytrace=False,
        )
    return result


def _end_all(child: subprocess.Popen[bytes], known: set[tuple[int, int]]) -> str:
    """Describe the child and its descendants, have them print their stacks, kill them."""
    victims = [one for one in processes.descendants() if one.key not in known and not one.zombie]
    report = "\n".join(processes.describe(one.pid) for one in victims)
    # The child last: it has printed its stacks already, and when it dies the
    # pager begins to end as well.
    for one in sorted(victims, key=lambda one: one.pid == child.pid):
        processes.kill([one], signal.SIGABRT)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            now = processes.process(one.pid)
            if now is None or now.zombie:
                break
            time.sleep(0.01)
    _kill_all(child, known)
    return report


def _kill_all(child: subprocess.Popen[bytes], known: set[tuple[int, int]]) -> None:
    # Until nobody is left: a victim may have started one more in the meantime.
    for _ in range(100):
        victims = [one for one in processes.descendants() if one.key not in known]
        processes.kill(one for one in victims if not one.zombie)
        child.poll()
        if not processes.wait_until_gone(known, 0.1):
            break
    child.wait()


def _source(code: str | Callable[..., object]) -> str:
    if isinstance(code, str):
        return textwrap.dedent(code)
    text = textwrap.dedent(inspect.getsource(code))
    while text.startswith("@"):
        raise TypeError("run_child: give it an undecorated function")
    return f"{text}\n\nif True:\n    import sys\n\n    {code.__name__}(*sys.argv[1:])\n"


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    environment = dict(os.environ)
    environment |= {
        # For the processes that the child starts: -W and -X are not inherited.
        "PYTHONWARNINGS": "error",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # One thread is enough here, and start-up is what costs.
        "OPENBLAS_NUM_THREADS": "1",
    }
    for name in ("PYTEST_CURRENT_TEST", "PYTHONSAFEPATH"):
        environment.pop(name, None)
    return environment | dict(more or {})


def _identity(user: int | None) -> dict[str, Any]:
    if user is None:
        return {}
    if _may_read(user):
        return {"user": user, "group": user, "extra_groups": []}
    return {"preexec_fn": functools.partial(_become_reader, user)}


def _become_reader(user: int) -> None:
    """Become `user`, keeping across exec the right to read what root reads."""
    cap_dac_read_search = 2
    pr_set_keepcaps, pr_cap_ambient, pr_cap_ambient_raise = 8, 47, 2
    version_3 = 0x20080522
    mask = 1 << cap_dac_read_search
    header = struct.pack("=Ii", version_3, 0)
    # Twice: effective, permitted, inheritable; of capabilities 0 to 31 and 32 to 63.
    data = struct.pack("=6I", mask, mask, mask, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    os.setresgid(user, user, user)
    libc.prctl(pr_set_keepcaps, 1, 0, 0, 0)
    os.setresuid(user, user, user)
    if libc.capset(header, data) or libc.prctl(
        pr_cap_ambient, pr_cap_ambient_raise, cap_dac_read_search, 0, 0
    ):
        raise PermissionError(ctypes.get_errno(), "capset")


@functools.cache
def _may_read(user: int) -> bool:
    """Whether `user` can run this interpreter and read this tree, without any capability."""
    return _probe({"user": user, "group": user, "extra_groups": []}) is None


@functools.cache
def _user_problem(user: int) -> str | None:
    if os.geteuid() != 0:
        return f"running a child as user {user} needs root"
    problem = _probe(_identity(user))
    return problem and f"user {user} cannot run {sys.executable}: {problem}"


def _probe(identity: dict[str, Any]) -> str | None:
    program = "import numpy, msgspec, sys; open(sys.argv[1]).close()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(BOOTSTRAP)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            check=False,
            **identity,
        )
    except (PermissionError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


def _text(file: IO[bytes]) -> str:
    # The children share our file position: read without moving it.
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")


def _status(returncode: int) -> str:
    if returncode < 0:
        return f"{returncode} ({signal.Signals(-returncode).name})"
    return str(returncode)


def _show(stdout: str, stderr: str) -> str:
    return f"--- its stdout\n{stdout}\n--- its stderr\n{stderr}"

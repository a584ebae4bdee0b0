"""The harness for hangs, tried on hangs that need no userfaultfd."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator

import pytest

from helpers import processes
from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """No descendant is there afterwards that was not there before (a resource tracker, say)."""
    before = {process.pid for process in processes.descendants()}
    yield
    assert not [process for process in processes.descendants() if process.pid not in before]


HOLD_THE_GIL = """
    import ctypes

    def stuck_here():
        ctypes.PyDLL(None).pause()  # PyDLL: without giving up the GIL

    print("before")
    stuck_here()
"""

UNSERVED_PAGE = """
    import ctypes, fcntl, mmap, os, struct, sys
    from helpers.userfaultfd import open_userfaultfd

    uffd = open_userfaultfd()
    fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))
    memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(uffd, 0xC020AA00, struct.pack("=QQQQ", address, 4096, 1, 0))
    reader, writer = os.pipe()

    def stuck_here():
        if sys.argv[1] == "kernel":
            os.write(writer, memory)
        else:
            memory[0]

    stuck_here()
"""


def says_hello(name: str) -> None:
    import sys

    print("hello", name, __name__, file=sys.stderr)


def test_result_of_source() -> None:
    result = run_child(
        """
        import sys, helper
        print(helper.word, *sys.argv[1:])
        sys.exit(3)
        """,
        timeout=20,
        args=["a", "b"],
        files={"helper.py": "word = 'w'"},
        expect=3,
    )
    assert (result.returncode, result.stdout, result.stderr) == (3, "w a b\n", "")
    assert 0 < result.seconds < 20


def test_result_of_function() -> None:
    assert run_child(says_hello, timeout=20, args=["you"]).stderr == "hello you __main__\n"


def test_warnings_are_errors_in_grandchildren_too() -> None:
    code = """
        import subprocess, sys
        warn = "import warnings; warnings.warn('x')"
        sys.exit(subprocess.run([sys.executable, "-c", warn]).returncode)
    """
    assert "UserWarning" in run_child(code, timeout=20, expect=1).stderr


def test_traceback_shows_the_line() -> None:
    assert "1 / 0" in run_child("x = 0\n1 / 0\n", timeout=20, expect=1).stderr


def test_wrong_status_fails_with_output() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)ended with 1, not 0.*why"):
        run_child("raise SystemExit('why')", timeout=20)


def test_death_by_signal_is_named() -> None:
    with pytest.raises(pytest.fail.Exception, match="SIGBUS"):
        run_child("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", timeout=20)


@pytest.mark.parametrize("watchdog", [True, False])
def test_hang_with_the_gil_held_is_described_and_killed(watchdog: bool) -> None:
    begin = time.monotonic()
    with pytest.raises(pytest.fail.Exception) as caught:
        run_child(HOLD_THE_GIL, timeout=1.5, watchdog=watchdog)
    assert time.monotonic() - begin < 10
    text = str(caught.value)
    assert "not done after 1.5 s" in text
    assert "in stuck_here" in text
    assert "before" in text
    assert "wchan" in text


@needs_userfaultfd
@pytest.mark.parametrize("mode", ["user", "kernel"])
def test_page_that_nobody_serves_is_described_and_killed(mode: str) -> None:
    tests = str(pathlib.Path(__file__).parents[1])
    with pytest.raises(pytest.fail.Exception) as caught:
        run_child(UNSERVED_PAGE, timeout=1.5, args=[mode], env={"PYTHONPATH": tests})
    text = str(caught.value)
    assert "in stuck_here" in text
    assert "handle_userfault" in text or os.geteuid() != 0


def test_hang_shows_the_stacks_of_an_orphan_in_its_own_session() -> None:
    code = """
        import subprocess, sys, time
        hang = "import time\\ndef orphan_waits(): time.sleep(100)\\norphan_waits()"
        subprocess.Popen(["sh", "-c", '"$0" -c "$1" &', sys.executable, hang],
                         start_new_session=True).wait()
        time.sleep(100)
    """
    with pytest.raises(pytest.fail.Exception, match="in orphan_waits"):
        run_child(code, timeout=2)


def test_descendant_that_lives_on_fails_the_test() -> None:
    code = """
        import subprocess
        subprocess.Popen(["sleep", "100"], start_new_session=True).returncode = 0
    """
    with pytest.raises(pytest.fail.Exception, match=r"(?s)live on after 0.2 s.*sleep 100"):
        run_child(code, timeout=20, orphans=0.2)


def test_descendant_that_ends_in_time_is_reaped() -> None:
    code = """
        import subprocess
        subprocess.Popen(["sleep", "0.3"], start_new_session=True).returncode = 0
    """
    run_child(code, timeout=20)


def test_other_user() -> None:
    nobody = 65534
    code = """
        import os, pathlib, subprocess, sys

        print(os.getresuid(), os.getresgid(), os.getgroups())
        try:
            os.open("/dev/userfaultfd", os.O_RDWR)
        except OSError:
            print("refused")
        pathlib.Path("own").touch()
        capabilities = "print([l for l in open('/proc/self/status') if l.startswith('CapEff')])"
        subprocess.run([sys.executable, "-c", capabilities], check=True)
    """
    ids = (nobody, nobody, nobody)
    lines = run_child(code, timeout=20, user=nobody).stdout.splitlines()
    assert lines[:2] == [f"{ids} {ids} []", "refused"]
    # Nothing, or the right to read alone.
    assert lines[2] in [f"['CapEff:\\t{mask:016x}\\n']" for mask in (0, 1 << 2)]


def test_process_names_may_hold_anything() -> None:
    code = """
        import ctypes, os, pathlib
        ctypes.CDLL(None).prctl(15, b"a) R 1 (b", 0, 0, 0)
        print(pathlib.Path(f"/proc/{os.getpid()}/stat").read_text())
    """
    assert "(a) R 1 (b)" in run_child(code, timeout=20).stdout
    me = processes.process(os.getpid())
    assert me is not None
    assert (me.pid, me.parent, me.zombie) == (os.getpid(), os.getppid(), False)
    assert f"thread {os.getpid()} " in processes.describe(os.getpid())

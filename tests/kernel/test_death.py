"""Life and death of the client, the pager, its guardian: what survives, and who hears of it."""

from __future__ import annotations

import mmap
import pathlib
import signal
import struct

import numpy as np
import pytest

from helpers.child import Result, run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]
Path = pathlib.Path

KILLED = "has been killed (by hand, or for lack of memory"

STORES = """
    import os
    import time

    class Base:
        size = 1 << 20

        def read_into(self, offset, buffer):
            buffer[:] = b"y" * len(buffer)

        def write_from(self, offset, buffer):
            pass

    class Hanging(Base):
        def read_into(self, offset, buffer):
            if offset < 1 << 19:
                super().read_into(offset, buffer)
            else:
                time.sleep(1000)

    class Full(Base):
        def write_from(self, offset, buffer):
            raise OSError(28, os.strerror(28))
"""

TOOLS = """
    import os
    import signal
    import subprocess
    import time

    from refault.client import connection

    def pager():
        return connection.current().pager

    def guardian():
        with open(f"/proc/{pager()}/task/{pager()}/children") as file:
            return int(file.read())

    def wait_dead(pid):
        while True:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] in "ZX":
                        return
            except (FileNotFoundError, ProcessLookupError):
                return
            time.sleep(0.01)

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        wait_dead(pid)

    def kill_later(seconds, *pids):
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -9 {' '.join(map(str, pids))}"])
"""

FILES = {"odd_stores.py": STORES, "tools.py": TOOLS}


def filled(path: Path, size: int = 1 << 20) -> Path:
    path.write_bytes(b"y" * size)
    return path


# -- the client dies -----------------------------------------------------------

RECORDS = 1 << 18


def write_until_killed(path: str, progress: str, seconds: str, page_size: str) -> None:
    import mmap
    import os
    import struct

    import tools  # type: ignore[import-not-found]

    import refault

    records = 1 << 18
    x = refault.open(path, "r+", dtype="<u8", resident="512KiB", page_size=page_size)
    with open(progress, "r+b") as file:
        done = mmap.mmap(file.fileno(), 4096)
    for number in range(records):
        x[number * 77777 % records] = number + 1
        struct.pack_into("<Q", done, 0, number + 1)
        if number == 0:
            tools.kill_later(seconds, os.getpid())
    struct.pack_into("<Q", done, 8, 1)
    tools.time.sleep(60)


@pytest.mark.parametrize(
    ("seconds", "page_size"), [(0.02, "4KiB"), (0.13, "64KiB"), (0.31, "4KiB"), (0.6, "64KiB")]
)
def test_killed_while_writing(tmp_path: Path, seconds: float, page_size: str) -> None:
    file, progress = tmp_path / "file", tmp_path / "progress"
    file.write_bytes(bytes(8 * RECORDS))
    progress.write_bytes(bytes(mmap.PAGESIZE))
    run_child(
        write_until_killed,
        args=[str(file), str(progress), str(seconds), page_size],
        files=FILES,
        timeout=20,
        expect=-signal.SIGKILL,
    )
    done, finished = struct.unpack("<QQ", progress.read_bytes()[:16])
    assert done > 0 and (not finished or done == RECORDS)
    # One more may have been written and not reported.
    content = np.fromfile(file, "<u8")
    assert content.size == RECORDS
    numbers = np.arange(done)
    np.testing.assert_array_equal(content[numbers * 77777 % RECORDS], numbers + 1)
    rest = np.arange(done + 1, RECORDS)
    assert not content[rest * 77777 % RECORDS].any()


WRITE = """
    import os
    import sys

    import tools

    import refault

    x = refault.open(sys.argv[1], "r+")
    x[:] = ord("n")
    {end}
"""

RUNS_ATEXIT = {
    "the end of the file": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise RuntimeError('meant to be')", 1),
    "no array any more": ("del x", 0),
    "a region that was closed": ("region = refault.region(x); del x; region.close()", 0),
    "an array in a cycle": ("cycle = [x]; cycle.append(cycle); del x", 0),
}


@pytest.mark.parametrize("end", RUNS_ATEXIT)
def test_complete_when_the_process_is_gone(tmp_path: Path, end: str) -> None:
    code, status = RUNS_ATEXIT[end]
    file = filled(tmp_path / "file", 64 << 20)

    def look(file: str, status: str) -> None:
        import pathlib
        import subprocess
        import sys

        # No pipe: the pager has its other end, and reading it would wait for the pager.
        with open("stderr", "w+") as stderr:
            ended = subprocess.Popen([sys.executable, "write.py", file], stderr=stderr)
            returncode = ended.wait()  # a limit would make it poll
            content = pathlib.Path(file).read_bytes()
            assert content == b"n" * (64 << 20), content.count(b"n")
            assert returncode == int(status), ended
            stderr.seek(0)
            assert "refault:" not in stderr.read()

    run_child(
        look,
        args=[str(file), str(status)],
        files=FILES | {"write.py": WRITE.format(end=code)},
        timeout=20,
    )


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(4)", 4),
        ("os.abort()", -signal.SIGABRT),
        ("os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    ],
)
def test_complete_after_the_pager_without_atexit(tmp_path: Path, end: str, status: int) -> None:
    file = filled(tmp_path / "file")
    run_child(WRITE.format(end=end), args=[str(file)], files=FILES, timeout=20, expect=status)
    assert file.read_bytes() == b"n" * (1 << 20)


def test_exec_ends_the_pager_and_keeps_the_data(tmp_path: Path) -> None:
    file = filled(tmp_path / "file")
    after = """
        import os, pathlib, sys
        # It is still our child.
        assert os.waitpid(int(sys.argv[2]), 0)[1] == 0
        assert pathlib.Path(sys.argv[1]).read_bytes() == b"n" * (1 << 20)
        print("complete")
        for name in os.listdir("/proc/self/fd"):
            try:
                link = os.readlink("/proc/self/fd/" + name)
            except FileNotFoundError:
                continue
            assert "socket" not in link and "memfd" not in link and "userfault" not in link, link
    """
    end = "os.execv(sys.executable, [sys.executable, 'after.py', sys.argv[1], str(tools.pager())])"
    result = run_child(
        WRITE.format(end=end), args=[str(file)], files=FILES | {"after.py": after}, timeout=20
    )
    assert result.stdout == "complete\n"


def test_killed_in_a_touch_that_waits(tmp_path: Path) -> None:
    def touch() -> None:
        import os

        import odd_stores  # type: ignore[import-not-found]
        import tools

        import refault

        x = refault.open(odd_stores.Hanging())
        tools.kill_later(0.3, os.getpid())
        print(x[-1])

    result = run_child(touch, files=FILES, timeout=20, expect=-signal.SIGKILL, orphans=5)
    assert result.stdout == ""


def test_killed_and_the_store_does_not_take_it() -> None:
    def write() -> None:
        import os
        import signal

        import odd_stores

        import refault

        x = refault.open(odd_stores.Full(), "r+", deadline=1.0)
        x[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    result = run_child(write, files=FILES, timeout=20, expect=-signal.SIGKILL)
    assert "changed bytes were NOT written" in result.stderr


def test_the_file_dies(tmp_path: Path) -> None:
    """A page that was there, protected, leaves a marker behind that POISON stumbles over."""

    def touch(path: str) -> None:
        import os

        import refault

        x = refault.open(path, "r+", page_size="4KiB", readahead=False)
        assert x[0] == ord("y")
        refault.region(x).evict()
        os.truncate(path, 0)
        print("before")
        print(x[0])

    result = run_child(
        touch, args=[str(filled(tmp_path / "file"))], timeout=10, expect=-signal.SIGBUS
    )
    assert result.stdout == "before\n"
    assert result.stderr.count("it gets SIGBUS") == 1


# -- the pager dies ------------------------------------------------------------


def died_loudly(result: Result, *, threads: int = 1) -> None:
    assert result.stdout == "before\n", result.stdout
    assert KILLED in result.stderr
    assert "it gets SIGBUS" in result.stderr
    if threads == 1:
        # Not the whole line: the guardian writes to the same place at the same time.  Of several
        # threads the second one can end the process before faulthandler has written for the first.
        assert "Bus error" in result.stderr
    assert "SIGKILL" not in result.stderr
    assert result.seconds < 5


def test_pager_killed_while_a_thread_with_the_gil_waits() -> None:
    def touch() -> None:
        import odd_stores
        import tools

        import refault

        x = refault.open(odd_stores.Hanging())
        tools.kill_later(0.3, tools.pager())
        print("before")
        print(x[-1])

    died_loudly(run_child(touch, files=FILES, timeout=10, expect=-signal.SIGBUS))


def test_pager_killed_while_all_threads_wait() -> None:
    def touch() -> None:
        import threading

        import numpy as np
        import odd_stores
        import tools

        import refault

        arrays = [refault.open(odd_stores.Hanging(), page_size="4KiB") for _ in range(3)]
        tools.kill_later(0.5, tools.pager())
        print("before")
        # One of them may have the GIL; all of them must end.
        for x in arrays:
            threading.Thread(target=np.copyto, args=(np.empty_like(x), x)).start()

    result = run_child(touch, files=FILES, timeout=10, expect=-signal.SIGBUS)
    died_loudly(result, threads=3)


TOUCH = """
    import os
    import sys

    import numpy as np
    import tools

    import refault

    x = refault.open(sys.argv[1], "r+", page_size="4KiB", resident="1MiB", readahead=False)
    region = refault.region(x)
    z = refault.zeros(1 << 20, "u1")
    x[0] = x[4096]
    region.flush()
    x[8192], x[12288]
    region.evict(slice(12288, 16384))
    tools.kill(tools.pager())
    print("before")
    assert x[0] == x[1] == x[4096] == ord("y")
    {touch}
    print("after")
"""


@pytest.mark.parametrize(
    "touch",
    [
        "print(x[500000])",
        "print(z[0])",
        "print(x[12288])  # was there, write-protected, and is not any more",
        "x[12288] = 1",
        "x[0] = 1  # was written once, and is clean again",
        "x[4096] = 1  # was only read",
    ],
)
def test_pager_killed_then_a_touch(tmp_path: Path, touch: str) -> None:
    file = filled(tmp_path / "file")
    died_loudly(
        run_child(
            TOUCH.format(touch=touch),
            args=[str(file)],
            files=FILES,
            timeout=10,
            expect=-signal.SIGBUS,
        )
    )
    assert file.read_bytes() == b"y" * (1 << 20)


def test_pager_killed_then_a_system_call(tmp_path: Path) -> None:
    touch = """
    with open(sys.argv[1] + ".out", "wb", buffering=0) as out:
        try:
            out.write(x[500000:500100])
        except OSError as error:
            print(error)
    """
    result = run_child(
        TOUCH.format(touch=touch),
        args=[str(filled(tmp_path / "file"))],
        files=FILES,
        timeout=10,
    )
    assert result.stdout == "before\n[Errno 14] Bad address\nafter\n"
    assert (tmp_path / "file.out").read_bytes() == b""


def test_pager_killed_then_a_system_call_writes_to_a_clean_page(tmp_path: Path) -> None:
    """The kernel does not let go of such a fault for anything but SIGKILL."""
    touch = 'os.readv(os.open("/dev/zero", os.O_RDONLY), [x[4096:4100]])'
    result = run_child(
        TOUCH.format(touch=touch),
        args=[str(filled(tmp_path / "file"))],
        files=FILES,
        timeout=10,
        expect=-signal.SIGKILL,
    )
    assert result.stdout == "before\n"
    assert "is still there after SIGBUS; it gets SIGKILL" in result.stderr


def test_pager_killed_then_calls(tmp_path: Path) -> None:
    def calls(file: str) -> None:
        import tools

        import refault

        x = refault.open(file, "r+", page_size="4KiB", resident="1MiB")
        region = refault.region(x)
        x[:4096] = 1
        tools.kill(tools.pager())
        for call in (
            region.flush,
            region.populate,
            region.pin,
            region.evict,
            region.prefetch,
            region.statistics,
        ):
            try:
                call()
            except refault.KernelError as error:
                assert "has ended with status -9" in str(error), error
                assert "open the arrays again" in str(error), error
            else:
                raise AssertionError(call)
        del x
        try:
            region.close()
        except refault.KernelError as error:
            print("close:", error)
        # The advice of the message.
        y = refault.open(file, "r+")
        assert bytes(y[:2]) == b"yy"
        y[:2] = ord("z")

    file = filled(tmp_path / "file")
    result = run_child(calls, args=[str(file)], files=FILES, timeout=10)
    assert result.stdout.startswith("close: the pager process")
    assert "Traceback" not in result.stderr
    assert file.read_bytes()[:3] == b"zzy"


def test_pager_killed_and_nobody_touches(tmp_path: Path) -> None:
    result = run_child(
        TOUCH.format(touch="tools.time.sleep(0.3)"),
        args=[str(filled(tmp_path / "file"))],
        files=FILES,
        timeout=10,
    )
    assert result.stdout == "before\nafter\n"
    assert KILLED in result.stderr
    assert "KernelError" in result.stderr  # at exit: nothing could be written back
    assert "SIGBUS" not in result.stderr.replace("gets SIGBUS, calls", "")


def test_pager_killed_with_two_clients(tmp_path: Path) -> None:
    def fork(file: str) -> None:
        import os
        import signal

        import tools

        import refault

        x = refault.open(file, page_size="4KiB", resident="1MiB", readahead=False)
        child = os.fork()
        if not child:
            assert x[0] == ord("y")
            tools.kill(tools.pager())
            print(x[500000])
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == -signal.SIGBUS, status
        print("before")
        print(x[4096])

    result = run_child(
        fork,
        args=[str(filled(tmp_path / "file"))],
        files=FILES,
        timeout=10,
        expect=-signal.SIGBUS,
        watchdog=False,
    )
    assert result.stdout == "before\n"
    assert result.stderr.count(KILLED) == 1
    assert result.stderr.count("it gets SIGBUS") == 2


@pytest.mark.parametrize("when", ["the pager knows", "nobody knows"])
def test_pager_killed_and_something_else_lies_there_now(tmp_path: Path, when: str) -> None:
    """As a window that was asked for just before; who slept there must look again."""

    def put_a_file_there(file: str, when: str) -> None:
        import ctypes
        import os
        import pathlib
        import signal
        import threading

        import odd_stores
        import tools

        import refault

        x = refault.open(odd_stores.Hanging())
        assert x[0] == ord("y")
        address = x.__array_interface__["data"][0] + (1 << 19)
        found = []
        # Without the GIL.
        read = ctypes.CDLL(None).strnlen
        read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_size_t
        thread = threading.Thread(target=lambda: found.append(read(address, 100)))
        if when == "nobody knows":
            os.kill(tools.pager(), signal.SIGSTOP)
        thread.start()
        wchan = pathlib.Path(f"/proc/{os.getpid()}/task/{thread.native_id}/wchan")
        while wchan.read_text() != "handle_userfault":
            tools.time.sleep(0.01)
        if when == "the pager knows":
            tools.time.sleep(0.3)
        guardian = tools.guardian()
        os.kill(guardian, signal.SIGSTOP)
        tools.kill(tools.pager())
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        fd = os.open(file, os.O_RDONLY)
        MAP_SHARED_FIXED, PROT_READ = 0x11, 1
        assert libc.mmap(address, 1 << 19, PROT_READ, MAP_SHARED_FIXED, fd, 1 << 19) == address
        os.kill(guardian, signal.SIGCONT)
        thread.join()
        print(found)

    result = run_child(
        put_a_file_there,
        args=[str(filled(tmp_path / "file")), when],
        files=FILES,
        timeout=10,
    )
    assert result.stdout == "[100]\n"
    assert "it gets SIGBUS" not in result.stderr


def test_pager_killed_while_it_writes_back_for_a_dead_client() -> None:
    def die() -> None:
        import os
        import signal

        import odd_stores
        import tools

        import refault

        x = refault.open(odd_stores.Full(), "r+", deadline=5.0)
        x[0] = 1
        tools.kill_later(0.5, tools.pager())
        os.kill(os.getpid(), signal.SIGKILL)

    result = run_child(die, files=FILES, timeout=10, expect=-signal.SIGKILL, orphans=4)
    assert KILLED in result.stderr


# -- the guardian dies ---------------------------------------------------------


def test_guardian_killed(tmp_path: Path) -> None:
    def go_on(file: str) -> None:
        import tools

        import refault

        x = refault.open(file, "r+", page_size="4KiB", resident="256KiB")
        x[0] = 1
        tools.kill(tools.guardian())
        x[:] = ord("n")
        assert x.sum() == ord("n") << 20

    file = filled(tmp_path / "file")
    result = run_child(go_on, args=[str(file)], files=FILES, timeout=10)
    assert "the guardian of the pager has been killed" in result.stderr
    assert file.read_bytes() == b"n" * (1 << 20)


@pytest.mark.parametrize("when", ["before a touch", "in a touch", "without a touch"])
def test_pager_and_guardian_killed(when: str) -> None:
    def touch(when: str) -> None:
        import odd_stores
        import tools

        import refault

        x = refault.open(odd_stores.Hanging())
        assert x[0] == ord("y")
        victims = tools.guardian(), tools.pager()
        print("before")
        if when == "before a touch":
            tools.kill(victims[0])
            tools.kill(victims[1])
            print(x[400000])
        else:
            tools.kill_later(0.3, *victims)
            if when == "in a touch":
                print(x[-1])
            tools.time.sleep(5)

    result = run_child(touch, args=[when], files=FILES, timeout=10, expect=-signal.SIGBUS)
    assert result.stdout == "before\n"
    assert "Bus error" in result.stderr


def test_a_forked_child_and_a_new_program_have_no_lifeline(tmp_path: Path) -> None:
    """The signal is for the process that opened the arrays, and for as long as it has them."""

    def fork(file: str) -> None:
        import ctypes
        import os
        import signal
        import sys

        import tools

        import refault

        x = refault.open(file)
        kept = ctypes.PyDLL(None).fork()  # keeps copies of all descriptors
        if not kept:
            tools.time.sleep(1)
            os._exit(3)
        child = os.fork()
        if not child:
            del x
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1)"])
        while True:
            with open(f"/proc/{child}/cmdline") as command:
                if "time.sleep" in command.read():
                    break
        before = tools.pager()
        tools.kill(tools.guardian())
        pid = os.fork()
        if not pid:
            tools.kill(before)
            tools.time.sleep(1)
            os._exit(1)
        signal.signal(signal.SIGBUS, lambda *_: print("SIGBUS"))
        for one, status in ((kept, 3), (child, 0), (pid, -signal.SIGBUS)):
            found = os.waitstatus_to_exitcode(os.waitpid(one, 0)[1])
            assert found == status, (found, status)
        os._exit(0)

    result = run_child(
        fork, args=[str(filled(tmp_path / "file"))], files=FILES, timeout=10, watchdog=False
    )
    assert result.stdout == "SIGBUS\n"


def test_guardian_is_small_and_sleeps() -> None:
    def look() -> None:
        import os

        import tools

        import refault

        x = refault.zeros(1 << 24, "u1", resident="1MiB")
        x[:] = 1
        with open(f"/proc/{tools.guardian()}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        ticks, resident = int(fields[11]) + int(fields[12]), int(fields[21]) * 4096
        descriptors = [
            os.readlink(f"/proc/{tools.guardian()}/fd/{name}")
            for name in os.listdir(f"/proc/{tools.guardian()}/fd")
        ]
        print(ticks, resident, sum("memfd" in one for one in descriptors), len(descriptors))

    ticks, resident, memfds, descriptors = map(
        int, run_child(look, files=FILES, timeout=10).stdout.split()
    )
    assert ticks <= 2
    assert resident < 20 << 20
    assert memfds == 0
    # Three standard ones, the pager, and of the client pidfd, userfaultfd and lifeline.
    assert descriptors == 7

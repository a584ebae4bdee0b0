"""A forked child has its parent's arrays, and cannot damage what is not its own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from helpers.child import Result, run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]
Path = pathlib.Path

SIZE = 1 << 20

# Four kinds of regions with half of their pages in memory and half of them not.
ARRAYS = """
    import os
    import signal

    import numpy as np

    import refault

    def contents():
        return np.arange(1 << 17, dtype="<u8")

    class Arrays:
        def __init__(self, path):
            options = {"dtype": "<u8", "resident": "512KiB", "page_size": "4KiB"}
            self.read = refault.open(path, "r", **options)
            self.shared = refault.open(path + ".shared", "r+", **options)
            self.private = refault.open(path, "c", **options)
            self.zeros = refault.zeros(1 << 17, **options)
            self.private[::1000] = 7
            self.zeros[:] = contents() * 3
            for x in self:
                x[: 1 << 14].sum()
                refault.region(x).evict(slice(1 << 13, None))

        def __iter__(self):
            return iter((self.read, self.shared, self.private, self.zeros))

        def check(self):
            wanted = contents()
            np.testing.assert_array_equal(self.read, wanted)
            np.testing.assert_array_equal(self.shared, wanted)
            np.testing.assert_array_equal(self.zeros, wanted * 3)
            wanted[::1000] = 7
            np.testing.assert_array_equal(self.private, wanted)

    def in_child(call, *arguments):
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            call(*arguments)
            status = 0
        except BaseException as error:
            print("in the child:", repr(error))
        finally:
            os._exit(status)

    def status_of(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run(
    code: str | Callable[..., object], folder: Path, *, expect: int = 0, timeout: float = 20
) -> Result:
    content = np.arange(SIZE // 8, dtype="<u8").tobytes()
    (folder / "file").write_bytes(content)
    (folder / "file.shared").write_bytes(content)
    return run_child(
        code,
        args=[str(folder / "file")],
        files={"arrays.py": ARRAYS},
        timeout=timeout,
        expect=expect,
        watchdog=False,
    )


def test_child_and_grandchild_read(tmp_path: Path) -> None:
    def fork(path: str) -> None:
        import os
        import threading

        import arrays  # type: ignore[import-not-found]

        threads: list[int] = []
        # Called after what is registered later.
        os.register_at_fork(before=lambda: threads.append(len(os.listdir("/proc/self/task"))))
        own = arrays.Arrays(path)

        def both() -> None:
            grandchild = arrays.in_child(own.check)
            own.check()
            assert arrays.status_of(grandchild) == 0

        assert threading.active_count() == 1
        child = arrays.in_child(both)
        own.check()
        assert arrays.status_of(child) == 0
        own.check()
        # From Python 3.12 on a fork warns if there is another thread.
        assert threads == [1], threads

    result = run(fork, tmp_path)
    assert result.stderr == ""


def test_child_writes_to_a_file(tmp_path: Path) -> None:
    def fork(path: str) -> None:
        import os

        import arrays

        own = arrays.Arrays(path)
        x = own.shared
        read, write = os.pipe()
        back_read, back_write = os.pipe()

        def change() -> None:
            x[1::2] += 1
            os.write(write, b".")
            os.read(back_read, 1)
            assert x[0] == 99
            x[2] = 98

        child = arrays.in_child(change)
        os.read(read, 1)
        wanted = arrays.contents()
        wanted[1::2] += 1
        arrays.np.testing.assert_array_equal(x, wanted)
        x[0] = 99
        os.write(back_write, b".")
        assert arrays.status_of(child) == 0
        assert x[2] == 98

    run(fork, tmp_path)
    wanted = np.arange(SIZE // 8, dtype="<u8")
    wanted[1::2] += 1
    wanted[0], wanted[2] = 99, 98
    np.testing.assert_array_equal(np.fromfile(tmp_path / "file.shared", "<u8"), wanted)


def test_child_writes_to_what_is_private(tmp_path: Path) -> None:
    def fork(path: str) -> None:
        import faulthandler
        import signal

        import arrays

        faulthandler.disable()
        own = arrays.Arrays(path)
        for x in (own.private, own.zeros):
            # In memory, and not in memory.
            for index in (5, 1 << 16):
                child = arrays.in_child(x.__setitem__, index, 1)
                assert arrays.status_of(child) == -signal.SIGSEGV
        own.check()
        own.zeros[5] = own.private[5] = 6
        child = arrays.in_child(lambda: [].index(0) if own.zeros[5] != 6 else None)
        assert arrays.status_of(child) == 0

    run(fork, tmp_path)
    content = np.arange(SIZE // 8, dtype="<u8").tobytes()
    assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "file.shared").read_bytes() == content


def test_pool(tmp_path: Path) -> None:
    code = """
        import multiprocessing
        import sys

        import arrays

        own = arrays.Arrays(sys.argv[1])

        def total(first):
            return sum(int(x[first : first + (1 << 13)].sum()) for x in own)

        with multiprocessing.get_context("fork").Pool(3) as pool:
            sums = pool.map(total, range(0, 1 << 17, 1 << 13))
        assert sum(sums) == sum(int(x.sum()) for x in own)
        own.check()
    """
    run(code, tmp_path)


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_child_outlives_the_parent(tmp_path: Path, end: str) -> None:
    code = f"""
        import os, sys, time
        import arrays

        own = arrays.Arrays(sys.argv[1])
        parent = os.getpid()
        if os.fork():
            own.shared[0] = 5
            {end}
        while os.getppid() == parent:
            time.sleep(0.01)
        time.sleep(0.1)
        assert own.shared[0] == 5
        own.shared[0] = 0
        own.check()
        own.shared[-1] = 1
        del own
        x = arrays.refault.zeros(1000)
        x[:] = 1
        assert x.sum() == 1000
        print("good")
    """
    result = run(code, tmp_path, expect=-9 if "kill" in end else 0)
    assert result.stdout == "good\n"
    content = np.fromfile(tmp_path / "file.shared", "<u8")
    assert (content[0], content[-1]) == (0, 1)


def test_fork_while_a_thread_faults(tmp_path: Path) -> None:
    def fork(path: str) -> None:
        import threading
        import warnings

        import arrays

        warnings.simplefilter("ignore", DeprecationWarning)
        own = arrays.Arrays(path)
        # A child that is forked while another thread imports something waits for ever when it
        # imports the same: that is Python's, and not what is meant here.
        own.check()
        arrays.np.random.default_rng(0)
        stop = False

        def touch(seed: int) -> None:
            random = arrays.np.random.default_rng(seed)
            while not stop:
                where = random.integers(0, 1 << 17, 500)
                assert (own.read[where] == where).all()
                assert (own.zeros[where] == where * 3).all()
                own.shared[where] = where

        threads = [threading.Thread(target=touch, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert arrays.status_of(arrays.in_child(own.check)) == 0
        stop = True
        for thread in threads:
            thread.join()
        own.check()

    run(fork, tmp_path)


def test_fork_without_a_pager(tmp_path: Path) -> None:
    def fork(path: str) -> None:
        import os

        import arrays

        from refault.client import connection

        child = arrays.in_child(lambda: arrays.Arrays(path).check())
        assert connection.current() is None
        assert arrays.status_of(child) == 0
        arrays.Arrays(path).check()  # it is gone again, the pager is there
        pager = connection.current().pager  # type: ignore[union-attr]

        def open_in_child() -> None:
            arrays.Arrays(path).check()
            assert connection.current().pager == pager  # type: ignore[union-attr]

        assert arrays.status_of(arrays.in_child(open_in_child)) == 0
        assert arrays.status_of(arrays.in_child(os.getpid)) == 0

    run(fork, tmp_path)


def test_other_programs(tmp_path: Path) -> None:
    def start(path: str) -> None:
        import os
        import subprocess

        import arrays

        own = arrays.Arrays(path)
        list_descriptors = ["sh", "-c", "ls -l /proc/self/fd"]
        for _ in range(3):
            out = subprocess.run(list_descriptors, capture_output=True, text=True, check=True)
            assert "memfd" not in out.stdout and "userfault" not in out.stdout
        out = subprocess.run(
            list_descriptors, close_fds=False, stdout=subprocess.PIPE, text=True, check=True
        )
        assert "memfd" not in out.stdout and "userfault" not in out.stdout
        assert "socket" not in out.stdout
        assert os.system("true") == 0
        own.check()

    assert run(start, tmp_path).stderr == ""


def test_fork_of_the_c_library(tmp_path: Path) -> None:
    """No hook runs: the child has nothing at the addresses, and the parent's pages stay true."""

    def fork(path: str) -> None:
        import ctypes
        import faulthandler
        import os
        import signal

        import arrays

        faulthandler.disable()
        own = arrays.Arrays(path)
        libc = ctypes.PyDLL(None)
        for x in own:
            for index in (5, 1 << 16):
                child = libc.fork()
                if not child:
                    x[index]
                    os._exit(0)
                assert arrays.status_of(child) == -signal.SIGSEGV
        child = libc.fork()
        if not child:
            try:
                arrays.refault.region(own.shared).flush()
            except arrays.refault.KernelError as error:
                assert "was forked without refault noticing" in str(error)
                os._exit(7)
            os._exit(0)
        assert arrays.status_of(child) == 7
        own.check()

    run(fork, tmp_path)

from __future__ import annotations

import pathlib

import numpy as np

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = needs_userfaultfd

PROLOGUE = """
    import os, signal, sys
    import refault

    def in_child(work):
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        return os.waitpid(pid, 0)[1]
"""


def _run(code: str, *args: str, env: dict[str, str] | None = None) -> str:
    result = run_child(PROLOGUE + code, timeout=40, args=args, watchdog=False, env=env)
    return result.stderr


def test_a_child_reads_and_writes_shared_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.bin"
    np.arange(100_000.0).tofile(path)
    code = """
    x = refault.open(sys.argv[1], "r+", dtype=float, resident="256KiB")
    x[1] = -1

    def child():
        assert x[1] == -1
        assert x[50_000:].sum() == sum(range(50_000, 100_000))
        x[2] = -2
        assert refault.region(x).statistics().faults > 0
        assert in_child(grandchild) == 0

    def grandchild():
        assert x[2] == -2
        x[3] = -3

    assert in_child(child) == 0
    assert x[:4].tolist() == [0, -1, -2, -3]
    """
    assert _run(code, str(path)) == ""
    assert np.fromfile(path)[:4].tolist() == [0, -1, -2, -3]


def test_what_is_private_can_be_read_and_not_changed() -> None:
    code = """
    x = refault.full(100_000, 7)
    x[3] = 5

    def reads():
        assert x[3] == 5 and x[4] == 7

    def writes():
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        x[3] = 1

    import faulthandler
    assert in_child(reads) == 0
    faulthandler.disable()
    assert in_child(writes) == signal.SIGSEGV
    assert x[3] == 5
    """
    assert _run(code) == ""


def test_the_end_of_a_region_in_the_child_is_not_that_of_the_parent() -> None:
    code = """
    x = refault.full(100_000, 7)

    def child():
        global x
        region = refault.region(x)
        del x
        region.close()
        y = refault.full(1000, 3)
        assert y.sum() == 3000

    assert in_child(child) == 0
    assert (x == 7).all()
    """
    assert _run(code) == ""


def test_a_child_without_regions_uses_the_pager_of_its_parent() -> None:
    code = """
    from refault.client import connection
    refault.zeros(10)
    parent = connection.current().pager

    def child():
        assert connection.current() is None
        assert refault.full(10, 2).sum() == 20
        assert connection.current().pager == parent

    assert in_child(child) == 0
    assert in_child(lambda: None) == 0
    """
    assert _run(code) == ""


def test_a_pool_of_processes(tmp_path: pathlib.Path) -> None:
    code = """
    import multiprocessing
    x = refault.full(100_000, 7)

    def work(i):
        return int(x[i * 1000])

    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(work, range(50)) == [7] * 50
    """
    assert _run(code) == ""


def test_a_pin_of_the_parent_ends_though_a_child_lives() -> None:
    code = """
    x = refault.zeros(100_000)
    region = refault.region(x)
    pin = region.pin()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    assert region.statistics().pinned > 0
    pin.release()
    assert region.statistics().pinned == 0
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0
    """
    assert _run(code) == ""


def test_if_the_pager_expects_no_child_a_touch_there_is_loud() -> None:
    code = """
    import faulthandler
    from refault.client import connection
    x = refault.full(1000, 7)
    y = refault.full(1000, 7)
    current = connection.current()
    os.kill(current.pager, signal.SIGKILL)
    faulthandler.disable()

    def child():
        try:
            refault.region(x).populate()
        except refault.KernelError as error:
            assert "did not survive the fork" in str(error)
        else:
            raise AssertionError
        assert in_child(lambda: None) == 0
        assert refault.full(10, 2).sum() == 20
        y[5]

    import time
    time.sleep(0.1)
    assert in_child(child) == signal.SIGSEGV
    """
    stderr = _run(code)
    assert "arrays of the parent cannot be used" in stderr
    assert "AssertionError" not in stderr


def test_subprocesses_are_not_disturbed() -> None:
    code = """
    import subprocess
    x = refault.full(1000, 7)
    for options in ({}, {"preexec_fn": os.getpid}, {"close_fds": False}):
        done = subprocess.run(
            ["ls", "/proc/self/fd"], capture_output=True, text=True, check=True, **options
        )
        assert len(done.stdout.split()) <= 5, done.stdout
    assert x.sum() == 7000
    """
    assert _run(code) == ""

from __future__ import annotations

import sys

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = needs_userfaultfd


def test_importing_needs_no_numpy_and_knows_all_names() -> None:
    def child() -> None:
        import sys

        import refault

        assert "numpy" not in sys.modules
        assert set(refault.__all__) <= set(dir(refault))
        names: dict[str, object] = {}
        exec("from refault import *", names)
        assert set(refault.__all__) <= set(names)
        assert refault.__version__
        try:
            refault.nonsense  # noqa: B018
        except AttributeError:
            pass
        else:
            raise AssertionError

    run_child(child, timeout=20)


def test_threads_that_come_first_together_share_one_pager() -> None:
    def child() -> None:
        import subprocess
        import threading

        import refault

        count = 0
        real = subprocess.Popen.__init__

        def counted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            real(self, *args, **kwargs)

        subprocess.Popen.__init__ = counted  # type: ignore[method-assign]
        barrier = threading.Barrier(8)
        made = []

        def work() -> None:
            barrier.wait()
            made.append(refault.full(1000, 5))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count == 1 and all((x == 5).all() for x in made) and len(made) == 8

    run_child(child, timeout=30)


def test_nothing_grows() -> None:
    def child() -> None:
        import os

        import refault

        def inventory() -> tuple[int, int]:
            with open("/proc/self/maps") as maps:
                return len(os.listdir("/proc/self/fd")), len(maps.readlines())

        keep = refault.zeros(10)
        refault.zeros(10)
        before = inventory()
        for _ in range(100):
            x = refault.zeros(100_000)
            x[5] = 1
            with refault.region(x).pin():
                pass
            del x
        after = inventory()
        assert after[0] == before[0] and abs(after[1] - before[1]) < 5, (before, after)
        assert keep[0] == 0

    run_child(child, timeout=30)


def test_the_pager_dies_and_calls_say_so() -> None:
    def child() -> None:
        import os
        import signal
        import time

        import refault
        from refault.client import connection

        x = refault.zeros(1000)
        region = refault.region(x)
        first = connection.current()
        assert first is not None
        os.kill(first.pager, signal.SIGKILL)
        time.sleep(0.1)
        for _ in range(2):
            try:
                region.populate()
            except refault.KernelError as error:
                assert "has ended with status -9" in str(error), error
                assert "open the arrays again" in str(error)
            else:
                raise AssertionError
        y = refault.full(1000, 3)
        assert y.sum() == 3000
        assert connection.current() is not first

    run_child(child, timeout=30)


def test_a_pager_that_cannot_start() -> None:
    def child() -> None:
        import sys

        import refault
        from refault.client import connection

        real = sys.executable
        for executable, text in (("", "is empty"), ("/nowhere", "cannot be started")):
            sys.executable = executable
            try:
                refault.zeros(10)
            except refault.KernelError as error:
                assert text in str(error)
            else:
                raise AssertionError
        sys.executable = "/bin/false"
        try:
            refault.zeros(10)
        except refault.KernelError as error:
            assert "has ended with status 1" in str(error), error
        else:
            raise AssertionError
        sys.executable = real
        assert connection.current() is None
        assert refault.zeros(10)[3] == 0

    run_child(child, timeout=30)


def test_found_though_the_path_was_set_by_hand() -> None:
    import pathlib

    import refault

    folder = str(pathlib.Path(refault.__file__).parents[1])
    code = f"""
        import sys
        sys.path.insert(0, {folder!r})
        import refault
        print(refault.full(3, 7).sum())
    """
    environment = {"PYTHONPATH": ""}
    assert run_child(code, timeout=20, env=environment).stdout == "21\n", sys.path


def test_the_budget_of_the_process() -> None:
    def child() -> None:
        import refault

        def budget() -> float:
            from refault.client import connection
            from refault.wire import messages

            current = connection.current()
            assert current is not None
            value = current.call(messages.Statistics(None)).value
            assert isinstance(value, dict)
            return value["budget"]

        x = refault.zeros(1 << 20)
        assert budget() == 1 << 20
        refault.configure(resident="2MiB")
        assert budget() == 2 << 20
        x[:] = 1
        assert refault.region(x).statistics().resident <= 2 << 20
        refault.configure(resident=None)
        assert budget() == -1
        try:
            refault.configure(resident=7)
        except refault.UsageError:
            pass
        else:
            raise AssertionError

    run_child(child, timeout=30, env={"REFAULT_RESIDENT": "1MiB"})


def test_a_default_timeout_of_sockets_is_not_ours() -> None:
    def child() -> None:
        import socket

        import refault

        socket.setdefaulttimeout(0.0001)
        x = refault.full(1 << 20, 3)
        refault.region(x).populate()
        assert x.sum() == 3 << 20

    run_child(child, timeout=30)


def test_everything_is_written_at_exit() -> None:
    import pathlib
    import tempfile

    import numpy as np

    def child(path: str) -> None:
        import refault

        x = refault.open(path, "w+", shape=100_000, dtype="i4")
        x[:] = 5

        class Late:
            def __del__(self) -> None:
                assert x[7] == 5

        globals()["late"] = Late()
        globals()["x"] = x

    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "x.bin")
        result = run_child(child, timeout=30, args=[path])
        assert result.stderr == ""
        assert (np.fromfile(path, "i4") == 5).all()

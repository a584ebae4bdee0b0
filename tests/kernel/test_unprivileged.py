"""As nobody: faults of the program's own code are served, those in system calls are not."""

from __future__ import annotations

import json

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]

NOBODY = 65534


def test_all_of_it() -> None:
    def use() -> None:
        import os

        import numpy as np

        import refault
        from refault.machine import uffd

        assert os.geteuid() == 65534
        opened = uffd.open_userfaultfd(0, 0)
        os.close(opened.fd)
        print(opened.user_mode_only)

        numbers = np.random.default_rng(0).permutation(1 << 17)
        numbers.tofile("numbers")
        options = {"dtype": "i8", "resident": "256KiB", "page_size": "4KiB"}
        x = refault.open("numbers", "r+", **options)
        assert (x == numbers).all()
        x.sort()
        assert (x == np.arange(1 << 17)).all()
        x[0] = -1
        region = refault.region(x)
        assert region.evict() > 0
        assert region.statistics().resident == 0
        assert x[0] == -1
        x[7] = -7
        del x
        region.close()
        found = np.fromfile("numbers", "i8")
        assert found[0] == -1 and found[7] == -7 and (found[8:] == np.arange(8, 1 << 17)).all()

        z = refault.zeros(1 << 17, **options)
        z[:] = numbers
        z.sort()
        assert (z == np.arange(1 << 17)).all()

        child = os.fork()
        if not child:
            os._exit(int(z[::512].sum() == np.arange(0, 1 << 17, 512).sum()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    stdout = run_child(use, timeout=30, user=NOBODY, watchdog=False).stdout
    if stdout != "True\n":
        pytest.skip("this machine gives nobody all of userfaultfd")


def test_system_calls() -> None:
    def call() -> None:
        import errno
        import os

        import numpy as np

        import refault
        from refault.machine import uffd

        opened = uffd.open_userfaultfd(0, 0)
        os.close(opened.fd)
        if not opened.user_mode_only:
            print("all of it")
            return
        np.arange(1 << 17).tofile("numbers")
        x = refault.open("numbers", "r+", dtype="i8", page_size="4KiB", readahead=False)
        region = refault.region(x)
        part = slice(1 << 16, (1 << 16) + 512)
        fd = os.open("out", os.O_RDWR | os.O_CREAT)

        def refused(call: object, *arguments: object) -> None:
            try:
                call(*arguments)  # type: ignore[operator]
            except OSError as error:
                # numpy's own writing does not keep the number.
                assert error.errno in (errno.EFAULT, None), error
            else:
                raise AssertionError(call)
            assert os.fstat(fd).st_size == 0

        refused(os.write, fd, x[part])
        with open("out", "wb", buffering=0) as file:
            refused(file.write, x[part])
        refused(os.readv, os.open("numbers", os.O_RDONLY), [x[part]])
        region.populate(part)
        assert os.pwrite(fd, x[part], 0) == 4096
        region.evict()
        os.ftruncate(fd, 0)
        refused(os.write, fd, x[part])
        with region.pin(part):
            assert os.pwrite(fd, x[part], 0) == 4096
            x[part].tofile("out2")
        assert (np.fromfile("out2", "i8") == np.arange(1 << 17)[part]).all()
        # To read into it, it has to be writable too.
        region.populate(part)
        with open("numbers", "rb", buffering=0) as file:
            with region.pin(part, write=True):
                assert file.readinto(x[part]) == 4096
        assert (x[part] == np.arange(512)).all()
        region.evict()
        try:
            x[part].tofile("out3")
        except OSError:
            # The C library wrote in a system call, too.
            assert os.path.getsize("out3") < 4096
        else:
            assert (np.fromfile("out3", "i8") == np.arange(512)).all()
        # Once touched it can be given to a system call.
        x[part].sum()
        os.pwrite(fd, x[part], 0)

    if run_child(call, timeout=30, user=NOBODY, watchdog=False).stdout:
        pytest.skip("this machine gives nobody all of userfaultfd")


def test_pager_killed() -> None:
    """The guardian may do as nobody what it has to do."""

    def kill(write: str) -> None:
        import os
        import signal
        import time

        import refault
        from refault.client import connection

        z = refault.zeros(1 << 20, "u1", page_size="4KiB")
        assert z[0] == 0
        current = connection.current()
        assert current is not None
        os.kill(current.pager, signal.SIGKILL)
        time.sleep(0.1)
        if write:
            z[0] = 1
        else:
            print(z[500000])

    for write in ("", "write"):
        result = run_child(kill, timeout=30, user=NOBODY, args=[write], expect=-7)
        assert result.stdout == ""
        assert "it gets SIGBUS" in result.stderr


def test_doctor_says_so() -> None:
    code = "import sys\nfrom refault import cli\nsys.exit(cli.main(['doctor', '--json']))"
    answer = json.loads(run_child(code, timeout=30, user=NOBODY, watchdog=False).stdout)
    assert answer["ok"] is True
    limited = [check for check in answer["checks"] if check["found"] == "serves user code only"]
    assert limited, answer
    assert limited[0]["status"] == "warn"
    # What to do now, and what to do about it.
    assert "EFAULT" in limited[0]["fix"] and "pin" in limited[0]["fix"]
    assert any("/dev/userfaultfd" in check["fix"] for check in answer["checks"])

"""Saves of real memory, while the program goes on writing to it."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import refault
from helpers import processes
from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.reading import read_with_zarr
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.slow]

KILLS = int(os.environ.get("REFAULT_KILLS", "8"))
"""How often a program is killed while it saves."""


@pytest.mark.usefixtures("nothing_left")
def test_every_checkpoint_is_one_instant(tmp_path: Path) -> None:
    """Threads move amounts between pages of two arrays; no checkpoint has another sum."""
    code = """
        import sys, threading, time
        import numpy as np
        import refault

        PLACES = 64
        x = refault.zeros((PLACES, 8192), "i8", resident="1MiB")
        y = refault.zeros((PLACES, 8192), "i8", resident="1MiB", order="F")
        x[:, 0] = 1000
        stop = threading.Event()

        def move(seed):
            random = np.random.default_rng(seed)
            while not stop.is_set():
                a, b, amount = random.integers(0, PLACES, 3)
                with lock:
                    x[a, 0] -= amount
                    y[b, 8191] += amount
                    y[b, 8191] -= amount // 2
                    x[b, 0] += amount // 2
                time.sleep(0.001)

        lock = threading.Lock()
        movers = [threading.Thread(target=move, args=(seed,)) for seed in range(2)]
        for one in movers:
            one.start()
        with refault.Checkpoints(sys.argv[1]) as ck:
            done = []
            for number in range(12):
                # The lock makes an amount that is on its way part of no instant.
                with lock:
                    save = ck.save({"x": x, "y": y}, message=str(number))
                    sums = x[:, 0].sum() + y[:, 8191].sum()
                if number % 3 == 2:
                    save.result(60)
                done.append((save, sums))
            for save, sums in done:
                id = save.result(60).id
                loaded = ck.load(id, resident="1MiB")
                assert loaded["x"][:, 0].sum() + loaded["y"][:, 8191].sum() == sums == 64_000
                del loaded
            assert not ck.verify().damage
            stop.set()
            for one in movers:
                one.join()
            last = ck.save({"x": x, "y": y}).result(60)
            loaded = ck.load()
            assert np.array_equal(loaded["x"], x)
            assert np.array_equal(loaded["y"], y)
            assert last.written < 300_000
            del loaded
        del x, y
    """
    run_child(code, timeout=100, args=[str(tmp_path / "ck")])


@pytest.mark.usefixtures("nothing_left")
def test_going_on_from_a_checkpoint_is_incremental(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        import refault

        with refault.Checkpoints(sys.argv[1]) as ck:
            x = refault.zeros(1 << 20, "i4", resident="2MiB")
            x[:] = np.random.default_rng(0).integers(0, 1 << 30, 1 << 20)
            expected = np.array(x)
            first = ck.save({"x": x}).result(60)
            assert first.written > 4_000_000
            ck.branch("try")
        with refault.Checkpoints(sys.argv[1]) as ck:
            for branch in ("main", "try"):
                mine = ck.load(branch, mode="c", resident="2MiB")["x"]
                other = ck.load(branch)["x"]
                mine[5], mine[-1] = 1, 2
                done = ck.save({"x": mine}, branch=branch).result(60)
                assert 0 < done.written < 140_000, done.written
                assert np.array_equal(other, expected)
                changed = expected.copy()
                changed[5], changed[-1] = 1, 2
                assert np.array_equal(ck.load(branch)["x"], changed)
                assert np.array_equal(ck.load(first)["x"], expected)
                assert [one.what for one in ck.diff(first, done)] == ["changed"]
            # A view of what was loaded is other memory, and is compared as a whole.
            assert ck.save({"x": mine[: 1 << 19]}).result(60).nbytes == 2 << 20
            assert np.array_equal(ck.load()["x"], changed[: 1 << 19])
            del mine, other
        del x
    """
    run_child(code, timeout=100, args=[str(tmp_path / "ck")])


@pytest.mark.usefixtures("nothing_left")
def test_the_pager_starts_while_the_checkpoint_is_looked_up(tmp_path: Path) -> None:
    """One that nobody needs in the end is not left behind; and it is one, not two."""
    code = """
        import os, sys, threading
        from pathlib import Path
        import numpy as np
        import refault
        from refault.checkpoints import checkpoints
        from refault.client import connection

        def children():
            path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
            return path.read_text().split()

        seen = []
        resolve = checkpoints.resolve
        checkpoints.resolve = lambda *args: (seen.append(children()), resolve(*args))[1]
        files = len(os.listdir("/proc/self/fd"))
        with refault.Checkpoints(sys.argv[1]) as ck:
            ck.save({"x": np.arange(5)}).result(60)
            files = len(os.listdir("/proc/self/fd"))
            try:
                ck.load("nonsense")
            except refault.UsageError as error:
                print(error)
            assert len(seen[-1]) == 1 and not children(), (seen, children())
            assert len(os.listdir("/proc/self/fd")) <= files
            x = ck.load()["x"]
            assert seen[-1] == children() == [str(connection.current().pager)]
            assert x[4] == 4
            ck.load()
            assert seen[-1] == children() and len(seen[-1]) == 1
            if not os.fork():
                assert ck._pid != os.getpid()
                assert refault.zeros(3)[2] == 0
                os._exit(0)
            assert os.wait()[1] == 0
    """
    assert "nonsense" in run_child(code, timeout=60, args=[str(tmp_path / "ck")]).stdout


@pytest.mark.usefixtures("nothing_left")
def test_a_failed_save_gives_its_snapshot_back(tmp_path: Path) -> None:
    code = """
        import gc, os, sys
        import numpy as np
        import refault
        import refault.client.snapshot as module
        from refault.checkpoints import instant

        place = sys.argv[1]
        x = refault.zeros(1 << 20, "i4", resident="2MiB")
        x[:] = np.random.default_rng(0).integers(0, 1 << 30, 1 << 20)
        with refault.Checkpoints(place) as ck:
            ck.save({"x": x}).result(60)
            os.rename(f"{place}/chunks", f"{place}/elsewhere")
            open(f"{place}/chunks", "w").close()
            x[5] = -1
            failed = []
            read_snapshot = instant.read_snapshot

            def fail(*args):
                raise refault.StoreError("out of ink")

            for number in range(3):
                if number == 1:
                    instant.read_snapshot = fail
                save = ck.save({"x": x})
                try:
                    save.result(60)
                except refault.StoreError as error:
                    failed.append((save, error))
            assert len(failed) == 3
            instant.read_snapshot = read_snapshot
            assert "out of ink" in str(failed[1][1])
            # They keep nothing of the memory, although they are kept.
            kept = [one for one in gc.get_objects() if isinstance(one, module.Snapshot)]
            assert all(one.closed for one in kept)
            os.unlink(f"{place}/chunks")
            os.rename(f"{place}/elsewhere", f"{place}/chunks")
            x[1 << 19] = -2
            assert 0 < ck.save({"x": x}).result(60).written < 140_000
            assert np.array_equal(ck.load()["x"], x)
        del x
    """
    run_child(code, timeout=100, args=[str(tmp_path / "ck")])


@pytest.mark.usefixtures("nothing_left")
def test_a_program_that_ends_finishes_its_saves(tmp_path: Path) -> None:
    code = """
        import sys
        import refault

        x = refault.zeros(4 << 20, "i4", resident="4MiB")
        x[:] = 7
        ck = refault.Checkpoints(sys.argv[1])
        for number in range(3):
            x[number] = number
            ck.save({"x": x}, message=str(number))
    """
    done = run_child(code, timeout=100, args=[str(tmp_path / "ck")])
    assert done.stderr == ""
    check = """
        import sys
        from helpers.reading import read_with_zarr

        assert list(read_with_zarr(sys.argv[1])["x"][:4]) == [0, 1, 2, 7]
    """
    run_child(check, timeout=100, args=[str(tmp_path / "ck")], env=ENVIRONMENT)


def test_arrays_are_not_kept_alive(tmp_path: Path) -> None:
    code = """
        import gc, sys, weakref
        import refault

        with refault.Checkpoints(sys.argv[1]) as ck:
            x = refault.zeros(1 << 20)
            x[:] = 1
            ck.save({"x": x}).result(60)
            loaded = ck.load(mode="c")["x"]
            regions = [weakref.ref(refault.region(one)) for one in (x, loaded)]
            del x, loaded
            gc.collect()
            assert [one() for one in regions] == [None, None]
            ck.save({"x": refault.zeros(1 << 20)}).result(60)
            assert not ck.load()["x"].any()
    """
    run_child(code, timeout=100, args=[str(tmp_path / "ck")])


@pytest.mark.parametrize("user", [None, 65534], ids=["as-we-are", "unprivileged"])
def test_pages_that_are_not_there(user: int | None) -> None:
    """Where system calls get no missing page, the pages are asked for before."""
    code = """
        import tempfile
        import numpy as np
        import refault

        x = refault.zeros(1 << 20, "i4", resident="512KiB")
        expected = np.arange(1 << 20, dtype="i4")
        x[:] = expected
        with tempfile.TemporaryDirectory() as place, refault.Checkpoints(place) as ck:
            ck.save({"x": x}).result(60)
            x[:: 1 << 16] = expected[:: 1 << 16] = -1
            assert ck.save({"x": x}).result(60).written < 17 * 66_000
            assert np.array_equal(ck.load(resident="512KiB")["x"], expected)
        del x
    """
    run_child(code, timeout=100, user=user)


def test_in_a_forked_child(tmp_path: Path) -> None:
    code = """
        import os, sys
        import numpy as np
        import refault

        ck = refault.Checkpoints(sys.argv[1])
        ck.save({"x": np.zeros(3)}).result(60)
        pid = os.fork()
        if not pid:
            try:
                ck.save({"x": np.zeros(3)})
            except refault.UsageError as error:
                os._exit(17 if "before the process forked" in str(error) else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
        ck.close()
    """
    run_child(code, timeout=100, args=[str(tmp_path / "ck")], watchdog=False)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A small disk of its own, in a mount namespace of its own, which ends with the child."""
    code = """
        import ctypes, os, subprocess, sys
        import numpy as np
        import refault

        place, NEWNS = sys.argv[1], 0x20000
        os.mkdir(place)
        unshared = ctypes.CDLL(None, use_errno=True).unshare(NEWNS) == 0
        if unshared:
            for words in (
                ["--make-rprivate", "/"],
                ["-t", "tmpfs", "-o", "size=16m", "refault-test", place],
            ):
                done = subprocess.run(["mount", *words], capture_output=True, text=True)
                unshared = unshared and done.returncode == 0
        if not unshared:
            print("no disk of its own")
            sys.exit()

        def leave(room):
            free = os.statvfs(place)
            with open(f"{place}/filler", "wb") as file:
                file.write(bytes(free.f_bavail * free.f_bsize - room))

        random = np.random.default_rng(0)
        x = refault.zeros(1 << 20, "i4", resident="1MiB", page_size="64KiB")
        x[:] = random.integers(0, 1 << 30, len(x))
        small = np.arange(1000.0)
        with refault.Checkpoints(f"{place}/ck") as ck:
            last = ck.save({"x": x, "small": small}).result(60)
            # No room at all; for some of the chunks; for the chunk and not for the commit.
            for room, changed in ((0, 1), (1 << 20, len(x)), (76 << 10, 1)):
                before, x[:changed] = np.array(x), random.integers(0, 1 << 30, changed)
                wanted = np.array(x)
                leave(room)
                try:
                    ck.save({"x": x, "small": small}).result(60)
                except refault.StoreError as error:
                    print(error)
                else:
                    raise AssertionError(room)
                assert np.array_equal(x, wanted)
                assert ck.history()[0] == last and ck.verify().damage == []
                assert np.array_equal(ck.load()["x"], before)
                # With room again, the next one has what the failed one should have had.
                os.unlink(f"{place}/filler")
                x[-1] = wanted[-1] = -room
                done = ck.save({"x": x, "small": small}).result(60)
                assert done.parent == last.id and ck.verify().damage == []
                assert np.array_equal(ck.load()["x"], wanted)
                last = done
        del x
    """
    out = run_child(code, timeout=100, args=[str(tmp_path / "disk")]).stdout
    if "no disk of its own" in out:
        pytest.skip("a disk of its own needs root, and a mount namespace")
    assert len(out.splitlines()) == 3
    assert all("No space left" in line and "has room" in line for line in out.splitlines()), out
    assert list((tmp_path / "disk").iterdir()) == []


PROGRAM = """
import sys
import numpy as np
import refault

ck = refault.Checkpoints(sys.argv[1])
x = refault.zeros((256, 16384), "i4", resident="4MiB")
y = refault.zeros(100_000, "i4", resident="1MiB")
step = 0
print(refault.client.connection.connect().pager, flush=True)
while True:
    step += 1
    # The first save is a large one, the others are short; all of x and y say when it was.
    x[:, 0] = step
    x[step % 256] = step
    y[:] = step
    save = ck.save({"x": x, "y": y, "step": np.array(step)}, message=str(step))
    print(step, flush=True)
    if step % 2:
        print("saved", save.result().message, flush=True)
"""


@pytest.mark.timeout(60 + 10 * KILLS)
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What was committed is whole, whoever is killed, and whenever."""
    # Its limit is of all tests; this one has one of its own.
    faulthandler.cancel_dump_traceback_later()
    chance = random.Random(0)
    place = tmp_path / "ck"
    for number in range(KILLS):
        kill_while_saving(tmp_path, chance, pager=number % 2 == 1)
        with refault.Checkpoints(place) as ck:
            try:
                history = ck.history()
            except refault.UsageError:
                continue  # killed before the first checkpoint
            for one in history[:3]:
                assert ck.verify(one).damage == []
                found = read_with_zarr(place, snapshot_id=one.id)
                step = int(one.message)
                assert found["step"] == step
                assert (found["x"][:, 0] == step).all()
                assert (found["x"][step % 256] == step).all()
                assert (found["y"] == step).all()
        # Every other one begins anew.
        if number % 4 == 3:
            place.rename(tmp_path / f"ck-{number}")


def kill_while_saving(tmp_path: Path, chance: random.Random, *, pager: bool) -> None:
    """Start the program, kill it or its pager after a random time, and wait for the end of both."""
    known = {one.key for one in processes.descendants()}
    (tmp_path / "program.py").write_text(PROGRAM)
    with open(tmp_path / "output", "w+") as output:
        program = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "ck")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        assert program.stdout is not None
        victim = int(program.stdout.readline())
        said = "".join(program.stdout.readline() for _ in range(chance.randrange(1, 4)))
        time.sleep(chance.uniform(0, 0.2))
        os.kill(victim if pager else program.pid, signal.SIGKILL)
        said += program.stdout.read()
        program.stdout.close()
        status = program.wait(60)
        output.seek(0)
        assert status != 0, said + output.read()
    left = processes.wait_until_gone(known, 30)
    assert not left, left
    # What `result` has given back is there.
    saved = [int(line.split()[1]) for line in said.splitlines() if line.startswith("saved")]
    if saved:
        with refault.Checkpoints(tmp_path / "ck") as ck:
            assert int(ck.history()[0].message) >= saved[-1]

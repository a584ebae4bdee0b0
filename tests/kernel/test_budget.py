"""The bound on memory, measured from outside: what the memfds of the pager really hold."""

from __future__ import annotations

import pathlib

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]
Path = pathlib.Path

# The sampler is a process of its own: it runs while the program sleeps in a fault.
SAMPLER = """
    import os
    import sys

    pager = int(sys.argv[1])
    folder = f"/proc/{pager}/fd"
    peaks, peak, samples = {}, 0, 0

    def memfds():
        found = {}
        for name in os.listdir(folder):
            try:
                link = os.readlink(f"{folder}/{name}")
                if "/memfd:refault" in link:
                    status = os.stat(f"{folder}/{name}")
                    found[status.st_ino] = (f"{folder}/{name}", status.st_blocks * 512)
            except FileNotFoundError:
                pass
        return found

    known = memfds()
    os.write(1, b"ready\\n")
    os.set_blocking(0, False)
    def held_by_all(files):
        total = 0
        for inode, (path, _) in files:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            if status.st_ino != inode:
                continue
            held = status.st_blocks * 512
            total += held
            peaks[inode] = max(peaks.get(inode, 0), held)
        return total

    files = list(known.items())
    while True:
        # The files are looked at one after the other, and pages go from one to another meanwhile:
        # what is counted twice in this order is not counted at all in the other one.
        peak = max(peak, min(held_by_all(files), held_by_all(files[::-1])))
        samples += 1
        try:
            if os.read(0, 1) == b"":
                break
        except BlockingIOError:
            pass
    print(max(peaks.values()), peak, samples)
"""

SAMPLING = """
    import contextlib
    import subprocess
    import sys

    from refault.client import connection

    @contextlib.contextmanager
    def sampled(found):
        command = [sys.executable, "sampler.py", str(connection.current().pager)]
        sampler = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert sampler.stdout.readline() == "ready\\n"
        yield
        out, _ = sampler.communicate(timeout=10)
        assert sampler.returncode == 0
        found["one"], found["all"], samples = map(int, out.split())
        print(found, samples)
        assert samples > 100, samples
"""

FILES = {"sampler.py": SAMPLER, "sampling.py": SAMPLING}


@pytest.mark.parametrize(("page_size", "budget"), [(4096, 1 << 20), (65536, 1 << 20)])
def test_one_region(tmp_path: Path, page_size: int, budget: int) -> None:
    def write(path: str, page: str, limit: str) -> None:
        import time

        import numpy as np
        import sampling  # type: ignore[import-not-found]

        import refault

        page_size, budget = int(page), int(limit)
        size = 16 << 20
        with open(path, "wb") as file:
            file.truncate(size)
        options = {"page_size": page_size, "resident": budget}
        for x in (refault.open(path, "r+", **options), refault.zeros(size, "u1", **options)):
            found: dict[str, int] = {}
            random = np.random.default_rng(page_size)
            wanted = np.zeros(size, "u1")
            with sampling.sampled(found):
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:
                    where = random.integers(0, size, 200)
                    x[where] = wanted[where] = random.integers(0, 255)
                    start = int(random.integers(0, size - (1 << 18)))
                    x[start : start + (1 << 18)].sum()
            assert found["one"] <= budget + page_size, found
            assert found["one"] >= budget // 2, found
            statistics = refault.region(x).statistics()
            assert statistics.peak_resident <= budget
            assert (x == wanted).all()
            del x

    run_child(
        write,
        args=[str(tmp_path / "file"), str(page_size), str(budget)],
        files=FILES,
        timeout=30,
    )


def test_several_regions_and_a_process_budget(tmp_path: Path) -> None:
    def write(path: str) -> None:
        import threading
        import time

        import numpy as np
        import sampling

        import refault

        size, page_size, whole = 4 << 20, 4096, 2 << 20
        refault.configure(resident=whole)
        for name in (path, path + ".private"):
            with open(name, "wb") as file:
                file.truncate(size)
        arrays = [
            refault.open(path, "r+", page_size=page_size),
            refault.open(path + ".private", "c", page_size=page_size, resident="1MiB"),
            refault.zeros(size, "u1", page_size=page_size),
            refault.zeros(size, "u1", page_size=page_size),
        ]
        wanted = [np.zeros(size, "u1") for _ in arrays]
        deadline = time.monotonic() + 1.5

        def use(number: int) -> None:
            random = np.random.default_rng(number)
            x, y = arrays[number], wanted[number]
            while time.monotonic() < deadline:
                where = random.integers(0, size, 100)
                x[where] = y[where] = random.integers(0, 255)
                start = int(random.integers(0, size - 65536))
                x[start : start + 65536].sum()

        found: dict[str, int] = {}
        with sampling.sampled(found):
            threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        # The sum is taken in pieces while pages move from one region to another.
        assert found["all"] <= whole + (256 << 10), found
        assert found["all"] >= whole // 2, found
        for x, y in zip(arrays, wanted, strict=True):
            assert (x == y).all()
        statistics = refault.region(arrays[1]).statistics()
        assert statistics.peak_resident <= 1 << 20
        # A smaller one holds at once.
        refault.configure(resident="512KiB")
        for x in arrays:
            x[::4096].sum()
        deadline = time.monotonic() + 0.3
        with sampling.sampled(found):
            use(2)
        assert found["all"] <= (512 << 10) + 65536, found

    run_child(write, args=[str(tmp_path / "file")], files=FILES, timeout=30)

"""What was opened and closed is gone: descriptors, memory and mappings, here and in the pager."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]
Path = pathlib.Path

MEASURE = """
    import dataclasses
    import gc
    import os
    import time

    from refault.client import connection

    @dataclasses.dataclass
    class Measured:
        descriptors: int
        pager_descriptors: int
        mappings: int
        pager_mappings: int
        addresses: int
        resident: int
        pager_resident: int

    def lines(path):
        with open(path) as file:
            return sum(1 for _ in file)

    def memory(pid, field):
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[field]) * 4096

    def threads(pid):
        return len(os.listdir(f"/proc/{pid}/task"))

    def measure():
        gc.collect()
        current = connection.current()
        current.call(__import__("refault.wire.messages").wire.messages.Statistics(None))
        pager = current.pager
        return Measured(
            len(os.listdir("/proc/self/fd")),
            len(os.listdir(f"/proc/{pager}/fd")),
            lines("/proc/self/maps"),
            lines(f"/proc/{pager}/maps"),
            memory(os.getpid(), 0),
            memory(os.getpid(), 1),
            memory(pager, 1),
        )

    def same(before, *, addresses=8, resident=12 << 20):
        deadline = time.monotonic() + 2
        after = measure()
        # The pager closes its end of a request after it has answered.
        while (
            after.pager_descriptors > before.pager_descriptors and time.monotonic() < deadline
        ):
            after = measure()
        print(before)
        print(after)
        assert after.descriptors == before.descriptors
        assert after.pager_descriptors <= before.pager_descriptors
        # The C library keeps stacks and arenas of threads that have ended.
        assert after.mappings <= before.mappings + 10
        assert after.pager_mappings <= before.pager_mappings + 150
        # An arena of the C library takes 64 MiB of addresses.
        assert after.addresses <= before.addresses + (addresses << 20)
        assert after.resident <= before.resident + resident
        assert after.pager_resident <= before.pager_resident + resident
"""

FILES = {"measuring.py": MEASURE}


def run(code: Callable[..., object], *arguments: Path) -> None:
    result = run_child(code, args=[*map(str, arguments)], files=FILES, timeout=25)
    assert result.stderr == ""


def test_rounds(tmp_path: Path) -> None:
    def rounds(path: str) -> None:
        import measuring  # type: ignore[import-not-found]

        import refault

        with open(path, "wb") as file:
            file.write(bytes(1 << 16))

        def one_round() -> None:
            for by_close in (True, False):
                x = refault.open(path, "r+", page_size="4KiB", resident="32KiB")
                y = refault.zeros(1 << 16, "u1", page_size="4KiB", resident="16KiB")
                x[::8192] += 1
                y[::8192] = 1
                regions = [refault.region(x), refault.region(y)] if by_close else []
                del x, y
                for region in regions:
                    region.close()

        for _ in range(50):
            one_round()
        before = measuring.measure()
        for _ in range(250):
            one_round()
        measuring.same(before)

    run(rounds, tmp_path / "file")


def test_two_thousand_regions(tmp_path: Path) -> None:
    def many(path: str) -> None:
        import resource

        import measuring

        import refault

        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(7)[1]))
        with open(path, "wb") as file:
            file.write(b"y" * 8192)
        first = refault.zeros(1)
        before = measuring.measure()

        def one_round() -> None:
            arrays = [
                refault.zeros(8192, "u1", page_size="4KiB")
                if number % 2
                else refault.open(path, "c", page_size="4KiB")
                for number in range(2000)
            ]
            for number, x in enumerate(arrays):
                x[5000] = number % 200
            assert all(x[5000] == number % 200 for number, x in enumerate(arrays))
            assert all(x[0] == (0 if number % 2 else ord("y")) for number, x in enumerate(arrays))
            middle = measuring.measure()
            assert middle.descriptors == before.descriptors
            # One thread for each region would be too many.
            assert measuring.threads(measuring.connection.current().pager) < 100

        # What the first round needed, the C library keeps.
        one_round()
        before = measuring.measure()
        one_round()
        measuring.same(before)
        del first

    run(many, tmp_path / "file")


def test_pins() -> None:
    def pins() -> None:
        import measuring

        import refault

        x = refault.zeros(1 << 20, "u1", page_size="4KiB", resident="64KiB")
        region = refault.region(x)
        with region.pin(slice(0, 1)):
            pass
        before = measuring.measure()
        for number in range(200):
            at = number * 4096
            with region.pin(slice(at, at + 8192), write=bool(number % 2)) as pin:
                del pin
            held = region.pin(slice(at, at + 1))
            del held
        measuring.same(before)
        assert region.statistics().pinned == 0
        many = [region.pin(slice(0, 4096)) for _ in range(200)]
        assert region.statistics().pinned == 4096
        many.clear()
        measuring.same(before)
        assert region.statistics().pinned == 0
        x[:] = 1
        assert x.sum() == 1 << 20

    run(pins)


def test_failures(tmp_path: Path) -> None:
    def fail(path: str) -> None:
        import os
        import resource

        import measuring

        import refault
        from refault.client import connection

        with open(path, "wb") as file:
            file.write(bytes(10000))
        with open(path + ".npy", "wb") as file:
            file.write(b"\x93NUMPY\x01\x00 not a header")
        os.mkfifo(path + ".pipe")
        kept = refault.open(path, page_size="4KiB")

        class Bad:
            size = 4096

            def read_into(self, offset: int, buffer: bytearray) -> None:
                raise ValueError

            def __reduce__(self) -> object:
                return int, ("not a number",)

        class Worse(Bad):
            def __reduce__(self) -> object:
                raise TypeError("not to be pickled")

        attempts = [
            lambda: refault.open(path + ".no"),
            lambda: refault.open(path + ".npy"),
            lambda: refault.open(path + ".pipe", "r+"),
            lambda: refault.open(os.path.dirname(path)),
            lambda: refault.open(path, dtype="V48"),
            lambda: refault.open(path, shape=20000),
            lambda: refault.open(path, offset=20000),
            lambda: refault.open(path, page_size=8192),
            lambda: refault.open(path, mode="c", page_size=4095),
            lambda: refault.open(path, resident=100),
            lambda: refault.open(path, mode="w+", shape=5),
            lambda: refault.zeros(1 << 60, "u1"),
            lambda: refault.zeros(1 << 20, "u1", page_size=1 << 22),
            lambda: refault.open(Bad()),
            lambda: refault.open(Worse()),
            lambda: refault.region(kept).pin(slice(0, 1), write=True),
            lambda: connection.current().call(refault.wire.messages.Flush(12345, 0, 1)),
        ]

        def without_descriptors() -> None:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.open("/dev/null", os.O_RDONLY)
            os.close(free)
            try:
                for more in range(8):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, limits[1]))
                    try:
                        x = refault.open(path, "c")
                        del x
                    except OSError:
                        pass
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

        def one_round() -> None:
            for number, attempt in enumerate(attempts):
                try:
                    attempt()
                except (refault.Error, OSError, TypeError, ValueError):
                    pass
                else:
                    raise AssertionError(f"attempt {number} succeeded")
            without_descriptors()

        for _ in range(3):
            one_round()
        before = measuring.measure()
        for _ in range(20):
            one_round()
        measuring.same(before)
        assert kept.sum() == 0

    run(fail, tmp_path / "file")


def test_opened_again_while_it_is_closed(tmp_path: Path) -> None:
    """The pages of a file are shared with the region that is being written back."""

    def reopen(path: str) -> None:
        import threading
        import time

        import measuring

        import refault

        with open(path, "wb") as file:
            file.truncate(64 << 20)
        kept = refault.zeros(1)
        before = measuring.measure()
        for number in range(8):
            x = refault.open(path, "r+", resident="128MiB")
            x[:] = number
            region = refault.region(x)
            del x
            closer = threading.Thread(target=region.close)
            closer.start()
            time.sleep(number * 0.002)
            while closer.is_alive():
                y = refault.open(path, "r+", resident="128MiB")
                assert y[12345] == number
                del y
            closer.join()
            with open(path, "rb") as file:
                assert file.read() == bytes([number]) * (64 << 20)
        del region
        measuring.same(before, addresses=400, resident=160 << 20)
        del kept

    run(reopen, tmp_path / "file")


def test_opened_written_and_closed_by_several_threads(tmp_path: Path) -> None:
    """Whoever ends last may find that others have come, written and gone while it wrote."""

    def several(path: str) -> None:
        import random
        import threading
        import time

        import numpy as np

        import refault

        dice = random.Random(1)
        np.zeros(3 << 17, "i8").tofile(path)
        problems = []

        def work(number: int) -> None:
            try:
                for value in range(1, 61):
                    x = refault.open(path, "r+", dtype="i8")
                    assert x[number] == x[number - 3] == value - 1
                    x[number :: 3 << 10] = value
                    x[number - 3] = value
                    time.sleep(dice.random() * 0.004)
                    del x
                    time.sleep(dice.random() * 0.004)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        assert list(np.fromfile(path, "i8")[[0, 1, 2, -3, -2, -1]]) == [60] * 6

    run(several, tmp_path / "file")


def test_long_names(tmp_path: Path) -> None:
    def open_it(path: str) -> None:
        import os

        import refault

        # The longest that a file may have; memfds must be content with less.
        name = os.path.join(os.path.dirname(path), "\u8a9e" * 85)
        with open(name, "wb") as file:
            file.write(b"y")
        assert refault.open(name)[0] == ord("y")

    run(open_it, tmp_path / "file")


def test_a_busy_thread_does_not_hold_up_the_next_job() -> None:
    import os
    import threading

    from refault.pager.workers import Workers

    workers = Workers()
    lane = workers.lane(2)
    for _ in range(10):
        done, release = threading.Event(), threading.Event()
        lane.submit(done.set, lambda *_: None)
        assert done.wait(5)
        while not lane.idle:
            threading.Event().wait(0.001)
        done.clear()
        lane.submit(release.wait, lambda *_: None)
        lane.submit(done.set, lambda *_: None)
        came = done.wait(1)
        release.set()
        assert came
    lane.close()
    while lane.threads:
        threading.Event().wait(0.001)
    os.close(workers.fd)

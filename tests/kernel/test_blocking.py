"""A store that does not answer: what signals, other threads and other regions see of it.

Time is measured and printed.  The limits that fail a test are generous, since the
machine may be busy with something else.
"""

from __future__ import annotations

import pathlib

import pytest

from helpers.child import Result, run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left", "served_by"),
]


@pytest.fixture
def gate(tmp_path: pathlib.Path) -> str:
    """The store answers as long as this file exists."""
    return str(tmp_path / "gate")


def run(code: object, *args: str, timeout: float = 15) -> Result:
    assert callable(code)
    done = run_child(code, timeout=timeout, args=args, env=ENVIRONMENT)
    print(done.stdout, end="")
    return done


def ctrl_c(gate: str) -> None:
    import os
    import signal
    import statistics
    import time

    import refault
    from helpers import child_tools

    size, unit = 1 << 20, 8192
    store = child_tools.Keeping(size, gate)
    x = refault.open(
        store, "r+", dtype="u1", shape=size, page_size=unit, deadline=None, readahead=False
    )
    region = refault.region(x)
    right = child_tools.content(0, size)
    seconds = []
    with child_tools.Signals() as signals:
        for turn in range(24):
            at = turn * unit * 3 + 5000
            signals.order(0.05, signal.SIGINT)
            caught = 0.0
            try:
                if turn % 4 == 0:
                    x[at] = 99
                elif turn % 4 == 1:
                    x[at : at + 2000].sum()
                elif turn % 4 == 2:
                    x[at : at + 2000] += 1
                else:
                    x[at]
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:
                caught = time.monotonic()
            assert caught, turn
            seconds.append(caught - signals.sent())
            if turn % 3 == 0:
                # The very next touch, the store still silent.
                signals.touch(0.02, gate)
                assert x[at] == right[at], (turn, x[at])
                assert bytes(x[at - 100 : at + 2000]) == right[at - 100 : at + 2000], turn
                os.unlink(gate)
                signals.sent()
        open(gate, "x").close()
    assert x.tobytes() == right
    seen = region.statistics()
    assert seen.given_up >= 24, seen
    del x
    region.close()
    ms = [1e3 * one for one in seconds]
    print(f"Ctrl-C: median {statistics.median(ms):.2f} ms, at most {max(ms):.2f} ms")
    assert statistics.median(ms) < 1000


def test_ctrl_c_in_a_touch(gate: str) -> None:
    run(ctrl_c, gate)


def while_it_is_read(gate: str) -> None:
    """The read ends at about the time when the page is given up and taken back."""
    import os
    import random
    import signal
    import time

    import refault
    from helpers import child_tools

    size, unit = 4 << 20, 4096
    x = refault.open(
        child_tools.Blocking(size, gate), dtype="u1", shape=size, page_size=unit, readahead=False
    )
    right = child_tools.content(0, size)
    dice = random.Random(5)
    interrupted = 0
    with child_tools.Signals() as signals:
        for at in range(4000, 200 * unit, unit):
            signals.order(0.004, signal.SIGINT)
            signals.touch(dice.uniform(0, 0.002), gate)
            try:
                x[at]
                # The signal comes here if the store was faster.  (Not in a sleep: a signal
                # that came before it does not end it.)
                end = time.monotonic() + 5
                while time.monotonic() < end:
                    pass
            except KeyboardInterrupt:
                interrupted += 1
            assert x[at] == right[at], (at, x[at])
            signals.sent(), signals.sent()
            os.unlink(gate)
        open(gate, "x").close()
    assert interrupted == 200
    assert x.tobytes() == right


def test_ctrl_c_while_the_store_answers(gate: str) -> None:
    run(while_it_is_read, gate)


def shared_page(gate: str) -> None:
    """Another thread waits for the page that the main thread would give up."""
    import ctypes
    import os
    import signal
    import threading
    import time

    import refault
    from helpers import child_tools

    size, unit = 1 << 20, 8192
    x = refault.open(
        child_tools.Blocking(size, gate), dtype="u1", shape=size, page_size=unit, readahead=False
    )
    right = child_tools.content(0, size)
    found = ctypes.create_string_buffer(100)
    base = x.ctypes.data
    with child_tools.Signals() as signals:
        for turn in range(10):
            at = turn * unit
            thread = threading.Thread(target=ctypes.memmove, args=(found, base + at + 9, 100))
            thread.start()
            time.sleep(0.02)
            signals.order(0.02, signal.SIGINT)
            signals.touch(0.05, gate)
            try:
                x[at]
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("not interrupted")
            thread.join()
            assert found.raw == right[at + 9 : at + 109], turn
            assert x[at] == right[at]
            signals.sent(), signals.sent()
            os.unlink(gate)


def test_no_page_is_given_up_under_another_thread(gate: str) -> None:
    run(shared_page, gate)


def late_signals(gate: str) -> None:
    """Many a Ctrl-C that hits no touch: none may be left over for a later one."""
    import os
    import signal

    import refault
    from helpers import child_tools

    size, unit = 4 << 20, 4096
    x = refault.open(
        child_tools.Blocking(size, gate), dtype="u1", shape=size, page_size=unit, readahead=False
    )
    quick = refault.zeros(1 << 20, "u1", page_size=unit)
    region = refault.region(quick)
    right = child_tools.content(0, size)
    with child_tools.Signals() as signals:
        for turn in range(60):
            signals.order(0.005, signal.SIGINT, times=3)
            signals.touch(0, gate + "-all-sent")
            caught = 0
            over = False
            while not over:
                try:
                    while not os.path.exists(gate + "-all-sent"):
                        region.populate()
                        region.evict()
                    over = True
                except KeyboardInterrupt:
                    caught += 1
            assert caught
            os.unlink(gate + "-all-sent")
            for _ in range(4):
                signals.sent()
            at = turn * unit
            signals.touch(0.01, gate)
            value = x[at]
            assert value == right[at], (turn, value)
            signals.sent()
            os.unlink(gate)


def test_a_ctrl_c_is_over_when_it_was_raised(gate: str) -> None:
    run(late_signals, gate)


def own_handler(gate: str, when: str, kind: str) -> None:
    import asyncio
    import os
    import signal
    import time

    import refault
    from helpers import child_tools

    size, unit = 1 << 20, 4096
    arrived = []

    def remember(number: int, frame: object) -> None:
        arrived.append(time.monotonic())

    handler = signal.SIG_IGN if kind == "ignored" else remember
    if when == "before":
        signal.signal(signal.SIGINT, handler)
    x = refault.open(
        child_tools.Blocking(size, gate), "c", dtype="u1", shape=size, page_size=unit,
        readahead=False, deadline=None,
    )  # fmt: skip
    right = child_tools.content(0, size)

    def touches() -> None:
        with child_tools.Signals() as signals:
            for turn in range(6):
                at = turn * 10 * unit + 77
                signals.order(0.03, signal.SIGINT, times=3)
                signals.touch(0.03, gate)
                if turn % 2:
                    value = x[at]
                    assert value == right[at], value
                else:
                    x[at] = 9
                    assert bytes(x[at - 77 : at]) == right[at - 77 : at]
                    assert bytes(x[at + 1 : at + 2 * unit]) == right[at + 1 : at + 2 * unit]
                touched = time.monotonic()
                sent = [signals.sent() for _ in range(4)]
                assert touched > sent[3], "not blocked"
                if kind != "ignored":
                    assert arrived, turn
                    arrived.clear()
                os.unlink(gate)

    if when == "loop":

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, lambda: None)
            touches()

        asyncio.run(main())
    else:
        if when == "after":
            signal.signal(signal.SIGINT, handler)
        touches()
    assert refault.region(x).statistics().given_up == 0


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["flag", "ignored"])
def test_nothing_is_given_up_for_a_handler_that_may_return(gate: str, when: str, kind: str) -> None:
    run(own_handler, gate, when, kind)


def test_nothing_is_given_up_for_a_handler_of_an_event_loop(gate: str) -> None:
    run(own_handler, gate, "loop", "ignored")


def in_asyncio(gate: str) -> None:
    import asyncio
    import os
    import signal
    import time

    import refault
    from helpers import child_tools

    size = 1 << 20
    store = child_tools.Blocking(size, gate)
    right = child_tools.content(0, size)
    x = refault.open(store, dtype="u1", shape=size, page_size=4096, readahead=False)

    def interrupted(at: int) -> bool:
        signals.order(0.05, signal.SIGINT)
        try:
            x[at]
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            print(f"Ctrl-C: {1e3 * (time.monotonic() - signals.sent()):.2f} ms")
            return True
        return False

    async def touch() -> None:
        assert interrupted(5000)
        # Others run on; so the event loop is sound.
        await asyncio.sleep(0.01)

    async def loop_with_handlers() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        await asyncio.sleep(0)

    async def touch_uncaught() -> None:
        signals.order(0.05, signal.SIGINT)
        x[50_000]
        await asyncio.sleep(5)

    with child_tools.Signals() as signals:
        asyncio.run(touch())
        try:
            asyncio.run(touch_uncaught())
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        signals.sent()
        # Such a loop takes the wakeup descriptor away, and gives back none.
        asyncio.run(loop_with_handlers())
        refault.zeros(10)
        assert interrupted(90_000)
        open(gate, "x").close()
        assert x.tobytes() == right
        os.unlink(gate)


def test_ctrl_c_with_asyncio(gate: str) -> None:
    run(in_asyncio, gate)


def in_populate(gate: str) -> None:
    import os
    import signal
    import time

    import refault
    from helpers import child_tools

    size = 1 << 20
    x = refault.open(child_tools.Blocking(size, gate), dtype="u1", shape=size, page_size=4096)
    region = refault.region(x)
    right = child_tools.content(0, size)
    usr1: list[float] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: usr1.append(time.monotonic()))
    with child_tools.Signals() as signals:
        for wait in (region.populate, region.pin):
            signals.order(0.05, signal.SIGUSR1)
            signals.order(0.1, signal.SIGINT)
            try:
                wait(slice(0, 100_000))
            except KeyboardInterrupt:
                caught = time.monotonic()
            else:
                raise AssertionError("not interrupted")
            sent = signals.sent()
            assert sent <= usr1[-1] < sent + 0.1 + 1, "the handler ran while we waited"
            asked = signals.sent()
            assert usr1[-1] < asked
            print(f"SIGUSR1 after {1e3 * (usr1[-1] - sent):.2f} ms, Ctrl-C in {wait.__name__}"
                  f" after {1e3 * (caught - asked):.2f} ms")  # fmt: skip
            assert caught - asked < 1
            assert region.statistics().pinned == 0
        signals.touch(0.05, gate)
        region.populate(slice(0, 100_000))
        assert bytes(x[:100_000]) == right[:100_000]
    os.unlink(gate)


def test_signals_while_populate_waits(gate: str) -> None:
    run(in_populate, gate)


def handlers_in_c(gate: str, report: str) -> None:
    import faulthandler
    import os
    import signal
    import time

    import refault
    from helpers import child_tools

    size = 1 << 20
    x = refault.open(child_tools.Blocking(size, gate), dtype="u1", shape=size, page_size=4096)
    right = child_tools.content(0, size)
    usr2: list[float] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: usr2.append(time.monotonic()))
    with open(report, "w") as file, child_tools.Signals() as signals:
        faulthandler.register(signal.SIGUSR1, file=file)
        signals.order(0.1, signal.SIGUSR1)
        signals.order(0.0, signal.SIGUSR2)
        signals.touch(0.2, gate)
        value = x[777]
        touched = time.monotonic()
        assert value == right[777]
        faulthandler.unregister(signal.SIGUSR1)
        signals.sent(), signals.sent()
        answered = signals.sent()
    assert usr2 and answered < usr2[0] < touched + 1, (answered, usr2, touched)
    assert os.stat(report).st_mtime_ns < os.stat(gate).st_mtime_ns
    with open(report) as file:
        assert "in handlers_in_c" in file.read()
    os.unlink(gate)


def test_handlers_in_c_run_in_a_touch_and_those_in_python_after_it(
    gate: str, tmp_path: pathlib.Path
) -> None:
    run(handlers_in_c, gate, str(tmp_path / "report"))


def beside(gate: str) -> None:
    import ctypes
    import os
    import statistics
    import threading
    import time

    import numpy as np

    import refault
    from helpers import child_tools

    size, unit = 8 << 20, 4096
    free = 4 << 20
    store = child_tools.Keeping(size, gate, free)
    slow = refault.open(
        store, "r+", dtype="u1", shape=size, page_size=unit, readahead=False, deadline=None
    )
    region = refault.region(slow)
    right = child_tools.content(0, size)
    region.populate(slice(0, free))
    # A store of the same kind: its reads go through threads as well.
    quick = refault.open(
        child_tools.Plain(size), dtype="u1", shape=size, page_size=unit, resident="1MiB",
        readahead=False,
    )  # fmt: skip

    found = [ctypes.create_string_buffer(2000) for _ in range(8)]
    base = slow.ctypes.data

    def block(number: int) -> None:
        # ctypes gives the GIL up before it calls.
        ctypes.memmove(found[number], base + free + number * 100_000, 2000)

    before = region.statistics().store_reads
    threads = [threading.Thread(target=block, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while region.statistics().retries_read == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
        if all(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            break
    assert region.statistics().store_reads == before

    def timed(touch: object, places: range) -> list[float]:
        assert callable(touch)
        seconds = []
        for at in places:
            begin = time.monotonic()
            touch(at)
            seconds.append(1e3 * (time.monotonic() - begin))
        return sorted(seconds)

    def read(at: int) -> None:
        assert quick[at] == right[at]

    def write(at: int) -> None:
        slow[at] = 7

    others = timed(read, range(0, unit * 300, unit))
    protected = timed(write, range(0, unit * 300, unit))
    assert region.statistics().dirty == 300 * unit
    # A thread that waits for the GIL beside one that holds it in a touch, which then ends.
    turns: list[None] = []

    def python() -> None:
        while len(turns) < 1000:
            turns.append(None)
            time.sleep(0)

    runner = threading.Thread(target=python)
    runner.start()
    with child_tools.Signals() as signals:
        signals.touch(0.1, gate)
        assert slow[size - 1] == right[size - 1]
    for thread in (*threads, runner):
        thread.join()
    for number in range(8):
        at = free + number * 100_000
        assert found[number].raw == right[at : at + 2000]
    expected = np.frombuffer(right, "u1").copy()
    expected[0 : unit * 300 : unit] = 7
    assert np.array_equal(slow, expected)
    region.evict()
    assert np.array_equal(slow, expected)
    for what, ms in (("faults of another region", others), ("write-protect faults", protected)):
        print(f"{what}: median {statistics.median(ms):.3f} ms, at most {ms[-1]:.2f} ms")
        assert ms[-1] < 5000
        assert statistics.median(ms) < 100
    os.unlink(gate)


def test_blocked_reads_delay_nobody_else(gate: str) -> None:
    run(beside, gate)

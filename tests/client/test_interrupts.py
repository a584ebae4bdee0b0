from __future__ import annotations

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = needs_userfaultfd

STORES = """
    import time


    class Stuck:
        name = "stuck"
        size = 1 << 20

        def read_into(self, offset, buffer):
            if offset + len(buffer) > 1 << 19:
                time.sleep(1000)
            buffer[:] = bytes([1]) * len(buffer)
"""

PROLOGUE = """
    import os, signal, subprocess, time
    import refault
    from refault.client import connection
    import own_stores

    def interrupt_soon(seconds=0.4):
        return subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -INT {os.getpid()}"])

    def interrupts():
        return connection._interrupts

    def stuck():
        return refault.open(own_stores.Stuck(), dtype="u1", shape=1 << 20, deadline=20)
"""


def _run(code: str, **options: object) -> str:
    result = run_child(
        PROLOGUE + code,
        timeout=40,
        files={"own_stores.py": STORES},
        **options,  # type: ignore[arg-type]
    )
    return result.stderr


def test_a_touch_that_hangs_ends_with_keyboard_interrupt() -> None:
    code = """
    x = stuck()
    assert interrupts().slot
    for _ in range(2):
        child = interrupt_soon()
        try:
            int(x[-1])
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError
        child.wait()
    assert refault.region(x).statistics().given_up == 2
    assert x[0] == 1
    """
    _run(code)


@pytest.mark.parametrize("call", ["populate", "pin"])
def test_a_call_that_waits_ends_with_keyboard_interrupt(call: str) -> None:
    code = f"""
    x = stuck()
    child = interrupt_soon()
    begin = time.monotonic()
    try:
        refault.region(x).{call}(slice(-10, None))
    except KeyboardInterrupt:
        assert time.monotonic() - begin < 5
    else:
        raise AssertionError
    child.wait()
    assert x[0] == 1
    """
    _run(code)


def test_a_handler_of_the_user_is_left_alone() -> None:
    code = """
    seen = []
    handler = lambda *_: seen.append(1)
    signal.signal(signal.SIGINT, handler)
    x = refault.zeros(10)
    assert interrupts().slot == 0
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1
    """
    _run(code)


def test_a_wakeup_descriptor_of_the_user_is_left_alone() -> None:
    code = """
    import socket
    a, b = socket.socketpair()
    a.setblocking(False)
    signal.set_wakeup_fd(a.fileno())
    x = refault.zeros(10)
    assert interrupts().slot == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == a.fileno()
    a.close()
    b.close()
    """
    _run(code)


def test_other_threads_change_nothing() -> None:
    code = """
    import threading
    thread = threading.Thread(target=refault.zeros, args=(10,))
    thread.start()
    thread.join()
    assert interrupts().slot == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    """
    _run(code)


def test_the_slot_is_the_pointer_to_the_handler() -> None:
    code = """
    import ctypes
    begin = time.perf_counter()
    x = refault.zeros(10)
    slot, handler = interrupts().slot, interrupts().handler
    read = lambda: ctypes.c_uint64.from_address(slot).value
    ours = signal.getsignal(signal.SIGINT)
    assert read() == handler == id(ours)
    mine = lambda *_: None
    signal.signal(signal.SIGINT, mine)
    assert read() == id(mine)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    refault.zeros(10)
    assert read() == handler, "taken again once it was the default"
    """
    _run(code)


def test_asyncio_works_and_ends_with_keyboard_interrupt() -> None:
    code = """
    import asyncio
    x = refault.full(10, 3)

    async def main():
        await asyncio.sleep(0.05)
        assert x.sum() == 30
        await asyncio.sleep(20)

    child = interrupt_soon()
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError
    child.wait()
    """
    _run(code)


def test_a_child_is_interrupted_by_its_own_signals_only() -> None:
    code = """
    x = stuck()
    pid = os.fork()
    if pid == 0:
        assert interrupts().slot
        killer = interrupt_soon()
        try:
            int(x[-1])
        except KeyboardInterrupt:
            killer.wait()
            os._exit(7)
        os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert refault.region(x).statistics().given_up == 1
    """
    _run(code, watchdog=False)

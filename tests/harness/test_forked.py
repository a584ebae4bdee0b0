"""`helpers.forked` fails loudly, says where it hung, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import time

from helpers import processes
from helpers.forked import run_forked


def hang_somewhere() -> None:
    time.sleep(60)


def hang_with_a_child() -> None:
    if os.fork() == 0:
        time.sleep(60)
    time.sleep(60)


def leave_a_child() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    return pid


def test_the_value_comes_back() -> None:
    assert run_forked(lambda: {"a": [1, 2]}, limit=10) == ({"a": [1, 2]}, "", 0)


def test_an_error_comes_back_with_its_traceback() -> None:
    ended = run_forked(lambda: 1 // 0, limit=10)
    assert "ZeroDivisionError" in ended.error
    assert "test_forked.py" in ended.error


def test_a_hang_says_where() -> None:
    begin = time.monotonic()
    ended = run_forked(hang_somewhere, limit=0.5)
    assert time.monotonic() - begin < 5
    assert "not done after 0.5 s" in ended.error
    assert "hang_somewhere" in ended.error, "the Python stack"
    assert "nanosleep" in ended.error, "the kernel's"


def test_a_death_is_told() -> None:
    ended = run_forked(lambda: os.kill(os.getpid(), signal.SIGBUS), limit=10)
    assert ended.status == -signal.SIGBUS
    assert "without an answer" in ended.error


def test_nobody_is_left() -> None:
    before = {one.key for one in processes.descendants()}
    assert "not done" in run_forked(hang_with_a_child, limit=0.5).error
    pid = run_forked(leave_a_child, limit=10).value
    assert pid > 0
    assert {one.key for one in processes.descendants()} <= before

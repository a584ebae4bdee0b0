"""Calls with a time limit, and a second one beside a slow first."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from refault.stores.tries import Tries


def test_what_the_call_returns_or_raises() -> None:
    tries = Tries(10, None, 2)
    assert tries.run(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        tries.run(lambda: 1 // 0)


def test_the_time_is_over() -> None:
    go = threading.Event()
    with pytest.raises(TimeoutError, match=r"within 0.05 s"):
        Tries(0.05, None, 2).run(go.wait)
    go.set()


def test_so_many_hang_and_no_more() -> None:
    go = threading.Event()
    tries = Tries(0.05, None, 3)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="no answer within"):
            tries.run(go.wait)
    with pytest.raises(TimeoutError, match="3 earlier requests have not ended"):
        tries.run(lambda: 5)
    go.set()
    ended = Tries(10, None, 1)
    while True:
        try:
            assert tries.run(lambda: 5) == 5
            break
        except TimeoutError:
            ended.run(lambda: None)


class Calls:
    """Each call does what stands in its place."""

    def __init__(self, *what: Callable[[], object]) -> None:
        self.what = list(what)
        self.made = 0

    def __call__(self) -> object:
        self.made += 1
        return self.what[self.made - 1]()


def test_a_second_call_answers_in_place_of_one_that_hangs() -> None:
    go = threading.Event()
    calls = Calls(go.wait, lambda: 2)
    assert Tries(30, 0.02, 2).run(calls) == 2
    assert calls.made == 2
    go.set()


def test_no_second_call_if_the_first_answers() -> None:
    calls = Calls(lambda: 1, lambda: 2)
    assert Tries(30, 20, 2).run(calls) == 1
    assert calls.made == 1


def test_one_that_fails_does_not_end_the_other() -> None:
    go = threading.Event()

    def first() -> int:
        go.wait(30)
        return 1

    def second() -> int:
        threading.Timer(0.05, go.set).start()
        raise OSError("no")

    assert Tries(30, 0.02, 2).run(Calls(first, second)) == 1


def test_both_fail() -> None:
    go = threading.Event()

    def first() -> int:
        go.wait(30)
        raise OSError("first")

    def second() -> int:
        go.set()
        raise OSError("second")

    with pytest.raises(OSError, match=r"first|second"):
        Tries(30, 0.02, 2).run(Calls(first, second))


def test_no_second_call_where_there_is_no_room() -> None:
    go = threading.Event()
    calls = Calls(lambda: go.wait(0.2), lambda: 2)
    assert Tries(30, 0.02, 1).run(calls) is False
    assert calls.made == 1

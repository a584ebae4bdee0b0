"""What a store of one's own gets from `RemoteStore`."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from helpers.child_tools import content
from refault.errors import StoreError
from refault.stores import Policy, RemoteStore

SIZE = 10_000


class Mine(RemoteStore):
    def __init__(self, policy: Policy) -> None:
        super().__init__("mine", policy)
        self.size = SIZE
        self.trick: Any = None

    def get_range(self, start: int, end: int) -> Any:
        return content(start, end - start) if self.trick is None else self.trick(start, end)


def test_it_makes_one_request_and_the_rest_is_seen_to() -> None:
    store = pickle.loads(pickle.dumps(Mine(Policy(parallel=3, read_bytes=8192))))
    assert (store.parallel, store.read_bytes) == (3, 8192)
    assert bytes(store.fetch(100, 10)) == content(100, 10)
    buffer = bytearray(10)
    store.read_into(SIZE - 10, memoryview(buffer))
    assert buffer == content(SIZE - 10, 10)
    with pytest.raises(
        StoreError, match="mine: cannot read 11 bytes at offset 9990: the store ends at"
    ):
        store.fetch(SIZE - 10, 11)


def test_what_it_raises_names_the_store() -> None:
    def fail(start: int, end: int) -> None:
        raise ConnectionError("see https://user:word@host/x?key=1")

    store = Mine(Policy())
    store.trick = fail
    with pytest.raises(StoreError) as caught:
        store.fetch(5, 10)
    assert str(caught.value) == (
        "mine: cannot read 10 bytes at offset 5: ConnectionError: see https://host/x"
    )
    assert not caught.value.permanent


@pytest.mark.parametrize("length", [0, 9, 11])
def test_an_answer_of_another_length_is_refused(length: int) -> None:
    store = Mine(Policy())
    store.trick = lambda start, end: bytes(length)
    with pytest.raises(StoreError, match=f"an answer of {length} bytes was refused"):
        store.fetch(5, 10)


def test_what_hangs_has_failed() -> None:
    go = threading.Event()
    store = Mine(Policy(timeout=0.05))
    store.trick = lambda start, end: go.wait(60)
    with pytest.raises(StoreError, match=r"no answer within 0\.05 s"):
        store.fetch(5, 10)
    go.set()

"""Objects that are changed: replaced as a whole, by whoever opened them, and nothing is lost."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import obstore
import pytest

from helpers.child_tools import content
from helpers.object_server import object_server
from helpers.s3_server import S3
from refault.errors import StoreError, UsageError
from refault.stores import Obstore, Policy
from refault.stores.replacing import Replacing

SIZE = 300_000


def read(store: Any, offset: int, length: int) -> bytes:
    return bytes(store.fetch(offset, length))


class Whole:
    """What is replaced; fails on demand."""

    def __init__(self, size: int) -> None:
        self.data = content(0, size)
        self.reads: list[tuple[int, int]] = []
        self.error: BaseException | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def get(self, offset: int, length: int) -> memoryview:
        self.reads.append((offset, length))
        return memoryview(self.data)[offset : offset + length]

    def put(self, whole: memoryview) -> None:
        before = bytes(whole)
        self.meanwhile()
        assert before == bytes(whole)
        if self.error is not None:
            raise self.error
        self.data = before


@pytest.fixture
def whole() -> Whole:
    return Whole(SIZE)


@pytest.fixture
def replacing(whole: Whole) -> Iterator[Replacing]:
    made = Replacing("x", SIZE, whole.get, whole.get, whole.put, parallel=4, piece=10_000)
    yield made
    made.close()


def test_changes_are_read_back_and_put_at_once(whole: Whole, replacing: Replacing) -> None:
    draw, model = random.Random(4), bytearray(whole.data)
    for number in range(60):
        start = draw.randrange(SIZE)
        length = draw.randint(1, min(20_000, SIZE - start))
        if draw.random() < 0.5:
            data = draw.randbytes(length)
            replacing.write_from(start, memoryview(data))
            model[start : start + length] = data
        else:
            assert replacing.fetch(start, length) == model[start : start + length]
        if number % 20 == 19:
            replacing.flush()
            assert whole.data == model


def test_only_what_is_not_here_is_read_and_only_once(whole: Whole, replacing: Replacing) -> None:
    replacing.write_from(5000, memoryview(bytes(20_000)))
    replacing.flush()
    assert sorted(whole.reads)[:2] == [(0, 5000), (25_000, 10_000)]
    whole.reads.clear()
    replacing.write_from(0, memoryview(b"new"))
    replacing.flush()
    assert replacing.fetch(100_000, 10) == content(100_000, 10)
    assert not whole.reads


def test_nothing_changed_is_nothing_to_put(whole: Whole, replacing: Replacing) -> None:
    whole.error = AssertionError("put")
    replacing.flush()
    assert not whole.reads


def test_a_put_that_fails_loses_nothing(whole: Whole, replacing: Replacing) -> None:
    replacing.write_from(7, memoryview(b"seven"))
    whole.error = StoreError("no")
    for _ in range(2):
        with pytest.raises(StoreError):
            replacing.flush()
        assert whole.data == content(0, SIZE)
        assert replacing.fetch(7, 5) == b"seven"
    whole.error = None
    replacing.flush()
    assert whole.data[7:12] == b"seven"


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_written_during_a_put_is_in_the_next_one(
    whole: Whole, replacing: Replacing, fails: bool
) -> None:
    def meanwhile() -> None:
        replacing.write_from(7, memoryview(b"SEVEN"))
        assert replacing.fetch(6, 7) == content(6, 1) + b"SEVEN" + content(12, 1)

    whole.meanwhile = meanwhile
    whole.error = StoreError("no") if fails else None
    replacing.write_from(7, memoryview(b"seven"))
    if fails:
        with pytest.raises(StoreError):
            replacing.flush()
    else:
        replacing.flush()
        assert whole.data[7:12] == b"seven"
    assert replacing.fetch(7, 5) == b"SEVEN"
    whole.meanwhile, whole.error = (lambda: None), None
    replacing.flush()
    assert whole.data == content(0, 7) + b"SEVEN" + content(12, SIZE - 12)


def test_a_read_that_is_overtaken_by_a_put_is_answered_from_here(
    whole: Whole, replacing: Replacing
) -> None:
    """It asked for the old object, which is no more: that is no error."""
    plain = whole.get

    def get(offset: int, length: int) -> memoryview:
        replacing._get = plain
        replacing.flush()
        raise StoreError("it has changed since it was opened", permanent=True)

    replacing.write_from(7, memoryview(b"seven"))
    replacing._get = get
    assert replacing.fetch(100_000, 10) == content(100_000, 10)


def test_an_object_is_replaced(s3: S3) -> None:
    url = s3.put("replaced.bin", content(0, SIZE), **{"Content-Type": "a/b", "mine": "1"})
    store = Obstore.from_url(url, **s3.options)
    assert not store.readonly
    store.write_from(1000, memoryview(b"hello"))
    assert read(store, 999, 7) == content(999, 1) + b"hello" + content(1005, 1)
    assert s3.get("replaced.bin") == content(0, SIZE)
    for text in (b"hello", b"HELLO"):
        store.write_from(1000, memoryview(text))
        store.flush()
        new = content(0, 1000) + text + content(1005, SIZE - 1005)
        assert s3.get("replaced.bin") == new
        assert read(store, 0, SIZE) == new
    attributes = obstore.get(s3.store(), "replaced.bin").attributes
    assert (attributes["Content-Type"], attributes["mine"]) == ("a/b", "1")
    store.close()
    again = Obstore.from_url(url, **s3.options)
    assert read(again, 1000, 5) == b"HELLO"


def test_somebody_elses_change_is_not_overwritten(s3: S3) -> None:
    store = Obstore.from_url(s3.put("other.bin", content(0, SIZE)), **s3.options)
    store.write_from(0, memoryview(content(1, SIZE)))
    s3.put("other.bin", bytes(SIZE))
    with pytest.raises(StoreError, match="has changed since it was opened") as caught:
        store.flush()
    assert caught.value.permanent
    assert s3.get("other.bin") == bytes(SIZE)
    assert read(store, 0, SIZE) == content(1, SIZE)


def test_a_put_whose_answer_was_lost_is_known_again(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Obstore.from_url(s3.put("lost.bin", content(0, SIZE)), **s3.options)
    real = obstore.put

    def put(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **options)
        monkeypatch.setattr(obstore, "put", real)
        raise obstore.exceptions.GenericError("kind: Interrupted")

    monkeypatch.setattr(obstore, "put", put)
    store.write_from(0, memoryview(b"one"))
    with pytest.raises(StoreError, match="the connection broke off") as caught:
        store.flush()
    assert not caught.value.permanent
    store.write_from(3, memoryview(b"two"))
    store.flush()
    assert s3.get("lost.bin")[:6] == b"onetwo"


def test_a_hedged_store_puts_once(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(timeout=20, hedge_after=1e-6)
    store = Obstore.from_url(s3.put("once.bin", content(0, SIZE)), policy=policy, **s3.options)
    real, puts = obstore.put, []

    def put(*arguments: Any, **options: Any) -> Any:
        puts.append(threading.get_ident())
        return real(*arguments, **options)

    monkeypatch.setattr(obstore, "put", put)
    store.write_from(0, memoryview(b"one"))
    store.flush()
    assert len(puts) == 1


def test_what_cannot_be_replaced_says_why(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_server(content(0, SIZE)) as server:
        store = Obstore.from_url(server.url)
    with pytest.raises(StoreError, match="what is behind HTTP cannot be replaced") as caught:
        store.write_from(0, memoryview(b"x"))
    assert caught.value.permanent
    url = s3.put("large.bin", content(0, SIZE))
    monkeypatch.setattr("refault.stores.cloud._LARGEST", {"S3Store": SIZE - 1})
    assert "more than the 299999 bytes" in Obstore.from_url(url, **s3.options).readonly


def test_changes_do_not_travel(s3: S3) -> None:
    store = Obstore.from_url(s3.put("travel.bin", content(0, SIZE)), **s3.options)
    store.write_from(0, memoryview(b"x"))
    with pytest.raises(UsageError, match="not flushed"):
        pickle.dumps(store)
    store.close()
    pickle.dumps(store)
    with pytest.raises(StoreError, match="ends at 300000"):
        store.write_from(SIZE, memoryview(b"x"))

"""Stores that go wrong on purpose do so as they are told; and what becomes of it in an array."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from helpers.child import Result, run_child
from helpers.child_tools import ENVIRONMENT
from helpers.teststores import OnFile
from helpers.userfaultfd import needs_userfaultfd
from refault.errors import StoreError, UsageError
from refault.stores.objects import ObjectStore
from refault.testing import FlakyStore, SlowStore, TornStore
from refault.testing.storecase import random_content

SIZE = 1 << 18
SIGBUS = 7


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(random_content(SIZE))
    return path


def outcomes(store: Any, places: list[int]) -> dict[int, bool]:
    """Whether the first read of each place succeeds."""
    found = {}
    for place in places:
        try:
            store.read_into(place, memoryview(bytearray(10)))
        except OSError:
            found[place] = False
        else:
            found[place] = True
    return found


@pytest.mark.parametrize("kind", [FlakyStore, TornStore])
def test_seed_and_place_say_what_fails(kind: Any, file: Path) -> None:
    places = list(range(0, SIZE, 1000))
    first = outcomes(kind(OnFile(file), 0.2, 7), places)
    again = pickle.loads(pickle.dumps(kind(OnFile(file), 0.2, 7)))
    shuffled = random.Random(1).sample(places, len(places))
    assert outcomes(again, shuffled) == first
    assert outcomes(kind(OnFile(file), 0.2, 8), places) != first
    failures = len(places) - sum(first.values())
    assert again.failures == failures
    assert 0.15 < failures / len(places) < 0.25


def test_rates_at_the_ends(file: Path) -> None:
    places = list(range(0, SIZE, 10_000))
    assert all(outcomes(FlakyStore(OnFile(file), 0), places).values())
    assert not any(outcomes(FlakyStore(OnFile(file), 1), places).values())


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_that_are_none(rate: float, file: Path) -> None:
    for kind in (FlakyStore, TornStore):
        with pytest.raises(UsageError, match="no probability"):
            kind(OnFile(file), rate)
    with pytest.raises(UsageError, match="'fails', 'short', 'wrong', 'version'"):
        TornStore(OnFile(file), 0, how="quietly")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no time to wait"):
        SlowStore(OnFile(file), -1)


def test_flaky_read_leaves_rubbish_and_a_write_nothing(file: Path) -> None:
    before = file.read_bytes()
    for permanent in (False, True):
        store = ObjectStore(FlakyStore(OnFile(file), 1, permanent=permanent))
        buffer = bytearray(before[:100])
        for call in (
            lambda store=store, buffer=buffer: store.read_into(0, memoryview(buffer)),
            lambda store=store: store.write_from(0, memoryview(b"x" * 100)),
            lambda store=store: store.flush(),
        ):
            with pytest.raises(StoreError, match="injected failure") as caught:
                call()
            assert caught.value.permanent is permanent
        assert buffer != before[:100]
        assert file.read_bytes() == before


@pytest.mark.parametrize("how", ["fails", "short"])
def test_torn_half_is_refused(how: Any, file: Path) -> None:
    before = file.read_bytes()
    store = ObjectStore(TornStore(OnFile(file), 1, how=how))
    buffer = bytearray(100)
    said = "injected failure after 50 of 100" if how == "fails" else "returned 50 instead of 100"
    with pytest.raises(StoreError, match=said):
        store.read_into(0, memoryview(buffer))
    assert buffer[:50] == before[:50]
    assert not any(one == other for one, other in zip(buffer[50:], before[50:100], strict=True))
    with pytest.raises(StoreError, match=said):
        store.write_from(0, memoryview(b"x" * 100))
    assert file.read_bytes() == b"x" * 50 + before[50:]


def test_torn_bits_are_not_told(file: Path) -> None:
    before = file.read_bytes()
    store = ObjectStore(TornStore(OnFile(file), 1, how="wrong"))
    buffer = bytearray(100)
    store.read_into(0, memoryview(buffer))
    assert [place for place in range(100) if buffer[place] != before[place]] == [50]
    store.write_from(0, memoryview(b"x" * 100))
    assert file.read_bytes() == b"x" * 50 + b"y" + b"x" * 49 + before[100:]


def test_torn_version_is_another_one(file: Path) -> None:
    before = file.read_bytes()
    store = TornStore(OnFile(file), 1, how="version")
    versions = {store.version}
    for _ in range(3):
        buffer = bytearray(100)
        store.read_into(0, memoryview(buffer))
        assert buffer[:50] == before[:50] and buffer[50:] != before[50:100]
        versions.add(store.version)
    assert len(versions) == 4


def test_what_the_inner_store_says_is_passed_on(file: Path) -> None:
    inner = OnFile(file)
    inner.version = "seven"  # type: ignore[attr-defined]
    inner.read_nowait = inner.read_into  # type: ignore[attr-defined]
    store = FlakyStore(inner, 0.5)
    assert (store.name, store.size, store.version) == (str(file), SIZE, "seven")
    with pytest.raises(AttributeError, match="does not pass on the method read_nowait"):
        store.read_nowait  # noqa: B018  # Asked for, to see that it is not there.


def run(code: Any, *args: str, expect: int = 0) -> Result:
    done = run_child(code, timeout=60, args=args, env=ENVIRONMENT, expect=expect)
    print(done.stdout, end="")
    return done


def read_and_write(path: str, kind: str, rate: str) -> None:
    import random

    import numpy as np

    import refault
    from helpers.teststores import OnFile
    from refault.testing import FlakyStore, TornStore

    inner = OnFile(path)
    store = {
        "flaky": lambda: FlakyStore(inner, float(rate), 3),
        "torn": lambda: TornStore(inner, float(rate), 3),
        "short": lambda: TornStore(inner, float(rate), 3, how="short"),
    }[kind]()
    right = np.fromfile(path, "u1")
    # Without readahead it is certain that there are failures, however few.
    readahead = rate == "0.2"
    x = refault.open(
        store, "r+", dtype="u1", resident="64KiB", page_size="4KiB", readahead=readahead
    )
    region = refault.region(x)
    parts = [slice(at, at + 9_000) for at in range(0, len(right), 9_000)]
    for part in parts:
        assert np.array_equal(x[part], right[part]), part
    random.Random(4).shuffle(parts)
    for number, part in enumerate(parts):
        assert np.array_equal(x[part], right[part]), part
        x[part][::7] = number % 256
        right[part][::7] = number % 256
    while True:
        try:
            region.flush()
        except refault.StoreError:
            continue  # It says so, and what is not written stays in memory.
        break
    seen = region.statistics()
    print(seen)
    assert seen.store_errors > 0
    assert seen.retries_store_error > 0
    assert seen.given_up == 0
    del x
    region.close()
    assert np.array_equal(np.fromfile(path, "u1"), right)


@needs_userfaultfd
@pytest.mark.userfaultfd
@pytest.mark.parametrize(
    ("kind", "rate"), [("flaky", "0.01"), ("flaky", "0.2"), ("torn", "0.2"), ("short", "0.2")]
)
def test_every_byte_is_right_in_the_end(file: Path, kind: str, rate: str) -> None:
    file.write_bytes(random_content(SIZE if rate == "0.2" else 4 * SIZE))
    run(read_and_write, str(file), kind, rate)


def ask_before_touching(path: str) -> None:
    import numpy as np

    import refault
    from helpers.teststores import OnFile
    from refault.testing import FlakyStore

    store = FlakyStore(OnFile(path), 0.2, 3, permanent=True)
    right = np.fromfile(path, "u1")
    x = refault.open(store, dtype="u1", resident="64KiB", page_size="4KiB", readahead=False)
    region = refault.region(x)
    failed = None
    good = 0
    for at in range(0, len(right), 4096):
        part = slice(at, at + 4096)
        try:
            region.populate(part)
        except refault.StoreError as error:
            assert "injected failure" in str(error)
            failed = part
            continue
        assert np.array_equal(x[part], right[part]), at
        good += 1
    assert failed is not None
    assert 0.7 < good / (len(right) // 4096) < 0.9, good
    print("went on with", x[failed][0])


@needs_userfaultfd
@pytest.mark.userfaultfd
def test_or_the_access_fails_loudly(file: Path) -> None:
    done = run(ask_before_touching, str(file), expect=-SIGBUS)
    assert "went on" not in done.stdout
    assert "injected failure" in done.stderr
    assert "SIGBUS" in done.stderr

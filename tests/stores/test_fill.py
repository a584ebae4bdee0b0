from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refault.errors import StoreError, UsageError
from refault.stores.base import NowaitStore
from refault.stores.fill import FillStore


@given(
    st.integers(1, 70_000),
    st.integers(0, 300_000),
    st.one_of(st.integers(0, 64), st.integers(0, 200_000)),
)
def test_byte_i_is_pattern_i_modulo_its_length(period: int, offset: int, length: int) -> None:
    pattern = bytes((7 * i + i // 251) % 256 for i in range(period))
    store = FillStore(offset + length, pattern)
    buffer = bytearray(b"\xee" * length)
    store.read_into(offset, memoryview(buffer))
    start = offset % period
    assert buffer == (pattern * (length // period + 2))[start : start + length]


@pytest.mark.parametrize("pattern", [b"\0", b"\x07", b"\xff\x00", b"abc"])
def test_reading_never_waits(pattern: bytes) -> None:
    store = FillStore(1 << 40, pattern)
    assert isinstance(store, NowaitStore)
    buffer = bytearray(b"\xee" * 4096)
    assert store.read_nowait(1 << 39, memoryview(buffer)) is True
    assert buffer == bytes(pattern[((1 << 39) + i) % len(pattern)] for i in range(4096))


def test_nothing_is_made_up_past_the_end() -> None:
    store = FillStore(100, b"x")
    for read in (store.read_into, store.read_nowait):
        for offset in (90, 100, -1):
            with pytest.raises(StoreError, match="ends at 100") as caught:
                read(offset, memoryview(bytearray(11)))
            assert caught.value.permanent


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one byte"):
        FillStore(10, b"")
    with pytest.raises(UsageError, match="0 or more"):
        FillStore(-1, b"x")

"""Chunks as Zarr encodes them, and any flipped bit is seen."""

from __future__ import annotations

import numpy as np
import pytest

from refault.checkpoints.codec import Damaged, decode, encode

DATA = memoryview(np.arange(3000, dtype="u2").tobytes())


@pytest.mark.parametrize("level", [None, -1, 3])
def test_round_trip(level: int | None) -> None:
    stored = encode(DATA, len(DATA), level)
    assert decode(stored, len(DATA), compressed=level is not None) == DATA


def test_a_short_chunk_is_filled_with_zeros() -> None:
    stored = encode(DATA, 10_000, -1)
    assert decode(stored, 10_000, compressed=True) == bytes(DATA) + bytes(4000)


@pytest.mark.parametrize("level", [None, -1])
def test_every_flipped_byte_is_found(level: int | None) -> None:
    stored = encode(DATA[:300], 300, level)
    for at in range(len(stored)):
        for bit in (1, 0x80):
            damaged = bytearray(stored)
            damaged[at] ^= bit
            with pytest.raises(Damaged, match="checksum"):
                decode(bytes(damaged), 300, compressed=level is not None)


@pytest.mark.parametrize("length", [0, 3, 4, 100, 299])
def test_a_chunk_that_was_cut_short_is_found(length: int) -> None:
    stored = encode(DATA[:300], 300, None)
    with pytest.raises(Damaged):
        decode(stored[:length], 300, compressed=False)


def test_a_right_checksum_is_not_enough() -> None:
    with pytest.raises(Damaged, match="300 bytes instead of 301"):
        decode(encode(DATA[:300], 300, -1), 301, compressed=True)
    with pytest.raises(Damaged, match="decompressed"):
        decode(encode(DATA[:300], 300, None), 300, compressed=True)

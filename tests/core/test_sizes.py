from __future__ import annotations

import numpy as np
import pytest

from refault.errors import UsageError
from refault.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (4096, 4096),
        (np.int32(7), 7),
        (np.uint64(1 << 40), 1 << 40),
        ("123", 123),
        ("123B", 123),
        ("2GiB", 2 << 30),
        ("512MiB", 512 << 20),
        (" 64 KiB ", 64 << 10),
        ("1TiB", 1 << 40),
        ("1.5gib", 3 << 29),
        ("4GB", 4 * 10**9),
        ("4 kB", 4000),
        ("0.5MB", 500_000),
        ("1tb", 10**12),
    ],
)
def test_sizes(size: object, expected: int) -> None:
    number = parse_size(size)  # type: ignore[arg-type]
    assert number == expected
    assert type(number) is int


@pytest.mark.parametrize(
    "size",
    [
        *(-1, "-1", "-2GiB", True, False, np.bool_(True), 1.0, 2.5e9, float("nan"), float("inf")),
        *("", " ", "GiB", "nan", "1e9", "0x10", "1 2", "2 GiBs", "2Gib/s", "1.", ".5GiB", "1,5GiB"),
        *(None, b"2GiB", [1], 1j, "\u0663GiB", "0.3B", "0.0001KiB"),
    ],
)
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(UsageError, match=r"resident=.*'512 MiB'"):
        parse_size(size, name="resident")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["4G", "4g", "64K", "1M", "2 T"])
def test_an_ambiguous_unit_is_refused_and_both_meanings_are_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"iB \(powers of 1024\) or .*B \(powers of 1000\)"):
        parse_size(text)


def test_format() -> None:
    numbers = (0, 1023, 1024, 1536, 64 << 10, 3 << 30, 5 << 40)
    texts = ["0 B", "1023 B", "1 KiB", "1.5 KiB", "64 KiB", "3 GiB", "5 TiB"]
    assert [format_size(number) for number in numbers] == texts

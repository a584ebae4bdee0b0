"""`helpers.hugepages` says why there are none, and puts the pool back."""

from __future__ import annotations

import pathlib

import pytest

from helpers import hugepages


def test_a_refusal_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "POOL", "/proc/version/nothing")
    with hugepages.reserved_huge_pages(1 << 40) as why:
        assert "cannot be written" in why


def test_what_was_added_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    pool = tmp_path / "pool"
    pool.write_text("5")
    monkeypatch.setattr(hugepages, "POOL", str(pool))
    # No more than 8 can be had.
    monkeypatch.setattr(hugepages, "_meminfo", lambda _: min(8, int(pool.read_text())))
    with hugepages.reserved_huge_pages(2) as why:
        assert (why, pool.read_text()) == ("", "7")
    assert pool.read_text() == "5"
    with hugepages.reserved_huge_pages(4) as why:
        assert why == "no huge pages: only 3 of 4 could be had"
        pool.write_text("7")  # somebody else gives one back
    assert pool.read_text() == "4"

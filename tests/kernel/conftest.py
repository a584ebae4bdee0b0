"""Huge pages for the tests that need them, and both ways to serve a fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import refault.native
from helpers.hugepages import reserved_huge_pages

HUGE_PAGES = 40


@pytest.fixture(scope="session")
def huge_problem() -> Iterator[str]:
    """Why there are no huge pages; "" if there are."""
    with reserved_huge_pages(HUGE_PAGES) as why:
        yield why


@pytest.fixture(params=["native", "python"])
def served_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test twice: faults served by the native library, and by plain Python."""
    native = request.param == "native"
    if native and not refault.native.available():
        pytest.skip("no native library: there was no C compiler when refault was installed")
    monkeypatch.setenv("REFAULT_NATIVE", "1" if native else "0")
    return str(request.param)

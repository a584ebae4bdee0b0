"""Huge pages for the tests that need them, and the table of scenarios in the summary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.hugepages import reserved_huge_pages

HUGE_PAGES = 40


@pytest.fixture(scope="session")
def huge_problem() -> Iterator[str]:
    """Why there are no huge pages; "" if there are."""
    with reserved_huge_pages(HUGE_PAGES) as why:
        yield why


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from kernel.scenarios import table

    if len(table.RESULTS) < 10:  # a few were picked: their own lines are enough
        return
    terminalreporter.section("what userfaultfd does on this kernel", sep="-")
    for numbers, title, kinds, result in table.rows():
        terminalreporter.line(f"{numbers:>10}  {title}\n            {kinds}: {result or 'not run'}")

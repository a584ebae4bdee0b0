"""The old rule and the mail's; and what politeness is worth."""

from __future__ import annotations

import re

import pytest

from refault.fault.callers import RetryPolicy
from refault.testing.exploration import percentile
from refault.testing.pictures import drawn
from sim.policy import PAGE, PICTURES, RULES, Figures, measure, told


def test_one_retry_ends_in_sigbus() -> None:
    text = "\n".join(told(RetryPolicy.SINGLE))
    assert "why: try 2 has to wait for write_protect" in text
    assert "ALLOW_RETRY was taken away after try 1 (policy single)" in text
    assert "thread 0 ends with SIGBUS" in text


def test_many_retries_end_on_the_third() -> None:
    assert "ends after 3 tries: done" in "\n".join(told(RetryPolicy.MULTIPLE))


@pytest.fixture(scope="module")
def figures() -> list[Figures]:
    return [measure(name, 200) for name in RULES]


def test_politeness_lets_writers_in(figures: list[Figures]) -> None:
    mail, stubborn, _ = figures
    assert stubborn.mean_wait > 2 * mail.mean_wait


def test_stubbornness_bounds_the_tries(figures: list[Figures]) -> None:
    mail, _, polite = figures
    assert max(mail.tries) <= 5
    assert max(polite.tries) > max(mail.tries)
    assert percentile(mail.tries, 0.99) <= 3


def test_page_is_not_stale() -> None:
    text = PAGE.read_text()
    quick = {name: PICTURES[name] for name in ("single", "multiple")}
    assert drawn(text, quick) == text, "run: PYTHONPATH=tests python -m sim.policy"
    rows = re.findall(
        r"^\| ([^|]+) \| [\d.]+ \| \d+ \| \d+ \| [\d.]+ \| \d+ \| \d+ \|$", text, re.M
    )
    assert rows == list(RULES)

"""What is generated in the documentation is what the code says now."""

from __future__ import annotations

import pathlib

import pytest

from refault.testing.page_states import PAGE_STATES, TRANSITIONS
from refault.testing.pictures import PICTURES, drawn

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_states_are_drawn() -> None:
    text = (DOCS / "states.md").read_text()
    assert all(f"<!-- begin: {name} -->" in text for name in PICTURES)
    assert drawn(text) == text, "run: python -m refault.testing.pictures docs/states.md"


def test_stale_text_is_replaced() -> None:
    text = "a\n<!-- begin: page-lock -->\nold\n<!-- end: page-lock -->\nb\n"
    assert "old" not in drawn(text)
    assert drawn(drawn(text)) == drawn(text)


def test_foreign_marks_are_left_alone() -> None:
    text = "<!-- begin: other -->\nold\n<!-- end: other -->\n"
    assert drawn(text) == text


@pytest.mark.parametrize("name", PAGE_STATES)
def test_every_state_is_reached_and_left(name: str) -> None:
    assert any(row.after == name for row in TRANSITIONS)
    assert any(row.before == name for row in TRANSITIONS)

"""docs/exploring.md runs, and a scenario of one's own is as short as it says."""

from __future__ import annotations

import pathlib

from sybil import Document
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "exploring.md"


def blocks() -> list[str]:
    regions = FencedCodeBlockLexer("python")(Document(PAGE.read_text(), str(PAGE)))
    return [str(region.lexemes["source"]) for region in regions]


def test_examples_run() -> None:
    names: dict[str, object] = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)


def test_first_scenario_is_short() -> None:
    assert len(blocks()[0].splitlines()) < 30

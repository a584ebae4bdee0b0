"""Pages whose Python blocks are one program: it runs, and prints what the page says it prints."""

from __future__ import annotations

import pathlib
import re

import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = ["snapshots.md"]


def program(page: str) -> str:
    """All Python blocks of a page, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)
    assert blocks
    return "".join(blocks)


def said(code: str) -> list[str]:
    """What the comments behind `print` say, up to a colon."""
    return re.findall(r"^ *print\(.*\)  # ([^:\n]*)", code, re.M)


@needs_userfaultfd
@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, tmp_path: pathlib.Path) -> None:
    code = program(page)
    printed = run_child(code, timeout=60, cwd=tmp_path).stdout.splitlines()
    assert printed == said(code)

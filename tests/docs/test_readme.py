"""The README runs: its examples, and the commands it names."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess

import pytest
from sybil import Document
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def marked_block(mark: str) -> str:
    """The text of the fenced block that follows the comment `mark`."""
    found = re.findall(rf"^<!-- {mark} -->\n```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"README.md needs one block marked <!-- {mark} -->"
    return str(found[0])


def examples() -> str:
    """All Python blocks, as one program: later ones use the names of earlier ones."""
    regions = FencedCodeBlockLexer("python")(Document(README, "README.md"))
    blocks = [str(region.lexemes["source"]) for region in regions]
    assert blocks
    return "\n".join(blocks)


@needs_userfaultfd
def test_examples_run() -> None:
    run_child(examples(), timeout=60)


def test_examples_are_short() -> None:
    assert len(ast.parse(examples()).body) <= 15


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("main-command", ["pip install -q .", "-m refault demo"]),
        ("test-command", ["pip install -q -e '.[test]'", "-m pytest -q"]),
    ],
)
def test_command_stands_in_the_readme(mark: str, words: list[str]) -> None:
    command = marked_block(mark).strip()
    assert "\n" not in command
    assert all(word in command for word in words)
    subprocess.run(["sh", "-n", "-c", command], check=True, timeout=10)


def test_contributing_names_the_same_command() -> None:
    assert marked_block("test-command").strip() in (ROOT / "CONTRIBUTING.md").read_text()


def test_ci_takes_its_command_from_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert "<!-- test-command -->" in text
    assert "README.md" in text
    assert script.stat().st_mode & 0o111
    # It carries no command of its own beside that one.
    assert "pytest -q" not in text
    assert "pip install" not in text


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_demo_output_is_there() -> None:
    assert marked_block("demo-output").strip(), "paste the output of `python -m refault demo`"

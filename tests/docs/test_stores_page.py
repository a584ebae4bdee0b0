"""docs/stores.md runs: the store in 20 lines, its tests, and everything that uses it."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd
from refault.testing import StoreTests as Suite  # A name that pytest does not collect.

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "stores.md").read_text()


def blocks(mark: str) -> list[str]:
    """The Python blocks that follow the comment `mark`."""
    pattern = rf"^<!-- {re.escape(mark)} -->\n```python\n(.*?)^```$"
    return re.findall(pattern, PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_has_a_mark_and_so_is_run() -> None:
    marks = ("parts.py", "use", "test_parts.py")
    assert sum(len(blocks(mark)) for mark in marks) == PAGE.count("```python\n") == 6


def test_the_store_has_20_lines() -> None:
    (code,) = blocks("parts.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


@needs_userfaultfd
def test_it_can_be_used() -> None:
    (store,) = blocks("parts.py")
    run_child("".join(blocks("use")), timeout=60, files={"parts.py": store})


@needs_userfaultfd
def test_it_passes_the_suite(tmp_path: pathlib.Path) -> None:
    for name in ("parts.py", "test_parts.py"):
        (tmp_path / name).write_text(blocks(name)[0])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_parts.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    tests = [name for name in dir(Suite) if name.startswith("test_")]
    assert f"\n{len(tests)} passed" in done.stdout, done.stdout

"""The benchmarks run; what they say is for a quiet machine and longer runs."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from helpers.userfaultfd import needs_userfaultfd

ROOT = pathlib.Path(__file__).parents[2]


def benchmarks(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_cases_are_listed_with_a_summary() -> None:
    lines = benchmarks("--list").splitlines()
    files = {path.stem for path in (ROOT / "benchmarks" / "cases").glob("[a-z]*.py")}
    assert {line.split()[0] for line in lines} == files
    assert all(len(line.split()) > 5 for line in lines)


def test_the_readme_names_all_cases() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for path in (ROOT / "benchmarks" / "cases").glob("[a-z]*.py"):
        assert f"| `{path.stem}` |" in text


@needs_userfaultfd
@pytest.mark.userfaultfd
@pytest.mark.slow
def test_one_runs(tmp_path: pathlib.Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved.json"
    data.mkdir()
    text = benchmarks("threads16", "--quick", "--json", str(saved), "--data", str(data))
    assert "goal: refault, unfairness" in text
    (comparison,) = json.loads(saved.read_text())["comparisons"]
    (sample,) = comparison["samples"]["refault"]
    assert sample["per_second"] > 100
    assert not list(data.iterdir())

"""Pages whose Python blocks are one program: it runs, and prints what the page says it prints."""

from __future__ import annotations

import importlib.util
import pathlib
import re

import pytest

from helpers import servers
from helpers.child import run_child
from helpers.s3_server import S3
from helpers.userfaultfd import needs_userfaultfd

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = ["checkpoints.md", "safetensors.md", "snapshots.md", "workers.md", "working-sets.md"]


def program(page: str, language: str = "python") -> str:
    """All Python blocks of a page, one after the other."""
    text = (DOCS / page).read_text()
    blocks = re.findall(rf"^```(?:{language})\n(.*?)^```$", text, re.M | re.S)
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


@needs_userfaultfd
def test_far_memory_page_runs(tmp_path: pathlib.Path) -> None:
    with servers.redis() as server:
        code = program("far-memory.md").replace("redis://localhost:6379", server.url)
        assert code.count(server.url) == 3
        run_child(code, timeout=60, cwd=tmp_path)
        assert server.ask("DBSIZE") == b":0"


@needs_userfaultfd
def test_vectors_page_runs(s3: S3, tmp_path: pathlib.Path) -> None:
    code = program("vectors.md")
    done = run_child(code, timeout=60, env=s3.environment, cwd=tmp_path)
    assert done.stdout.splitlines() == said(code)


@needs_userfaultfd
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install ray"
)
def test_workers_page_runs_with_ray(tmp_path: pathlib.Path) -> None:
    """What needs Ray is marked as ``py``."""
    code = program("workers.md", "py|python")
    printed = run_child(code, timeout=110, cwd=tmp_path).stdout.splitlines()
    assert [line for line in printed if line in said(code)] == said(code)


@needs_userfaultfd
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed: pip install torch"
)
def test_safetensors_page_runs_with_torch(tmp_path: pathlib.Path) -> None:
    """What needs torch is marked as ``py``."""
    run_child(program("safetensors.md", "py|python"), timeout=60, cwd=tmp_path)

"""docs/remote.md runs, against S3 on this machine."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from sybil import Document
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from helpers.child import run_child
from helpers.s3_server import S3
from helpers.userfaultfd import needs_userfaultfd

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "remote.md"


def program() -> str:
    regions = FencedCodeBlockLexer("python")(Document(PAGE.read_text(), str(PAGE)))
    return "\n".join(str(region.lexemes["source"]) for region in regions)


@needs_userfaultfd
def test_examples_run(s3: S3) -> None:
    array = np.random.default_rng(1).random((4096, 512), "f4")
    file = io.BytesIO()
    np.save(file, array)
    s3.put("embeddings.npy", file.getvalue())
    done = run_child(program(), timeout=60, env=s3.environment)
    assert f"({len(array)}, 512) {array[-1, :3]}" in done.stdout
    assert "s3://bucket/embeddings.npy" in done.stdout
    array[:100] = 0
    assert np.array_equal(np.load(io.BytesIO(s3.get("embeddings.npy"))), array)


def test_the_page_names_every_default() -> None:
    from refault.stores import Policy

    policy, text = Policy(), PAGE.read_text()
    assert f"| `timeout` | {policy.timeout:g} |" in text
    assert f"| `parallel` | {policy.parallel} |" in text
    assert f"| `read_bytes` | {policy.read_bytes >> 20} MiB |" in text
    assert f"| `hedge_after` | {policy.hedge_after} |" in text

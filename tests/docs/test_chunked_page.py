"""docs/chunked.md runs, and says what the code does."""

from __future__ import annotations

import pathlib

from sybil import Document
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "chunked.md"


def program() -> str:
    regions = FencedCodeBlockLexer("python")(Document(PAGE.read_text(), str(PAGE)))
    return "\n".join(str(region.lexemes["source"]) for region in regions)


CHECKS = """
assert np.array_equal(x, z[:])
assert (np.diff(numbers[:]) >= 0).all() and len(numbers[:]) == 5000
assert np.array_equal(y, np.sort(np.random.default_rng(1).integers(0, 1_000_000, 5000)))
"""


@needs_userfaultfd
def test_examples_run(tmp_path: pathlib.Path) -> None:
    done = run_child(program() + CHECKS, timeout=60, cwd=tmp_path)
    assert "float32 (2000, 3000)" in done.stdout


def test_the_page_names_the_bounds() -> None:
    from refault.client import chunked
    from refault.stores.chunked import blosc2s, reading, store, view, zarrs

    text = " ".join(PAGE.read_text().split())
    assert f"at least {view.BLOCK_BYTES >> 10} KiB at a time" in text
    assert f"need little: {store.CACHE_BYTES >> 20} MiB is the bound" in text
    assert store.MEMORY_SHARE == 16 and "a sixteenth of the machine's memory" in text
    large, small = (size >> 10 for size in chunked.UNIT_BYTES)
    units = f"units are {large} KiB, or {small}, if `resident` has room for"
    assert f"{units} {chunked.LEAST_UNITS} of them" in text
    together = f"up to {zarrs.TOGETHER_BYTES >> 20} MiB at a time with Zarr"
    assert together in text and f"up to {blosc2s.TOGETHER_BYTES >> 20} MiB of Blosc2" in text
    assert f"comes on top: up to {reading.DECODING_BYTES >> 20} MiB, or two chunks" in text

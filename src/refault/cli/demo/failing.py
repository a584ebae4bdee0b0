"""Part 3: a store that fails now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

import refault

from .plan import Plan
from .report import Result
from .store import BLOCK, FailingStore, content
from .tally import Tally
from .witness import Witness

__all__ = ["read_from_failing_store"]


def read_from_failing_store(plan: Plan, progress: Callable[[str], None]) -> Result:
    """Read all blocks in random order, and compare them."""
    store = FailingStore(plan.store_bytes)
    array = refault.open(store, dtype="u1", resident=plan.store_resident)
    region = refault.region(array)
    tally = Tally()
    progress("reading from a store that fails")
    print("The next warnings are expected: that store fails on purpose.", file=sys.stderr)
    with Witness() as witness:
        for block in np.random.default_rng(0).permutation(store.size // BLOCK):
            found = array[block * BLOCK : (block + 1) * BLOCK]
            tally.compare(found, np.frombuffer(content(int(block)), np.uint8))
        statistics = region.statistics()
    return Result(
        title="failing store",
        nbytes=array.nbytes,
        statistics=statistics,
        peak_seen=witness.peak,
        write_rate=None,
        read_rate=None,
        checked=tally.checked,
        wrong=tally.wrong,
    )

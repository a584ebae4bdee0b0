"""The lists of native code against those of Python."""

from __future__ import annotations

import random

import pytest

from refault.machine.unitlists import unit_lists
from refault.memory.unitlists import GHOSTS, UnitLists
from refault.memory.workingset import WorkingSet
from refault.native import available

pytestmark = pytest.mark.skipif(
    not available(), reason="there is no native library, or it is not wanted"
)


@pytest.mark.parametrize(
    ("pages", "spread"), [(20_000, 1), (1 << 32, 1), (1 << 32, 1 << 19), (1 << 34, 1 << 19)]
)
def test_native_lists_are_the_same(pages: int, spread: int) -> None:
    """Many at a time, of few units that come again and again, near each other or not."""
    dice = random.Random(pages)
    units = [dice.randrange(1 << 13) * spread % pages for _ in range(5000)]
    sets = [WorkingSet(pages, 2000, lists=lists) for lists in (UnitLists, unit_lists)]
    for turn in range(100):
        many = dice.sample(units, dice.choice([1, 3, 20, 300]))
        drop = dice.sample(units, dice.choice([1, 10, 100]))
        found = []
        for each in sets:
            refaults = each.add_many(many)
            each.remove_many(drop, ghost=turn % 3 > 0)
            if len(each) > 2000:
                each.remove_many(sorted(each.victims(len(each) - 1500, lambda _: True)), ghost=True)
            found.append((refaults, each.state(), [each.lists.level(one) for one in many]))
        assert found[0] == found[1]
    assert len(sets[0]) > 1000
    assert sets[0].lists.counts[GHOSTS]

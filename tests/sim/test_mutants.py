"""Every known bug, put back into the fault path, is found."""

from __future__ import annotations

import dataclasses
import re

import pytest

from refault.testing import SCENARIOS, explore, explore_random, mixed, replay
from sim.mutants import MUTANTS, TABLE, Mutant, alive, by_name, hunt


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_is_caught(mutant: Mutant) -> None:
    found = hunt(mutant)
    print(
        f"{mutant.name}: {mutant.scenario}, {found.schedules} schedules, {found.states} states, "
        f"{found.seconds:.2f} s: {found.violation}"
    )
    assert found.violation, f"{mutant.name} survives {mutant.scenario}"
    assert found.seconds < 30


def test_random_schedules_find_it_too() -> None:
    """And the report has the shortest schedule that was found, which breaks the same promise."""
    with alive(by_name("detached-vma")):
        found = explore_random(mixed, 4000)
        assert found.violation
        assert found.seed is not None
        assert replay(found.scenario, found.schedule)[1] == found.violation
        again = explore_random(mixed, 1, seed=found.seed)
        assert again.schedule == found.schedule
        assert len(found.schedule) < 60
    assert not replay(found.scenario, found.schedule)[1]


def test_the_function_is_restored() -> None:
    mutant = by_name("retry-without-wait")
    before = mutant.function.__code__
    with alive(mutant):
        assert mutant.function.__code__ is not before
    assert mutant.function.__code__ is before
    assert not explore(SCENARIOS["third-retry"]).violation


def test_a_changed_function_fails_loudly() -> None:
    mutant = dataclasses.replace(MUTANTS[0], old="no such text")
    with pytest.raises(AssertionError, match="write the mutant anew"):
        with alive(mutant):
            pass


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_table_lists_them_all() -> None:
    rows = re.findall(
        r"^\| ([\w-]+) \| (.*) \| (.*) \| ([\w-]+) \| \d+ \| .+ \|$", TABLE.read_text(), re.M
    )
    now = [(m.name, m.what, m.rule, m.scenario) for m in MUTANTS]
    assert rows == now, "run: PYTHONPATH=tests python -m sim.mutants"

"""The kernel as witness: every scenario of the list, and the table of their results.

REFAULT_STRESS_SECONDS is how long each stress takes.  With REFAULT_WRITE_DOCS=1 the table
is written to docs/kernel-scenarios.md; otherwise only its structure is compared.
"""

from __future__ import annotations

import os

import pytest

from helpers.userfaultfd import needs_userfaultfd
from kernel.scenarios import table
from kernel.scenarios.all import SCENARIOS
from kernel.scenarios.memory import Kind
from kernel.scenarios.registry import Scenario

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd, pytest.mark.timeout(0)]

EVERY = [
    pytest.param(scenario, kind, id=f"{scenario.name}-{kind.name}")
    for scenario in SCENARIOS
    for kind in scenario.kinds
]


@pytest.mark.parametrize(("scenario", "kind"), EVERY)
def test_scenario(scenario: Scenario, kind: Kind, huge_problem: str) -> None:
    verdict, why = table.result_of(scenario, kind, huge_problem)
    if verdict == "fails":
        pytest.fail(f"{scenario.title}, {kind.name}:\n{why}", pytrace=False)
    if verdict != "passes":
        pytest.skip(f"{verdict}: {why}")


def test_the_list_is_whole() -> None:
    """The numbers of the list go from 1 to 44, and each has a scenario."""
    assert {number for scenario in SCENARIOS for number in scenario.numbers} == {*range(1, 45)}


def test_no_row_is_without_a_result(huge_problem: str) -> None:
    for scenario in SCENARIOS:
        for kind in scenario.kinds:
            verdict, why = table.result_of(scenario, kind, huge_problem)
            assert verdict == "passes" or why
    rows = list(table.rows())
    assert all(row.result for row in rows)
    if os.environ.get("REFAULT_WRITE_DOCS"):
        assert not [row for row in rows if row.result.startswith("fails")]
        table.write()


def test_the_table_in_the_docs_has_these_scenarios() -> None:
    """What each resulted in is of the kernel that it names; what there is to try is of us."""
    kernel, rows = table.committed()
    assert kernel
    assert all(row.result for row in rows)
    in_docs = {(row.numbers, row.title) for row in rows}
    ours = {(", ".join(map(str, entry.numbers)), entry.title) for entry in SCENARIOS}
    assert in_docs == ours, "run this file with REFAULT_WRITE_DOCS=1"

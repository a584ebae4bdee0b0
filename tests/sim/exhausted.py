"""Writes the table of exhausted scenarios into docs/exploring.md.

``PYTHONPATH=tests python -m sim.exhausted`` takes some minutes.
"""

from __future__ import annotations

import pathlib

from refault.testing import SCENARIOS, explore
from refault.testing.pictures import drawn, markdown_table

__all__ = ["PAGE", "main", "table"]

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "exploring.md"


def table() -> list[str]:
    """One row for each scenario, from a run of it."""
    rows = []
    for name, scenario in SCENARIOS.items():
        found = explore(scenario)
        if not found.complete:
            raise AssertionError(found.report())
        rows.append(
            (
                f"`{name}`",
                scenario.about,
                f"{found.states:,}",
                f"{found.schedules:,}",
                f"{found.seconds:.1f}",
                str(max(found.attempts, default=0)),
            )
        )
    head = ("scenario", "what happens", "states", "schedules", "seconds", "most tries")
    return markdown_table(head, rows)


def main() -> None:
    PAGE.write_text(drawn(PAGE.read_text(), {"exhausted": table}))


if __name__ == "__main__":
    main()

"""Draws pictures and tables for the documentation from the tables that the code uses.

``python -m refault.testing.pictures FILE...`` rewrites what stands between ``<!-- begin: NAME -->``
and ``<!-- end: NAME -->`` in the files, for every name that it knows.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Final

from refault.fault.flags import RETRY_COMBINATIONS
from refault.fault.locks import PAGE_LOCK_RULES

from .page_states import PAGE_STATES, TRANSITIONS

__all__ = ["PICTURES", "drawn", "markdown_table"]


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table.

    Parameters
    ----------
    head
        Names of the columns.
    rows
        What is in them.
    """
    names = list(head)
    return [
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def diagram() -> list[str]:
    """The states of a page and what leads from one to another, as a mermaid diagram."""
    short = {name: name.title().replace(",", "").replace(" ", "") for name in PAGE_STATES}
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> Absent"]
    lines += [f"    {short[name]}: {name}" for name in PAGE_STATES]
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in TRANSITIONS:
        arrows.setdefault((row.before, row.after), []).append(row.event)
    lines += [
        f"    {short[before]} --> {short[after]}: {', '.join(events)}"
        for (before, after), events in arrows.items()
    ]
    return [*lines, "```"]


def transitions() -> list[str]:
    """`TRANSITIONS` as a table."""
    return markdown_table(
        ("state", "event", "next state", "caused by"),
        ((row.before, row.event, row.after, row.who) for row in TRANSITIONS),
    )


def page_lock() -> list[str]:
    """`PAGE_LOCK_RULES` as a table."""

    def cells(row: int) -> list[str]:
        rule = PAGE_LOCK_RULES[row]
        if rule.waits is None:
            return [str(rule.row), rule.when, "no", "-", "kept", "no", "RETRY"]
        ends = {0: "nothing", 1: "a fatal signal", 2: "any signal"}[int(rule.waits)]
        killed = " (RETRY, lock given up, if killed)" if rule.waits and rule.takes_page else ""
        return [
            str(rule.row),
            rule.when,
            "until it is unlocked" if not rule.takes_page else "until it is ours",
            ends,
            "given up before the wait" if rule.drops_lock else "kept",
            "yes" if rule.takes_page else "no",
            ("0" if rule.takes_page else "RETRY") + killed,
        ]

    return markdown_table(
        ("row", "flags", "waits", "the wait ends with", "fault lock", "page locked", "returns"),
        (cells(row) for row in range(len(PAGE_LOCK_RULES))),
    )


def combinations() -> list[str]:
    """`RETRY_COMBINATIONS` as a table."""
    return markdown_table(
        ("", "ALLOW_RETRY", "TRIED", "legal", "meaning"),
        (
            (
                f"({row.letter})" if row.letter else "",
                "yes" if row.allow_retry else "no",
                "yes" if row.tried else "no",
                "yes" if row.legal else "never",
                row.meaning,
            )
            for row in RETRY_COMBINATIONS
        ),
    )


PICTURES: Final[dict[str, Callable[[], list[str]]]] = {
    "diagram": diagram,
    "transitions": transitions,
    "page-lock": page_lock,
    "combinations": combinations,
}
"""What can stand between the marks, by name."""


def drawn(text: str, pictures: dict[str, Callable[[], list[str]]] = PICTURES) -> str:
    """A text with everything between known marks drawn anew.

    Parameters
    ----------
    text
        Of a document.
    pictures
        By the name in the marks.

    Returns
    -------
    str
    """

    def draw(found: re.Match[str]) -> str:
        picture = pictures.get(found["name"])
        if picture is None:
            return found[0]
        return "\n".join([found["begin"], "", *picture(), "", found["end"]])

    return re.sub(
        r"(?P<begin><!-- begin: (?P<name>[\w-]+) -->)\n.*?(?P<end><!-- end: (?P=name) -->)",
        draw,
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Draw anew what is in the files that are named."""
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        path.write_text(drawn(path.read_text()))


if __name__ == "__main__":
    main()

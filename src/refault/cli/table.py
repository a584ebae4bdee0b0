"""A table on standard output: rich's if it is installed, columns of plain text if not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

__all__ = ["print_table"]

GAP = "  "


def print_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
    """Print rows of text below their titles.

    Parameters
    ----------
    titles
        Of the columns.
    rows
        As many cells each.
    right
        Titles of columns that are aligned to the right: numbers.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _plain(titles, rows, right)
        return
    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    # Into a file or a pipe goes all of it; a terminal cuts what it has no room for.
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    width = sum(widths) + len(GAP) * len(widths)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(width, shutil.get_terminal_size().columns))
    console.print(table)


def _plain(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in [titles, *rows]:
        cells = (
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, width, title in zip(row, widths, titles, strict=True)
        )
        print(GAP.join(cells).rstrip())

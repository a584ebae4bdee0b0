"""What the demo found, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from refault.client.statistics import RegionStatistics
from refault.sizes import format_size

__all__ = ["Result", "as_dict", "problems", "show", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one part of the demo."""

    title: str
    nbytes: int
    statistics: RegionStatistics
    peak_seen: int
    """The most bytes in memory that the witness saw."""
    write_rate: float | None
    read_rate: float | None
    """Bytes per second, where all is written or read in order; else None."""
    checked: int
    """Bytes that were compared."""
    wrong: int
    seconds: float = 0.0


def problems(result: Result) -> list[str]:
    """What is wrong with a result."""
    found = []
    if result.wrong:
        found.append(f"{result.title}: {result.wrong:,} of {result.checked:,} bytes are wrong")
    most = result.statistics.budget + result.statistics.page_size
    if result.peak_seen > most:
        found.append(
            f"{result.title}: {format_size(result.peak_seen)} were in memory, and"
            f" {format_size(result.statistics.budget)} are allowed"
        )
    if not result.peak_seen:
        found.append(f"{result.title}: nobody saw any memory being used")
    return found


def as_dict(result: Result) -> dict[str, Any]:
    """Everything about a result, for JSON."""
    return asdict(result) | {"statistics": msgspec.to_builtins(result.statistics)}


def summary(results: Sequence[Result]) -> str:
    """How much was compared, and how long it took."""
    checked = sum(result.checked for result in results)
    seconds = sum(result.seconds for result in results)
    return f"{format_size(checked)} compared in {seconds:.0f} s"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} GB/s"


def _attempts(of: RegionStatistics) -> str:
    return f"{of.attempts / max(of.faults, 1):.3f}, most {of.max_attempts}"


def _compressed(of: RegionStatistics) -> str:
    raw = of.more.get("swap_bytes_raw", 0)
    held = of.more.get("swap_bytes_compressed", 0) + of.more.get("swap_bytes_spilled", 0)
    return f"{format_size(int(raw))} in {format_size(int(held))}" if raw else "-"


GAP = "  "

ROWS: Sequence[tuple[str, Callable[[Result], str]]] = (
    ("array", lambda it: format_size(it.nbytes)),
    ("resident, allowed", lambda it: format_size(it.statistics.budget)),
    ("resident, most seen", lambda it: format_size(it.peak_seen)),
    ("in swap, compressed", lambda it: _compressed(it.statistics)),
    ("faults", lambda it: f"{it.statistics.faults:,}"),
    ("attempts per fault", lambda it: _attempts(it.statistics)),
    ("retries: page locked", lambda it: f"{it.statistics.retries_page_lock:,}"),
    ("retries: being read", lambda it: f"{it.statistics.retries_read:,}"),
    ("retries: memory full", lambda it: f"{it.statistics.retries_memory:,}"),
    ("retries: store failed", lambda it: f"{it.statistics.retries_store_error:,}"),
    ("evictions", lambda it: f"{it.statistics.evictions:,}"),
    ("refaults", lambda it: f"{it.statistics.refaults:,}"),
    ("read ahead", lambda it: f"{it.statistics.readahead:,}"),
    ("bytes read", lambda it: format_size(it.statistics.bytes_read)),
    ("bytes written", lambda it: format_size(it.statistics.bytes_written)),
    ("written in order", lambda it: _rate(it.write_rate)),
    ("read in order", lambda it: _rate(it.read_rate)),
    ("seconds", lambda it: f"{it.seconds:.1f}"),
    ("bytes compared", lambda it: f"{it.checked:,}"),
    ("wrong bytes", lambda it: f"{it.wrong:,}"),
)


def show(results: Sequence[Result], width: int) -> None:
    """Print the results: one column each, or one below the other if `width` is too small."""
    titles = ["", *(result.title for result in results)]
    rows = [[name, *(cell(result) for result in results)] for name, cell in ROWS]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    if sum(widths) + len(GAP) * len(results) > width:
        print(_one_below_the_other(titles, rows, widths[0]))
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join(_line(row, widths) for row in [titles, *rows]))
        return
    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=width, highlight=False).print(table)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return GAP.join([row[0].ljust(widths[0]), *cells])


def _one_below_the_other(titles: list[str], rows: list[list[str]], width: int) -> str:
    parts = []
    for number, title in enumerate(titles[1:], 1):
        lines = [f"{row[0].ljust(width)}{GAP}{row[number]}" for row in rows]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join(parts)

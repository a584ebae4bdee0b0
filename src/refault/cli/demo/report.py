"""What the demo found, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from refault.client.sizes import format_size
from refault.client.statistics import RegionStatistics

__all__ = ["Result", "as_dict", "problems", "render", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one part of the demo."""

    title: str
    nbytes: int
    statistics: RegionStatistics
    peak_seen: int
    """The most bytes in memory that the witness saw."""
    write_rate: float | None
    """Bytes per second, in order; None if nothing was written."""
    read_rate: float
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


ROWS: Sequence[tuple[str, Callable[[Result], str]]] = (
    ("array", lambda it: format_size(it.nbytes)),
    ("may be in memory", lambda it: format_size(it.statistics.budget)),
    ("was in memory, at most", lambda it: format_size(it.peak_seen)),
    ("in compressed swap", lambda it: _compressed(it.statistics)),
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


def render(results: Sequence[Result], width: int) -> str:
    """Lay the results out: one column each, or one below the other if `width` is too small."""
    names = [name for name, _ in ROWS]
    columns = [[show(result) for _, show in ROWS] for result in results]
    titles = [result.title for result in results]
    needed = [
        max(map(len, [title, *column])) for title, column in zip(titles, columns, strict=True)
    ]
    first = max(map(len, names))
    if first + sum(size + 2 for size in needed) > width:
        return "\n\n".join(
            "\n".join([title, *(f"  {name:<{first}}  {cell}" for name, cell in zip(names, column, strict=True))])
            for title, column in zip(titles, columns, strict=True)
        )
    ...

"""A progress bar: rich's if it is installed, a plain line if not, none if nobody sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from refault.testing.exploration import Exploration

__all__ = ["progress_on", "progress_words"]


def progress_words(found: Exploration) -> str:
    """Schedules, how many per second, and states covered.

    Parameters
    ----------
    found
        So far.
    """
    rate = found.schedules / found.seconds if found.seconds else 0.0
    words = f"{found.schedules:,} schedules, {rate:,.0f}/s"
    if found.states:
        words += f", {found.visited:,} of {found.states:,} states covered"
    return words


@contextmanager
def progress_on(
    stream: TextIO, total: int | None
) -> Iterator[Callable[[Exploration], None] | None]:
    """Show how far an exploration is, while inside.

    Parameters
    ----------
    stream
        Where to; nothing is shown if it is no terminal.
    total
        How many schedules or states there will be, if that is known.

    Yields
    ------
    callable or None
        To be called with what was found so far.
    """
    if not stream.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield from _plain(stream)
        return
    console = Console(file=stream)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def show(found: Exploration) -> None:
            done = found.visited if found.states else found.schedules
            bar.update(
                task,
                completed=done,
                total=total or found.states or None,
                description=progress_words(found),
            )

        yield show


def _plain(stream: TextIO) -> Iterator[Callable[[Exploration], None]]:
    longest = 0

    def show(found: Exploration) -> None:
        nonlocal longest
        text = progress_words(found)
        longest = max(longest, len(text))
        stream.write("\r" + text.ljust(longest))
        stream.flush()

    try:
        yield show
    finally:
        stream.write("\r" + " " * longest + "\r")
        stream.flush()

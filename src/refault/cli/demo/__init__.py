"""See it work: 64 GiB in 256 MiB, a file changed in place, a store that fails.

Every byte that is touched is compared with what it should be, and the memory that is used is
measured from outside.  Takes half a minute, and 600 MiB of disk for that time.

With --snapshot another one: a simulation makes checkpoints while it runs, is killed, goes on from
the last of them, and ends as if nothing had happened.

Exit status 1 if a byte was wrong, or if more was in memory than allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from refault.errors import UsageError

if TYPE_CHECKING:
    from .plan import Plan
    from .report import Result

__all__ = ["prepare_parser", "run"]


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--quick", action="store_true", help="less of everything, in 3 seconds")
    parser.add_argument(
        "--snapshot", action="store_true", help="checkpoints of a program that is killed"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--directory",
        default=tempfile.gettempdir(),
        help="where the file is made, and removed again (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo and print the table; 1 if something was wrong."""
    # Not before: `refault --help` needs neither numpy nor these.
    from .plan import FULL, QUICK
    from .report import as_dict, problems, show, summary

    if args.snapshot:
        return _run_snapshot(args)
    plan = QUICK if args.quick else FULL
    _check_space(args.directory, plan)
    if not args.json:
        print(plan.introduction(), flush=True)
    with _terminable():
        results = _parts(plan, args.directory)
    wrong = [problem for result in results for problem in problems(result)]
    if args.json:
        parts = [as_dict(result) for result in results]
        print(json.dumps({"ok": not wrong, "problems": wrong, "parts": parts}))
    else:
        print()
        show(results, shutil.get_terminal_size((80, 24)).columns)
        print()
        print("WRONG: " + "; ".join(wrong) if wrong else f"every byte right: {summary(results)}")
    return 1 if wrong else 0


def _run_snapshot(args: argparse.Namespace) -> int:
    from .killed import FULL, QUICK, introduction, kill_and_go_on, report

    plan = QUICK if args.quick else FULL
    _check_directory(args.directory)
    if not args.json:
        print(introduction(plan), flush=True)
    with _terminable():
        found = kill_and_go_on(plan, args.directory, _progress)
    if args.json:
        print(json.dumps(found.as_dict()))
    else:
        print()
        print(report(found))
        print()
        same = "the same result, bit by bit, as the run that nobody killed"
        print(f"{same}: in {found.seconds:.0f} s" if found.ok else "WRONG: see above")
    return 0 if found.ok else 1


def _parts(plan: Plan, directory: str) -> list[Result]:
    from .failing import read_from_failing_store
    from .in_place import change_file_in_place
    from .scattered import scatter_over_zeros

    parts: list[Callable[[], Result]] = [
        lambda: scatter_over_zeros(plan, _progress),
        lambda: change_file_in_place(plan, directory, _progress),
        lambda: read_from_failing_store(plan, _progress),
    ]
    results = []
    for part in parts:
        began = time.monotonic()
        result = part()
        results.append(dataclasses.replace(result, seconds=time.monotonic() - began))
    return results


def _progress(text: str) -> None:
    """Tell somebody who is watching what is going on."""
    if sys.stderr.isatty():
        print(f"  {text}", file=sys.stderr, flush=True)


def _check_space(directory: str, plan: Plan) -> None:
    needed = plan.file_bytes * 9 // 8
    free = _check_directory(directory)
    if free < needed:
        raise UsageError(
            f"the demo needs {needed >> 20} MiB of disk for half a minute, and {directory} has"
            f" {free >> 20} MiB free; name another place with --directory, or use --quick"
        )


def _check_directory(directory: str) -> int:
    """Return how many bytes it has room for."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise UsageError(
            f"--directory {directory}: {error.strerror}; name a directory that can be written to"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"--directory {directory} cannot be written to; name one that can")
    return free


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Remove the file also if we are told to end by a signal other than Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

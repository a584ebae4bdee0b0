"""The one command: all benchmarks, or those that are named."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import cases, machine, plot, report
from benchmarks.compiler import build
from benchmarks.model import Missing, Settings
from benchmarks.run import Outcome, measure

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run benchmarks; the status is 0 even if a goal is missed: that is a result."""
    arguments = _parser().parse_args(argv)
    if arguments.list:
        width = max(map(len, cases.NAMES))
        for name in cases.NAMES:
            print(f"{name:<{width}}  {cases.summary(name)}")
        return 0
    unknown = [name for name in arguments.names if name not in cases.NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; --list tells the names", file=sys.stderr)
        return 2
    if arguments.plot is not None and not plot.available():
        print("--plot needs matplotlib: pip install '.[bench]'", file=sys.stderr)
        return 2
    facts = machine.describe()
    print("  ".join(f"{name}: {value}" for name, value in facts.items()))
    if float(facts["load"]) > 0.5:
        print("note: the machine is busy; figures taken now say little")
    outcomes: list[tuple[str, Outcome]] = []
    with _settings(arguments) as settings:
        print(f"rounds: {settings.rounds}  pinned threads: CPU {settings.cpu}", end="")
        print("  sizes: tiny, the figures mean nothing" if settings.quick else "")
        for name in arguments.names or cases.NAMES:
            print(f"\n== {name}: {cases.summary(name)}", flush=True)
            for comparison in cases.load(name)(settings):
                outcome = measure(comparison, settings.rounds, warm_up=not settings.quick)
                outcomes.append((name, outcome))
                print(report.as_text(outcome), flush=True)
                _save(arguments.json, facts, settings, outcomes)
    if arguments.plot is not None:
        plot.plot([outcome for _, outcome in outcomes], arguments.plot)
    failed = [why for _, one in outcomes for why in one.missing.values() if "FAILED" in why]
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; by default all")
    parser.add_argument("--list", action="store_true", help="tell the names, run nothing")
    parser.add_argument("--rounds", type=int, help="how often each contender runs (5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save everything")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE", help="draw .png, .svg or .pdf")
    parser.add_argument("--umap", type=pathlib.Path, metavar="DIR", help="installed UMap programs")
    parser.add_argument(
        "--data", type=pathlib.Path, metavar="DIR", help="where 4 GiB files may be; a disk"
    )
    parser.add_argument("--cpu", type=int, help="where pinned threads run (the last CPU)")
    return parser


@contextmanager
def _settings(arguments: argparse.Namespace) -> Iterator[Settings]:
    """Make the directories and compile; remove everything afterwards."""
    with ExitStack() as stack:

        def folder(parent: pathlib.Path | None) -> pathlib.Path:
            path = tempfile.mkdtemp(prefix="refault-benchmarks-", dir=parent)
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            return pathlib.Path(path)

        memory = pathlib.Path("/dev/shm")
        data = folder(arguments.data or pathlib.Path("/var/tmp"))
        tmpfs = folder(memory if os.access(memory, os.W_OK) else None)
        for source in ("limit.c", "touch.c"):
            try:
                build(source, data)
            except Missing as error:
                print(f"note: {source}: {error}")
        rounds = arguments.rounds or (1 if arguments.quick else 5)
        settings = Settings(rounds, arguments.quick, data, tmpfs, arguments.umap)
        if arguments.cpu is not None:
            settings = Settings(rounds, arguments.quick, data, tmpfs, arguments.umap, arguments.cpu)
        yield settings


def _save(
    path: pathlib.Path | None,
    facts: dict[str, str | int | float],
    settings: Settings,
    outcomes: list[tuple[str, Outcome]],
) -> None:
    """Written after every comparison: a run that is interrupted leaves what it has."""
    if path is None:
        return
    whole = {
        "machine": facts,
        "rounds": settings.rounds,
        "quick": settings.quick,
        "comparisons": [report.as_json(name, outcome) for name, outcome in outcomes],
    }
    path.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

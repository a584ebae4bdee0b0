"""Run the fault path through every order of a small scenario, or through very many of a large one.

  refault explore --list
  refault explore third-retry --policy single
  refault explore mixed --random 1000000 --jobs 2

The code that is run is the one that serves real faults; only the memory below it and the threads
above it are simulated.  If a promise is broken, the shortest schedule that was found is
printed step by step, with the flags of every try, the locks and the pages.

--threads and --pages scale a scenario: further threads do what the first ones do, one page
further; pages beyond the end are counted from the beginning; the budget grows in proportion.

Exit status 1 if a promise was broken, 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from refault.errors import UsageError
from refault.fault.callers import RetryPolicy
from refault.testing.exploration import Exploration, percentile, replay
from refault.testing.explorer import explore
from refault.testing.randomly import explore_random, explore_random_parallel
from refault.testing.scenario import Scenario
from refault.testing.scenarios import LARGE, SCENARIOS, mixed

from .progress import progress_on

__all__ = ["prepare_parser", "run"]

MIXED = "mixed"
SHORT = 10


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="one of --list")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument(
        "--policy",
        choices=[policy.value for policy in RetryPolicy],
        default=RetryPolicy.MULTIPLE.value,
        help="multiple: a fault may be retried as often as it takes; "
        "single: once, as in kernels before 5.7",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="scale to N threads")
    parser.add_argument("--pages", type=int, metavar="N", help="scale to N pages")
    parser.add_argument("--max-states", type=int, metavar="N", help="stop after so many states")
    parser.add_argument(
        "--random",
        type=int,
        metavar="N",
        help="run N random orders instead of all (mixed: 1000 if not given)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first of them")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="J", help="processes for --random; 0: one per CPU"
    )
    parser.add_argument(
        "--show", action="store_true", help="show how the fault that took most tries went"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Explore and print what was found."""
    if args.list:
        print(json.dumps(listing()) if args.json else "\n".join(list_lines()))
        return 0
    found = _explore(args)
    if args.json:
        print(json.dumps(found.as_dict() | {"most_tries": most_tries(found)}))
    else:
        print("\n".join(report(found, show=args.show)))
    if found.violation:
        return 1
    return 130 if found.interrupted else 0


def listing() -> list[dict[str, Any]]:
    """The scenarios, for ``--json``."""
    known = [
        {
            "name": scenario.name,
            "about": scenario.about,
            "threads": len(scenario.threads),
            "pages": scenario.pages,
            "exhaustible": True,
            "large": scenario.name in LARGE,
        }
        for scenario in SCENARIOS.values()
    ]
    first = mixed(0)
    return [
        *known,
        {
            "name": MIXED,
            "about": "everything at once, another program for each seed; random orders only",
            "threads": len(first.threads),
            "pages": first.pages,
            "exhaustible": False,
            "large": True,
        },
    ]


def list_lines() -> list[str]:
    """The scenarios, for people."""
    rows = listing()
    width = max(len(row["name"]) for row in rows)
    return [
        f"{row['name']:{width}}  {row['about']}{' (takes minutes)' * row['large']}"
        if row["exhaustible"]
        else f"{row['name']:{width}}  {row['about']}"
        for row in rows
    ]


def _explore(args: argparse.Namespace) -> Exploration:
    if args.scenario is None:
        raise UsageError("name a scenario; `refault explore --list` shows them")
    if args.jobs < 0 or (args.random is not None and args.random < 1):
        raise UsageError("--random needs at least 1, --jobs at least 0")
    policy = RetryPolicy(args.policy)
    if args.scenario == MIXED:
        sizes = {"threads": args.threads, "pages": args.pages}
        given = {name: size for name, size in sizes.items() if size is not None}
        if any(size < 1 for size in given.values()):
            raise UsageError("a scenario needs a thread and a page; ask for at least 1 of each")
        make = functools.partial(mixed, policy=policy, **given)
        return _explore_random(make, args, args.random or 1000)
    if args.scenario not in SCENARIOS:
        raise UsageError(
            f"there is no scenario {args.scenario!r}; `refault explore --list` shows them"
        )
    scenario = replace(SCENARIOS[args.scenario], policy=policy)
    if args.threads is not None or args.pages is not None:
        scenario = scenario.scaled(args.threads, args.pages)
    if args.random is not None:
        return _explore_random(scenario, args, args.random)
    with progress_on(sys.stderr, args.max_states) as progress:
        return explore(scenario, max_states=args.max_states, progress=progress)


def _explore_random(
    scenario: Scenario | Callable[[int], Scenario], args: argparse.Namespace, schedules: int
) -> Exploration:
    jobs = args.jobs or os.cpu_count() or 1
    with progress_on(sys.stderr, schedules) as progress:
        if jobs == 1:
            return explore_random(scenario, schedules, seed=args.seed, progress=progress)
        return explore_random_parallel(
            scenario, schedules, jobs=jobs, seed=args.seed, progress=progress
        )


def most_tries(found: Exploration) -> dict[str, Any]:
    """How the fault went that took most tries.

    Parameters
    ----------
    found
        By an exploration.

    Returns
    -------
    dict
        ``tries``, ``end`` (a line) and ``schedule`` (all lines).
    """
    tries = max(found.attempts, default=0)
    if found.violation or not found.longest:
        return {"tries": tries, "end": "", "schedule": []}
    lines, _ = replay(found.longest_scenario or found.scenario, found.longest)
    ends = [line.strip() for line in lines if f"ends after {tries} " in line]
    return {"tries": tries, "end": ends[-1] if ends else "", "schedule": lines}


def report(found: Exploration, *, show: bool = False) -> list[str]:
    """What was found, for people.

    Parameters
    ----------
    found
        By an exploration.
    show
        Show the fault that took most tries even if its schedule is long.

    Returns
    -------
    list of str
    """
    name = found.scenario.name if found.states else found.scenario.name.partition("-")[0]
    rate = found.schedules / found.seconds if found.seconds else 0.0
    states = f"{found.states:,} states, " if found.states else ""
    lines = [
        f"{name if not found.violation else found.scenario.name} "
        f"(policy {found.scenario.policy.value}): {states}"
        f"{found.schedules:,} schedules in {found.seconds:.2f} s ({rate:,.0f}/s)"
    ]
    if found.violation:
        told = found.report().splitlines()
        lines += ["", *told, ""]
        lines += [line.strip() for line in told if line.strip().startswith("why: ")]
        if found.seed is not None:
            lines.append(
                f"Again: refault explore {found.scenario.name.partition('-')[0]} "
                f"--random 1 --seed {found.seed}"
            )
        return [*lines, f"A promise was broken: {found.violation}"]
    if found.attempts:
        tries = ", ".join(f"{tries}: {found.attempts[tries]:,}" for tries in sorted(found.attempts))
        lines.append(f"tries per fault  {tries} (p99 {percentile(found.attempts, 0.99)})")
    ends = ", ".join(f"{end}: {count:,}" for end, count in sorted(found.ends.items()))
    lines.append(f"threads ended    {ends or 'none'}")
    most = most_tries(found)
    if most["schedule"] and (show or len(found.longest) <= SHORT):
        lines += ["", "The fault that took most tries:", *most["schedule"], ""]
    if most["end"]:
        lines.append(f"most tries       {most['tries']}: {most['end']}")
    if found.interrupted:
        lines.append(f"Interrupted: {_covered(found)}")
    elif found.complete:
        lines.append("Every order of its steps was run; every promise was kept.")
    else:
        lines.append(f"No promise was broken; {_covered(found)}")
    return lines


def _covered(found: Exploration) -> str:
    if found.states:
        return (
            f"not all orders were run: {found.states:,} states were seen, and every step "
            f"of {found.visited:,} of them was made."
        )
    return f"{found.schedules:,} random orders were run, from seed {found.first_seed} on."

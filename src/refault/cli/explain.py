"""Explain fault flags: are they legal together, and what does a fault with them do?

Flags are named as in the kernel, with or without FAULT_FLAG_ in front, or given as
numbers; several are joined:

  refault explain WRITE ALLOW_RETRY TRIED
  refault explain 0x214

Without flags, all of them are listed.  What is printed is not written down anywhere: the
real fault path makes one attempt in each situation, in memory.

Exit status 1 if the flags are illegal.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from refault.errors import UsageError
from refault.fault.callers import RetryPolicy, flags_after_retry
from refault.fault.flags import (
    KERNEL_ONLY,
    RETRY_COMBINATIONS,
    FaultFlag,
    fault_flag_allow_retry_first,
    retry_combination,
)
from refault.fault.locks import PAGE_LOCK_RULES, PageLockRule, page_lock_rule
from refault.fault.results import VmFault

from .situations import (
    SITUATIONS,
    Attempt,
    broken_rule,
    make_attempt,
)

__all__ = ["explanation", "meanings", "parse_flags", "prepare_parser", "run"]

PREFIX = "FAULT_FLAG_"


def meanings() -> dict[str, str]:
    """The flags and what each means, from the text below each in `FaultFlag`.

    Returns
    -------
    dict
        From name to meaning; "" where Python came without the source.
    """
    found = dict.fromkeys(FaultFlag.__members__, "")
    try:
        tree = ast.parse(inspect.getsource(FaultFlag)).body[0]
    except OSError:
        return found
    assert isinstance(tree, ast.ClassDef)
    name = ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            found[name] = inspect.cleandoc(str(node.value.value))
            name = ""
    return found


def values() -> dict[str, int]:
    """All names that are understood, also those of flags that only the kernel has."""
    known = {name: int(flag) for name, flag in FaultFlag.__members__.items()}
    known.update((text.partition(":")[0], bit) for bit, text in KERNEL_ONLY.values())
    return known


def parse_flags(words: Iterable[str]) -> int:
    """Join flags that are given by name or number.

    Parameters
    ----------
    words
        For instance ``["WRITE", "fault_flag_tried", "0x4"]``; ``|`` and ``,`` may join some.

    Returns
    -------
    int

    Raises
    ------
    UsageError
        A word is neither.
    """
    known = values()
    flags = 0
    for word in (part for text in words for part in re.split(r"[|,\s]+", text) if part):
        name = word.upper().removeprefix(PREFIX)
        if name in known:
            flags |= known[name]
            continue
        try:
            number = int(word, 0)
        except ValueError:
            number = -1
        if number < 0:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "`refault explain` lists them all"
            raise UsageError(f"{word!r} is no fault flag; {hint}")
        flags |= number
    return flags


def names(flags: int) -> list[str]:
    """The names of all bits, and the number of those that have none."""
    found = []
    for name, bit in values().items():
        if bit & flags == bit and bit.bit_count() == 1:
            found.append(name)
            flags &= ~bit
    return found + [hex(flags)] * bool(flags)


def result_names(result: int) -> list[str]:
    """The names of `VmFault` bits."""
    return [bit.name or "" for bit in VmFault if bit & result]


def explanation(flags: int) -> dict[str, Any]:
    """All that can be said of some flags; what ``--json`` prints.

    Parameters
    ----------
    flags
        `FaultFlag` bits.

    Returns
    -------
    dict
    """
    rule = broken_rule(flags)
    combination = retry_combination(flags)
    found: dict[str, Any] = {
        "value": flags,
        "hex": f"{flags:#x}",
        "names": names(flags),
        "legal": rule is None,
        "rule": rule,
        "combination": combination._asdict(),
        "first_try": fault_flag_allow_retry_first(flags),
    }
    if rule is None:
        lock_rule = page_lock_rule(flags)
        waits = lock_rule.waits.name if lock_rule.waits is not None else None
        found["page_lock_rule"] = lock_rule._asdict() | {"waits": waits}
    head = ""
    situations = []
    for situation in SITUATIONS:
        name = situation.name
        if name.startswith("... "):
            name = f"{head} {name[4:]}"
        else:
            head = name
        attempt = make_attempt(flags, situation)
        entry = {"situation": name} | asdict(attempt)
        entry["waits"], entry["did"] = list(entry["waits"]), list(attempt.did)
        entry["result"] = result_names(attempt.result)
        if attempt.then == "retry":
            entry["next_flags"] = f"{flags_after_retry(flags, RetryPolicy.MULTIPLE):#x}"
        situations.append(entry | {"source": situation.source})
    found["situations"] = situations
    return found


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="a name or a number")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the explanation; 1 if the flags are illegal."""
    if not args.flags:
        print(json.dumps(everything()) if args.json else "\n".join(overview()))
        return 0
    flags = parse_flags(args.flags)
    legal = broken_rule(flags) is None
    print(json.dumps(explanation(flags)) if args.json else "\n".join(text(flags)))
    return 0 if legal else 1


# --- telling ----------------------------------------------------------------------------------


def everything() -> dict[str, Any]:
    """What there is to ask about, for ``--json`` without flags."""
    return {
        "flags": {
            name: {"value": int(FaultFlag[name]), "meaning": meaning}
            for name, meaning in meanings().items()
        },
        "combinations": [row._asdict() for row in RETRY_COMBINATIONS],
    }


def overview() -> Iterator[str]:
    """Lines that list all flags, and the two tables that the fault path goes by."""
    yield from table(
        [(f"{FaultFlag[name]:#05x}", name, meaning) for name, meaning in meanings().items()]
    )
    yield ""
    yield "ALLOW_RETRY and TRIED together:"
    yield from table(
        [
            (
                f"({row.letter})" if row.letter else "---",
                f"{'' if row.allow_retry else '!'}ALLOW_RETRY",
                f"{'' if row.tried else '!'}TRIED",
                row.meaning,
            )
            for row in RETRY_COMBINATIONS
        ],
        "  ",
    )
    yield ""
    yield "If the page is locked:"
    yield from table(
        [(f"row {rule.row}", rule.when, lock_words(rule)) for rule in PAGE_LOCK_RULES], "  "
    )
    yield ""
    yield "Name some flags to see what a fault with them does: refault explain WRITE DEFAULT"


def text(flags: int) -> Iterator[str]:
    """Lines that explain some flags."""
    rule = broken_rule(flags)
    combination = retry_combination(flags)
    letter = f"({combination.letter})" if combination.letter else "the forbidden one"
    head = [
        ("flags", f"{flags:#x} = {' | '.join(names(flags)) or 'none'}"),
        ("legal", "yes" if rule is None else f"NO, {rule}"),
        ("retry", f"combination {letter}: {combination.meaning}"),
    ]
    if rule is None:
        lock_rule = page_lock_rule(flags)
        head.append(
            (
                "page lock",
                f"row {lock_rule.row} ({lock_rule.when}): {lock_words(lock_rule)}",
            )
        )
    yield from table(head)
    yield ""
    if rule is not None:
        attempt = make_attempt(flags, SITUATIONS[0])
        lock = "kept" if attempt.lock_kept else "given up"
        result = "|".join(result_names(attempt.result))
        yield f"The fault path refuses it whatever it meets: {result}, the lock is {lock}."
        return
    rows: list[tuple[str, ...]] = [("SITUATION", "WAITS FOR", "LOCK", "RESULT", "THEN")]
    details = [""]
    for situation in SITUATIONS:
        attempt = make_attempt(flags, situation)
        rows.append((situation.name, *attempt_words(flags, attempt)))
        details.append(f"    {detail_words(attempt)}source: {situation.source}")
    for line, detail in zip(table(rows), details, strict=True):
        yield line
        if detail:
            yield detail


def attempt_words(flags: int, attempt: Attempt) -> tuple[str, ...]:
    """The columns of one attempt."""
    then = attempt.then
    if then == "retry":
        again = flags_after_retry(flags, RetryPolicy.MULTIPLE)
        then = f"retry with {again:#x} ({retry_combination(again).letter})"
    waits = ", ".join(f"{wait.reason} ({wait.state.lower()})" for wait in attempt.waits)
    lock = "kept" if attempt.lock_kept else "given up"
    if not attempt.lock_kept and attempt.waits and attempt.waits[0].lock_kept:
        lock = "kept asleep, then given up"
    return (waits or "-", lock, "|".join(result_names(attempt.result)) or "0", then)


def detail_words(attempt: Attempt) -> str:
    """What an attempt does, and what became of a signal."""
    words = list(attempt.did)
    if any(wait.interrupted for wait in attempt.waits):
        words.append("the signal ends the wait")
    return f"{', '.join(words)}; " if words else ""


def lock_words(rule: PageLockRule) -> str:
    """What a row of `PAGE_LOCK_RULES` says, in words."""
    if rule.waits is None:
        return "does not wait, keeps the lock, RETRY"
    lock = "gives the lock up" if rule.drops_lock else "keeps the lock"
    end = "then takes the page" if rule.takes_page else "then RETRY"
    return f"{lock}, sleeps {rule.waits.name.lower()}, {end}"


def table(rows: Sequence[tuple[str, ...]], indent: str = "") -> list[str]:
    """Lay rows out in columns; the last one is as wide as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        indent
        + "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]

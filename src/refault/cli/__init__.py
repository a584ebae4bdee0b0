"""The command line: ``refault VERB ...``, one module of this package per verb.

A verb is a module with a docstring (its help), ``prepare_parser(parser)`` and
``run(args) -> int``.  It is imported when it is used, so that no verb pays for
another one's imports.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from refault._version import __version__
from refault.errors import Error

__all__ = ["main"]

VERBS = ("checkpoints", "demo", "doctor", "explain", "explore")


class Verb(Protocol):
    """What a module of this package offers."""

    __doc__: str | None

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv
        The words after the program's name; `sys.argv` by default.

    Returns
    -------
    int
        0: done; 2: refused or misused; 130: interrupted; 141: nobody reads
        the output any more.  A verb may return others.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(words).parse_args(words)
        status = cast("Verb", args.verb_module).run(args)
        sys.stdout.flush()
    except Error as error:
        print(f"refault: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered has no reader; without this the interpreter
        # would try again to write it, and complain, while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser: of the verb that is used, or of all, for the help."""
    parser = argparse.ArgumentParser(
        prog="refault", description="numpy arrays whose page faults are handled in user space"
    )
    parser.add_argument("--version", action="version", version=f"refault {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in _wanted(words):
        module = cast("Verb", import_module(f"{__name__}.{name}"))
        text = (module.__doc__ or "").strip()
        verb = verbs.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(verb_module=module)
        module.prepare_parser(verb)
    return parser


def _wanted(words: Sequence[str]) -> Sequence[str]:
    if words and words[0] in VERBS:
        return words[:1]
    return () if words[:1] == ["--version"] else VERBS

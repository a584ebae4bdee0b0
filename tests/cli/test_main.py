"""`refault.cli.main`: verbs, exit statuses, errors on one line."""

from __future__ import annotations

import argparse
import sys
import types

import pytest

from helpers.child import run_child
from refault import cli
from refault.errors import UsageError


@pytest.fixture(autouse=True)
def verbs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the verbs by one, `try`, which does what its argument says; list what is imported."""
    module = types.ModuleType("refault.cli.try", "Do what it is told.\n\nMore text.")

    def prepare_parser(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what")

    def run(args: argparse.Namespace) -> int:
        if args.what == "error":
            raise UsageError("no such thing; try another")
        if args.what == "interrupt":
            raise KeyboardInterrupt
        return int(args.what)

    module.__dict__.update(prepare_parser=prepare_parser, run=run)
    imported: list[str] = []

    def import_module(name: str) -> types.ModuleType:
        imported.append(name)
        return module

    monkeypatch.setattr(cli, "VERBS", ("try", "other"))
    monkeypatch.setattr(cli, "import_module", import_module)
    return imported


def test_status_is_the_verb_s(verbs: list[str]) -> None:
    assert cli.main(["try", "0"]) == 0
    assert cli.main(["try", "7"]) == 7
    assert set(verbs) == {"refault.cli.try"}


def test_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["try", "error"]) == 2
    assert capsys.readouterr() == ("", "refault: no such thing; try another\n")


def test_interrupt() -> None:
    assert cli.main(["try", "interrupt"]) == 130


@pytest.mark.parametrize("argv", [[], ["unknown"], ["try"]])
def test_misuse(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2


def test_help_lists_all_verbs(capsys: pytest.CaptureFixture[str], verbs: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "Do what it is told." in capsys.readouterr().out
    assert verbs == ["refault.cli.try", "refault.cli.other"]


def test_arguments_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["refault", "try", "5"])
    assert cli.main() == 5


def test_version(capsys: pytest.CaptureFixture[str], verbs: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("refault 0.")
    assert not verbs


def test_nobody_reads() -> None:
    code = """
        import os, sys, types
        from refault import cli

        def run(args):
            print("x" * 100_000)
            return 0

        verb = types.ModuleType("verb", "doc")
        verb.__dict__.update(prepare_parser=lambda parser: None, run=run)
        cli.import_module = lambda name: verb
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.exit(cli.main(["demo"]))
    """
    assert run_child(code, timeout=20, expect=141).stderr == ""

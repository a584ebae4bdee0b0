"""`refault explore`: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time

import pytest

from refault.cli import main
from refault.cli.progress import progress_on, progress_words
from refault.testing import SCENARIOS, Exploration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_third_try_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "third-retry", "--policy", "multiple"]) == 0
    out = capsys.readouterr().out
    assert "3: the fault of thread 0 on page 0 ends after 3 tries: done" in out
    assert "Every order of its steps was run" in out


def test_second_try_fails_under_the_old_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "third-retry", "--policy", "single"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "A promise was broken: thread 0 ends with SIGBUS"
    assert out[-2].startswith("why: try 2 has to wait for write_protect")
    assert "ALLOW_RETRY was taken away after try 1" in out[-2]


def test_list_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*SCENARIOS, "mixed"])


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "third-retry", "--policy", "single", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["violation"] == "thread 0 ends with SIGBUS"
    assert found["report"] and found["schedule"]
    assert main(["explore", "unmap-shared", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"] and found["states"] > 100
    assert main(["explore", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["name"] == "mixed"


def test_scaled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "third-retry", "--threads", "2", "--pages", "2"]) == 0
    assert "Every order" in capsys.readouterr().out


def test_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "three-threads", "--max-states", "300"]) == 0
    assert "not all orders were run" in capsys.readouterr().out


def test_random(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "mixed", "--random", "40", "--seed", "3", "--show"]) == 0
    out = capsys.readouterr().out
    assert "40 random orders were run, from seed 3 on" in out
    assert main(["explore", "swap", "--random", "40"]) == 0


def test_two_processes_run_the_same_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for jobs in ("1", "2"):
        assert main(["explore", "mixed", "--random", "60", "--jobs", jobs, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["tries"] == found[1]["tries"]
    assert found[0]["steps"] == found[1]["steps"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no-such-thing"],
        ["swap", "--threads", "0"],
        ["mixed", "--pages", "0"],
        ["swap", "--random", "0"],
    ],
)
def test_misuse_says_what_to_do(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", *words]) == 2
    assert capsys.readouterr().err.startswith("refault: ")


@pytest.mark.parametrize(
    ("words", "covered"),
    [
        (["three-threads-writing"], "not all orders were run"),
        (["mixed", "--random", "1000000", "--jobs", "2"], "random orders were run, from seed 0"),
    ],
)
def test_interrupt_prints_what_was_covered(words: list[str], covered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "refault", "explore", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Interrupted: " in out
    assert covered in out


def test_progress_is_for_terminals_only() -> None:
    with progress_on(io.StringIO(), None) as progress:
        assert progress is None


@pytest.mark.parametrize("rich", [True, False])
def test_progress(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not rich:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
    found = Exploration(SCENARIOS["swap"], schedules=10, states=8, visited=4, seconds=2.0)
    assert progress_words(found) == "10 schedules, 5/s, 4 of 8 states covered"
    stream = Terminal()
    with progress_on(stream, None) as progress:
        assert progress is not None
        progress(found)
    assert "schedules" in stream.getvalue() or rich

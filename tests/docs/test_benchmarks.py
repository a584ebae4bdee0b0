"""The benchmarks run; what they say is for a quiet machine and longer runs."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from helpers.userfaultfd import needs_userfaultfd

ROOT = pathlib.Path(__file__).parents[2]


def benchmarks(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_cases_are_listed_with_a_summary() -> None:
    lines = benchmarks("--list").splitlines()
    files = {path.stem for path in (ROOT / "benchmarks" / "cases").glob("[a-z]*.py")}
    assert {line.split()[0] for line in lines} == files
    assert all(len(line.split()) > 5 for line in lines)


def test_the_readme_names_all_cases() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for path in (ROOT / "benchmarks" / "cases").glob("[a-z]*.py"):
        assert f"| `{path.stem}` |" in text


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.usefixtures("importable")
def test_every_contender_of_pfbenchmark_finds_what_it_expects(tmp_path: pathlib.Path) -> None:
    from benchmarks.files import numbers_file, restore_numbers

    path = numbers_file(tmp_path, 1 << 16)
    numbers = path.read_bytes()
    path.write_bytes(bytes(1 << 16))
    assert numbers_file(tmp_path, 1 << 16) == path
    restore_numbers(path, 1 << 16)
    assert path.read_bytes() == numbers
    assert np.array_equal(np.frombuffer(numbers, "u8"), np.arange(1 << 13))


@pytest.mark.usefixtures("importable")
def test_pfbenchmark_is_held_against_the_published_figures_too(tmp_path: pathlib.Path) -> None:
    from benchmarks.cases import pfbenchmark
    from benchmarks.model import Settings

    found = list(pfbenchmark.comparisons(Settings(1, True, tmp_path, tmp_path)))
    assert len(found) == 9
    for comparison in found:
        names = {one.name for one in comparison.contenders}
        assert {goal.against for goal in comparison.goals} == {"UMap", comparison.baseline}
        assert comparison.baseline in names and "UMap" in names
    bounds = [goal.at_most for goal in found[0].goals if goal.against != "UMap"]
    assert bounds == [pytest.approx(71.975 / 10.6 / 4)] * 2


@pytest.mark.parametrize("operation", ["read", "write", "read-modify-write"])
@pytest.mark.usefixtures("importable")
def test_touching_without_a_compiler_does_the_same(
    operation: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.compiler import VARIABLE, build
    from benchmarks.model import Missing
    from benchmarks.touch import Toucher, shuffled

    found = []
    # Set by `build`, for child processes.
    monkeypatch.setenv(VARIABLE, "")
    try:
        build("touch.c", tmp_path)
    except Missing as error:
        pytest.skip(str(error))
    for compiled in (True, False):
        array = np.arange(4096, dtype="u8") * 3
        toucher = Toucher(array, words=2)
        assert toucher.function is not None
        if not compiled:
            toucher.function = None
        parts = np.array_split(shuffled(64, 512), 3)
        found.append((toucher.touch_in_threads(parts, operation).total, array.tolist()))
    assert found[0] == found[1]
    assert (found[0][0] > 0) == (operation != "write")


@pytest.fixture
def module(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, importable: None
) -> Callable[[str], ModuleType]:
    """Make a module that a contender's process finds too."""

    def make(text: str) -> ModuleType:
        (tmp_path / "module_of_contenders.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.delitem(sys.modules, "module_of_contenders", raising=False)
        return importlib.import_module("module_of_contenders")

    return make


def test_a_contender_may_have_an_environment_of_its_own(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.child import contender

    found = module("import os\ndef said():\n    return {'said': float(os.environ['SAID'])}\n")
    assert contender("one", found.said, environment={"SAID": "5"}).run() == {"said": 5}


def test_contenders_that_stay_take_turns(
    module: Callable[[str], ModuleType], tmp_path: pathlib.Path
) -> None:
    from benchmarks.child import staying
    from benchmarks.model import Comparison, Measure
    from benchmarks.report import as_text
    from benchmarks.run import measure

    log = tmp_path / "log"
    found = module(
        "import os\n"
        "def counting(log, step):\n"
        "    at = 0\n"
        "    while True:\n"
        "        at += step\n"
        "        open(log, 'a').write(f'{step} ')\n"
        "        yield {'at': float(at), 'pid': float(os.getpid())}\n"
    )
    contenders = [
        staying(str(step), found.counting, before=lambda: None, log=str(log), step=step)
        for step in (1, 10)
    ]
    comparison = Comparison("title", contenders, [Measure("at", "")], baseline="1", slices=5)
    outcome = measure(comparison, 2, warm_up=True)
    assert not outcome.missing
    assert log.read_text() == "1 10 " * 6
    assert [sample["at"] for sample in outcome.samples["1"]] == [2, 3, 4, 5, 6]
    assert [sample["at"] for sample in outcome.samples["10"]] == [20, 30, 40, 50, 60]
    processes = [sample["pid"] for one in outcome.samples.values() for sample in one]
    assert len(set(processes)) == 2
    for process in set(processes):
        assert not pathlib.Path(f"/proc/{process:.0f}").exists()
    text = as_text(outcome)
    assert "title (5 slices in turn; ranges: the middle half)" in text
    assert "4.00  [3.00 .. 5.00]" in text


def test_a_contender_that_fails_after_its_answer_has_failed(
    module: Callable[[str], ModuleType],
) -> None:
    from benchmarks.child import contender

    found = module(
        "import atexit, os\n"
        "def leaving():\n"
        "    atexit.register(os._exit, 5)\n"
        "    return {'a': 1.0}\n"
    )
    with pytest.raises(RuntimeError, match="leaving ended with 5: no message"):
        contender("one", found.leaving).run()


def test_a_contender_that_fails_later_says_why(module: Callable[[str], ModuleType]) -> None:
    from benchmarks.child import staying

    found = module("def failing():\n    yield {'a': 1.0}\n    raise ValueError('no more')\n")
    one = staying("one", found.failing, before=lambda: None)
    assert one.run() == {"a": 1}
    with pytest.raises(RuntimeError, match="failing ended with 1: ValueError: no more"):
        one.run()
    one.end()


@pytest.mark.usefixtures("importable")
def test_what_is_between_comes_before_each_run() -> None:
    from benchmarks.model import Comparison, Contender, Measure
    from benchmarks.run import measure

    log: list[str] = []

    def runs(name: str) -> Contender:
        def run() -> dict[str, float]:
            log.append(name)
            return {"a": 1.0}

        return Contender(name, run)

    comparison = Comparison(
        "title", [runs("one"), runs("other")], [Measure("a", "")], between=lambda: log.append("-")
    )
    measure(comparison, 1, warm_up=True)
    assert log == ["-", "one", "-", "other"] * 2


@pytest.mark.usefixtures("importable")
def test_a_compact_table_has_medians_alone_and_goals_say_why() -> None:
    from benchmarks.report import as_text

    text = as_text(_outcome(compact=True))
    assert ".." not in text
    assert "at most 0.25 (4 times as fast): MISSED (2)" in text
    assert "2.00  [2.00 .. 2.00]" in as_text(_outcome(compact=False))


@pytest.mark.usefixtures("importable")
def test_every_plotted_measure_has_a_panel(tmp_path: pathlib.Path) -> None:
    from benchmarks import plot

    if not plot.available():
        pytest.skip("no matplotlib")
    outcomes = [_outcome(series={"one": 1, "other": 2048}), _outcome(), _outcome(plotted="b")]
    panels = [panel for outcome in outcomes for panel in plot._panels(outcome)]
    assert [measure.name for _, measure in panels] == ["a", "a", "b"]
    plot.plot(outcomes, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def _outcome(**more: Any) -> Any:
    from benchmarks.model import Comparison, Contender, Goal, Measure
    from benchmarks.run import measure

    contenders = [
        Contender("one", lambda: {"a": 2.0, "b": 3.0}),
        Contender("other", lambda: {"a": 1.0, "b": 3.0}),
    ]
    goals = [Goal("one", "a", "other", at_most=0.25, why="4 times as fast")]
    measures = [Measure("a", "us"), Measure("b", "", label="what it is")]
    comparison = Comparison("title", contenders, measures, goals, baseline="other", **more)
    return measure(comparison, 2, warm_up=False)


@needs_userfaultfd
@pytest.mark.userfaultfd
@pytest.mark.slow
def test_one_runs(tmp_path: pathlib.Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved.json"
    data.mkdir()
    text = benchmarks("threads16", "--quick", "--json", str(saved), "--data", str(data))
    assert "goal: refault, unfairness" in text
    (comparison,) = json.loads(saved.read_text())["comparisons"]
    (sample,) = comparison["samples"]["refault"]
    assert sample["per_second"] > 100
    assert not list(data.iterdir())


@needs_userfaultfd
@pytest.mark.userfaultfd
@pytest.mark.slow
def test_every_way_to_save_saves_one_instant(tmp_path: pathlib.Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved.json"
    data.mkdir()
    benchmarks("snapshots", "--quick", "--json", str(saved), "--data", str(data))
    found = {one["title"]: one for one in json.loads(saved.read_text())["comparisons"]}
    assert len(found) == 6
    (saving,) = [one for title, one in found.items() if "save of" in title]
    whole = {name: samples[0]["saved"] for name, samples in saving["samples"].items()}
    assert whole.keys() >= {"refault", "refault, changes", "fork", "np.save"}
    assert whole["refault"] == whole["fork"] == 2 <= whole["np.save"]
    assert 0 < whole["refault, changes"] <= 2
    assert not list(data.iterdir())


@needs_userfaultfd
@pytest.mark.userfaultfd
@pytest.mark.slow
def test_a_checkpoint_is_saved_again_and_loaded(tmp_path: pathlib.Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved.json"
    data.mkdir()
    benchmarks("checkpoints", "--quick", "--json", str(saved), "--data", str(data))
    again, load = json.loads(saved.read_text())["comparisons"]
    (sample,) = again["samples"]["checkpoints"]
    assert 0 < sample["written"] <= 1.2 * sample["changed"]
    assert sample["changed"] < again["samples"]["np.save"][0]["written"] == 4
    assert load["samples"]["checkpoints"][0]["ms"] > 0
    assert not list(data.iterdir())

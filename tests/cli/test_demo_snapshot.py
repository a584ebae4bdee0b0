"""`refault demo --snapshot`: it is right, it would notice if it were not, and it cleans up."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd
from refault.cli.demo.killed import Killed
from refault.cli.demo.reaction import begin, step

RUN = """
    import dataclasses, sys
    import numpy as np
    from refault.cli import main
    from refault.cli.demo import killed

    killed.QUICK = dataclasses.replace(killed.QUICK, side=128, every=0.05)
    {sabotage}
    if __name__ == "__main__":
        sys.exit(main(["demo", "--snapshot", "--quick", *sys.argv[1:]]))
"""

pytestmark = [needs_userfaultfd, pytest.mark.slow]


def run(tmp_path: pathlib.Path, *words: str, sabotage: str = "", expect: int = 0) -> str:
    code = RUN.replace("{sabotage}", sabotage)
    args = ["--directory", str(tmp_path), *words]
    return run_child(code, timeout=90, args=args, expect=expect).stdout


@pytest.mark.usefixtures("nothing_left")
def test_report(tmp_path: pathlib.Path) -> None:
    lines = run(tmp_path).splitlines()
    assert lines[0].startswith("A reaction of two substances on a plate of 128 x 128, in arrays")
    assert any(line.startswith("killed at step ") for line in lines)
    assert lines[-1].startswith("the same result, bit by bit, as the run that nobody killed")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_left")
def test_json(tmp_path: pathlib.Path) -> None:
    found = json.loads(run(tmp_path, "--json"))
    assert found["ok"] is True
    assert 0 < found["resumed"] <= found["killed_at"] < found["steps"]
    assert found["checked"] == 2 * 128 * 128 * 8 + 8
    assert found["wrong"] == found["damaged"] == 0
    assert found["history"] >= 3
    assert len(found["written"]) == len(found["stopped"])


def test_a_wrong_bit_is_noticed(tmp_path: pathlib.Path) -> None:
    sabotage = """
    compare = killed._compare

    def wrong(ck, expected, found):
        expected["u"].view("u8")[5, 5] ^= 1
        compare(ck, expected, found)

    killed._compare = wrong
    """
    assert "WRONG" in run(tmp_path, sabotage=sabotage, expect=1)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_not_killed_is_noticed() -> None:
    right = {"killed_at": 9, "resumed": 5, "steps": 12, "checked": 10}
    assert Killed(**right).ok
    for name, value in (
        ("resumed", 0),
        ("resumed", 10),
        ("steps", 9),
        ("checked", 0),
        ("wrong", 1),
        ("damaged", 1),
    ):
        assert not Killed(**right | {name: value}).ok


def test_the_reaction_goes_on() -> None:
    u, v = np.zeros((64, 64)), np.zeros((64, 64))
    begin(u, v)
    before = v.copy()
    for _ in range(100):
        step(u, v)
    assert np.isfinite(u).all()
    assert np.isfinite(v).all()
    assert 0.05 < v.max() < 1
    assert not np.array_equal(v, before)
    assert np.array_equal(u[0], np.ones(64))

"""What the benchmark of snapshots measures with is right itself."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def compiled(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import writer
    from benchmarks.compiler import VARIABLE, build
    from benchmarks.model import Missing

    monkeypatch.setenv(VARIABLE, "")
    writer._library.cache_clear()
    try:
        build("touch.c", tmp_path)
    except Missing as error:
        pytest.skip(str(error))


def test_a_writer_knows_what_was_saved_at_no_instant() -> None:
    from benchmarks.writer import PIECE, Writer

    array = np.zeros(8 * PIECE // 8, np.uint64)
    numbers = array[:: PIECE // 8]
    writer = Writer(array, 1000)
    writer.write(np.arange(8, dtype=np.uint64) * np.uint64(PIECE))
    assert numbers.tolist() == list(range(1, 9))
    writer.start(np.full(1000, 3 * PIECE, np.uint64), rate=100e6)
    while numbers[3] < 20:
        time.sleep(0.001)
    with writer.held():
        saved = numbers.copy()
        time.sleep(0.02)
        assert np.array_equal(numbers, saved)
    while numbers[3] == saved[3]:
        time.sleep(0.001)
    found = writer.stop()
    assert len(found.offsets) == numbers[3] - 8
    assert 20 <= found.longest(0, time.monotonic_ns()) < 20_000
    writer.check_instant(saved)
    writer.check_instant(numbers)
    older = saved.copy()
    older[5] = 0
    with pytest.raises(RuntimeError, match="1 of 8 pieces"):
        writer.check_instant(older)


def test_a_writer_that_had_nothing_left_is_no_measurement() -> None:
    from benchmarks.writer import PIECE, Writer

    writer = Writer(np.zeros(PIECE // 8, np.uint64), 2)
    with pytest.raises(ValueError, match="3 pieces"):
        writer.write(np.zeros(3, np.uint64))
    writer.start(np.zeros(2, np.uint64))
    time.sleep(0.05)
    with writer.held():
        pass
    with pytest.raises(RuntimeError, match="no pieces left"):
        writer.stop()


def test_writing_tells_of_the_time_that_is_meant() -> None:
    from benchmarks.writer import PIECE, Writing

    def words(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array(numbers, np.uint64)

    found = Writing(words(0, PIECE, 0), words(100, 200, 900), words(50, 300, 1000))
    assert found.longest(0, 150) == 50 / 1e6
    assert found.longest(450, 500) == 300 / 1e6
    assert found.longest(500, 900) == 0
    assert found.longest(0, 901) == 1000 / 1e6
    assert found.dirtied(0, 1000) == 2 * PIECE
    assert found.rate(0, 1000) == 3 * PIECE / 1000 * 1e9


def test_peaks_are_what_was_there_in_between() -> None:
    from benchmarks.peaks import Peaks

    code = (
        "import sys\nfor line in sys.stdin:\n    bytearray(b'1') * int(line)\n    print(flush=True)"
    )
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(child.kill)
        assert child.stdin is not None and child.stdout is not None

        def allocate(size: int) -> None:
            assert child.stdin is not None and child.stdout is not None
            print(size, file=child.stdin, flush=True)
            child.stdout.readline()

        allocate(64 * MIB)
        peaks = Peaks([os.getpid(), child.pid])
        allocate(MIB)
        assert peaks.more() < 16 * MIB
        allocate(48 * MIB)
        assert 40 * MIB < peaks.more() < 64 * MIB


def test_changes_are_put_where_they_belong(tmp_path: pathlib.Path) -> None:
    from benchmarks.instants import Snapshot
    from benchmarks.writer import PIECE

    way = Snapshot.__new__(Snapshot)
    way._changed = True
    way._numbers = np.arange(6, dtype=np.uint64)
    way._ranges = [(PIECE, 2 * PIECE), (3 * PIECE, 5 * PIECE)]
    way._path = tmp_path / "saved"
    np.repeat(np.array([71, 73, 74], np.uint64), PIECE // 8).tofile(way._path)
    assert way.saved().tolist() == [0, 71, 2, 73, 74, 5]


def test_curves_of_several_contenders_are_drawn_apart(tmp_path: pathlib.Path) -> None:
    from benchmarks import plot
    from benchmarks.model import Comparison, Contender, Measure
    from benchmarks.run import measure

    if not plot.available():
        pytest.skip("no matplotlib")
    names = [f"{way} {x}" for way in ("a", "b") for x in (1, 2)]
    comparison = Comparison(
        "title",
        [Contender(name, lambda: {"ms": 3.0}) for name in names],
        [Measure("ms", "ms")],
        series={name: float(name[-1]) for name in names},
        lines={name: name[0] for name in names},
    )
    path = tmp_path / "plot.svg"
    plot.plot([measure(comparison, 1, warm_up=False)], path)
    text = path.read_text()
    assert "<!-- a -->" in text and "<!-- b -->" in text

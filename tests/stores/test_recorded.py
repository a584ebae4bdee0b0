"""Working sets in files: what comes back, what is refused, how runs lie over each other."""

from __future__ import annotations

import itertools
import os
import pathlib
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refault.stores import recorded
from refault.stores.recorded import (
    Damaged,
    Range,
    Recorded,
    at_most,
    overlaid,
    read_recorded,
    write_recorded,
)

PAGE = 4096


@st.composite
def ranges(draw: st.DrawFn) -> list[Range]:
    numbers = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 255))))
    found, at = [], 0
    for gap, length, weight in numbers:
        start, at = at + gap, at + gap + length
        found.append((start * PAGE, at * PAGE, weight))
    return found


def weights(found: list[Range]) -> dict[int, int]:
    return {at: weight for start, end, weight in found for at in range(start, end, PAGE)}


@given(ranges(), st.integers(0, PAGE - 1))
def test_what_is_written_is_read(found: list[Range], short: int) -> None:
    size = (found[-1][1] if found else PAGE) - short
    found = [(start, min(end, size), weight) for start, end, weight in found]
    written = Recorded("an version", size, 65536, found)
    assert recorded.decode(recorded.encode(written)) == written


def test_ranges_that_are_no_whole_pages_are_extended_to_them() -> None:
    written = Recorded("", 3 * PAGE, PAGE, [(1, 5, 4), (9, 20, 4), (5000, 5001, 4)])
    assert recorded.decode(recorded.encode(written)).ranges == [(0, PAGE, 4), (PAGE, 2 * PAGE, 4)]


def test_it_is_small() -> None:
    every_third = [(i * 3 * PAGE, (i * 3 + 1) * PAGE, 4) for i in range(10_000)]
    assert len(recorded.encode(Recorded("", 1 << 40, PAGE, every_third))) < 1000


def test_every_wrong_byte_is_noticed() -> None:
    good = recorded.encode(Recorded("x", 1 << 30, PAGE, [(0, PAGE, 4), (PAGE * 8, PAGE * 9, 4)]))
    for at in range(len(good)):
        wrong = bytearray(good)
        wrong[at] ^= 0x10
        with pytest.raises(Damaged):
            recorded.decode(bytes(wrong))
        with pytest.raises(Damaged):
            recorded.decode(good[:at])


@pytest.mark.parametrize(
    "content",
    [
        ["", 8192, 4096, [0, 1]],
        ["", 8192, 4096, [-1, 1, 4]],
        ["", 8192, 4096, [0, 0, 4]],
        ["", 8192, 4096, [0, 1, 0]],
        ["", 8192, 4096, [0, 1, 256]],
        ["", 8192, 4096, [0, 3, 4]],
        ["", "8192", 4096, []],
        [],
    ],
)
def test_what_makes_no_sense_is_refused(content: list[object]) -> None:
    packed = zlib.compress(msgspec.msgpack.encode(content))
    data = b"refault working set 1\n" + recorded._digest(packed) + packed
    with pytest.raises(Damaged):
        recorded.decode(data)


def test_another_version_says_so() -> None:
    with pytest.raises(Damaged, match="another version"):
        recorded.decode(b"refault working set 2\n" + bytes(40))


def test_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "folder" / "it.workingset"
    assert read_recorded(str(path)) is None
    one = Recorded("1", PAGE, PAGE, [(0, PAGE, 4)])
    write_recorded(str(path), one)
    assert read_recorded(str(path)) == one
    write_recorded(str(path), one._replace(version="2"))
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    path.write_bytes(b"something else")
    with pytest.raises(Damaged, match="no working set"):
        read_recorded(str(path))


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "it")
    one = Recorded("1", PAGE, PAGE, [(0, PAGE, 4)])
    write_recorded(path, one)

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_recorded(path, one._replace(version="2"))
    assert read_recorded(path) == one
    assert os.listdir(tmp_path) == ["it"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@given(ranges(), ranges())
def test_runs_laid_over_each_other(used: list[Range], before: list[Range]) -> None:
    found = overlaid(used, before)
    assert found == sorted(found)
    for one, two in itertools.pairwise(found):
        assert one[1] < two[0] or (one[1] == two[0] and one[2] != two[2])
    right = {at: weight // 2 for at, weight in weights(before).items() if weight > 1}
    right |= {at: min(times + 3, 255) for at, times in weights(used).items()}
    assert weights(found) == right


def test_what_three_runs_do_not_need_is_forgotten() -> None:
    found = overlaid([(0, PAGE, 1)], [])
    for weight in (2, 1):
        found = overlaid([], found)
        assert found == [(0, PAGE, weight)]
    assert overlaid([], found) == []


def test_the_heaviest_first() -> None:
    some = [(0, 4, 1), (10, 14, 9), (20, 24, 5)]
    assert at_most(some, 6) == [(10, 14, 9), (20, 22, 5)]
    assert at_most(some, 100) == some
    assert at_most(some, 0) == []

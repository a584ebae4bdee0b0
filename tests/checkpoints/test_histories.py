"""Branches, tags, differences, and what is removed."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refault
from helpers.fake_snapshots import FakeMemory
from helpers.reading import read_with_zarr
from refault.checkpoints.records import ArrayDiff
from refault.checkpoints.writer import Writer

CHUNK = 16384


def noise(seed: int, length: int = 4 * CHUNK) -> Any:
    return np.random.default_rng(seed).standard_normal(length).astype("f4")


def test_nothing_yet(ck: Any) -> None:
    for call in (ck.load, ck.history, ck.verify, lambda: ck.tag("v1"), lambda: ck.branch("b")):
        with pytest.raises(refault.UsageError, match="no checkpoint yet; save one first"):
            call()


def test_what_is_not_there(ck: Any) -> None:
    ck.save({"x": noise(0)}).result(60)
    for ref in ("v1", "1CECHNKREP0F1RSTCMTX", "../x", ""):
        with pytest.raises(refault.Error, match=r"cannot .*checkpoints list|checkpoint"):
            ck.history(ref)
    with pytest.raises(refault.UsageError, match="mode='r\\+': a checkpoint never changes"):
        ck.load(mode="r+")
    with pytest.raises(refault.UsageError, match="either a tag or a branch"):
        ck.delete()
    with pytest.raises(refault.UsageError, match="ref not found"):
        ck.delete(tag="v1")


def test_a_place_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(refault.UsageError, match="no such folder"):
        refault.Checkpoints(tmp_path / "no", create=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(refault.UsageError, match="no checkpoints"):
        refault.Checkpoints(tmp_path, create=False)
    for url in ("ftp://host/x", "s3://", "mailto:me"):
        with pytest.raises(refault.UsageError, match="is no place for checkpoints"):
            refault.Checkpoints(url)
    with pytest.raises(refault.UsageError, match="a folder has none"):
        refault.Checkpoints(tmp_path, region="here")
    with pytest.raises(refault.UsageError, match=r"color.*icechunk.s3_storage"):
        refault.Checkpoints("s3://bucket/x", color="red")
    with pytest.raises(refault.UsageError, match="chunk_size"):
        refault.Checkpoints(tmp_path, chunk_size=0)


def test_a_file_url(tmp_path: Path) -> None:
    with refault.Checkpoints(f"file://{tmp_path}/with%20blank") as ck:
        ck.save({"x": noise(0)}).result(60)
    np.testing.assert_array_equal(read_with_zarr(tmp_path / "with blank")["x"], noise(0))


def test_a_storage_of_icechunk_s(tmp_path: Path, memory: FakeMemory) -> None:
    import icechunk

    storage = icechunk.local_filesystem_storage(str(tmp_path))
    with refault.Checkpoints("mine", storage=storage) as ck:
        ck.save({"x": noise(0)}).result(60)
        assert "mine" in repr(ck)
    np.testing.assert_array_equal(read_with_zarr(tmp_path)["x"], noise(0))


def test_branches(ck: Any, memory: FakeMemory, place: Path) -> None:
    x = memory.array(noise(0))
    first = ck.save({"x": x}).result(60)
    ck.branch("try", first)
    for number in range(2):
        for branch in ("try", "main"):
            x[number] = 5 if branch == "main" else 6
            done = ck.save({"x": x}, branch=branch).result(60)
            # Each branch knows what it has: nothing is written that is there.
            assert 0 < done.written < 70_000
            np.testing.assert_array_equal(read_with_zarr(place, branch=branch)["x"], x)
    assert set(ck.branches()) == {"main", "try"}
    assert [len(ck.history(branch)) for branch in ("main", "try")] == [3, 3]
    assert ck.history("main")[-1] == ck.history("try")[-1] == first
    ck.delete(branch="try")
    assert set(ck.branches()) == {"main"}
    with pytest.raises(refault.UsageError, match="ref not found"):
        ck.save({"x": x}, branch="try").result(60)


def test_tags(ck: Any) -> None:
    first = ck.save({"x": noise(0)}).result(60)
    ck.tag("v1")
    second = ck.save({"x": noise(1)}).result(60)
    ck.tag("v2", second)
    ck.tag("old", first.id)
    assert ck.tags() == {"v1": first.id, "v2": second.id, "old": first.id}
    assert ck.history("v1") == [first]
    assert ck.checkpoint("v2") == second
    with pytest.raises(refault.StoreError, match=r"make the tag v1.*already exists"):
        ck.tag("v1", second)
    ck.delete(tag="v1")
    assert set(ck.tags()) == {"v2", "old"}


def test_diff(ck: Any, memory: FakeMemory) -> None:
    x = memory.array(noise(0))
    first = ck.save({"x": x, "gone": noise(1), "same": noise(2), "other": noise(3)}).result(60)
    x[0], x[-1] = 1, 2
    new = {"x": x, "same": noise(2), "other": noise(3).astype("f8"), "new": noise(4, 10)}
    second = ck.save(new).result(60)
    expected = [
        ArrayDiff("gone", "removed", 4, 16 * CHUNK),
        ArrayDiff("new", "added", 1, 40),
        ArrayDiff("other", "replaced", 8, 32 * CHUNK),
        ArrayDiff("x", "changed", 2, 8 * CHUNK),
    ]
    assert ck.diff(first, second) == expected
    assert {(one.name, one.what) for one in ck.diff(second, first)} == {
        ("gone", "added"),
        ("new", "removed"),
        ("other", "replaced"),
        ("x", "changed"),
    }
    assert ck.diff(first, first) == []


def test_diff_of_two_branches(ck: Any, memory: FakeMemory) -> None:
    x = memory.array(noise(0))
    ck.save({"x": x}).result(60)
    ck.branch("try")
    x[0] = 1
    other = ck.save({"x": x}, branch="try").result(60)
    x[-1] = 1
    main = ck.save({"x": x}).result(60)
    assert ck.diff(main, other) == [ArrayDiff("x", "changed", 2, 8 * CHUNK)]


def test_expired_checkpoints_are_removed(ck: Any, memory: FakeMemory, place: Path) -> None:
    x = memory.array(noise(0))
    done = []
    for number in range(4):
        x[:] = noise(number)
        done.append(ck.save({"x": x}).result(60))
    ck.tag("kept", done[0])
    chunks = len(list((place / "chunks").iterdir()))
    assert chunks == 16
    gone = ck.expire(datetime.datetime.now(datetime.UTC))
    assert gone == {done[1].id, done[2].id}
    assert ck.garbage_collect() == (0, 0)  # it is all younger than a day
    collected = ck.garbage_collect(datetime.timedelta(0))
    assert collected.objects >= 8
    assert collected.nbytes > 8 * 4 * CHUNK * 0.8
    assert len(list((place / "chunks").iterdir())) == 8
    assert [one.id for one in ck.history()] == [done[3].id]
    assert [one.id for one in ck.history("kept")] == [done[0].id]
    assert ck.diff("kept", "main") == [ArrayDiff("x", "changed", 4, 16 * CHUNK)]
    assert not ck.verify("kept").damage
    # The branch goes on, and knows still what it has.
    x[5] = 5
    assert 0 < ck.save({"x": x}).result(60).written < 70_000
    np.testing.assert_array_equal(read_with_zarr(place)["x"], x)
    assert not ck.verify().damage


def test_garbage_is_not_collected_during_a_save(
    ck: Any, memory: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, go_on = threading.Event(), threading.Event()
    write = Writer.write

    def slow(self: Any, *args: Any) -> None:
        write(self, *args)
        written.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Writer, "write", slow)
    save = ck.save({"x": noise(0)})
    assert written.wait(60)
    collected = threading.Thread(target=ck.garbage_collect, args=[datetime.timedelta(0)])
    collected.start()
    collected.join(0.2)
    assert collected.is_alive()
    go_on.set()
    save.result(60)
    collected.join(60)
    assert not ck.verify().damage


def test_arrays(ck: Any) -> None:
    ck.save({"a/x": np.asfortranarray(np.ones((3, 40_000))), "y": np.array(5, ">i2")}).result(60)
    first, second = ck.arrays()
    assert first == ("a/x", "float64", (3, 40_000), 960_000, "F", 15, (3, 2730))
    assert second[:5] == ("y", ">i2", (), 2, "C")

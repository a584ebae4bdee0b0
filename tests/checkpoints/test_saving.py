"""What a save writes, and that it is what was there at the instant."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refault
from helpers.fake_snapshots import UNIT, FakeMemory
from helpers.reading import read_with_zarr
from refault.checkpoints import codec, writer

RANDOM = np.random.default_rng(0)
CHUNK = 16384
"""Numbers of 4 bytes in a chunk."""


def chunks_written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the lengths of chunks that are encoded."""
    lengths: list[int] = []
    encode = writer.encode

    def wrapped(data: memoryview, length: int, level: int | None) -> bytes:
        lengths.append(len(data))
        return encode(data, length, level)

    monkeypatch.setattr(writer, "encode", wrapped)
    return lengths


ARRAYS: dict[str, Any] = {
    "noise": RANDOM.standard_normal(100_000).astype("f4"),
    "rows": RANDOM.integers(0, 1000, (300, 500)),
    "columns": np.asfortranarray(RANDOM.integers(0, 1000, (3, 70_000), dtype="i4")),
    "cube": RANDOM.integers(0, 255, (4, 50, 600), dtype="u1"),
    "zeros": np.zeros(100_000),
    "value": np.array(7),
    "nothing": np.empty((0, 3)),
    "flags": np.array([True, False]),
    "times": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "big endian": np.arange(3, dtype=">u2"),
    "complex": np.array([1 + 2j, np.nan]),
    "half": np.arange(3, dtype="f2"),
    "model/layer/bias": np.array([-0.0, 1.0]),
}


@pytest.mark.parametrize("paged", [False, True], ids=["plain", "paged"])
@pytest.mark.parametrize("compression", [-1, 3, None])
def test_zarr_reads_what_was_saved(
    place: Path, memory: FakeMemory, paged: bool, compression: int | None
) -> None:
    arrays = {name: memory.array(array) if paged else array for name, array in ARRAYS.items()}
    with refault.Checkpoints(place, compression=compression) as ck:
        done = ck.save(arrays, message="all").result(60)
        assert done.nbytes == sum(array.nbytes for array in ARRAYS.values())
        found = read_with_zarr(place)
        assert set(found) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert found[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found[name], array)
            assert np.ascontiguousarray(found[name]).astype(array.dtype).tobytes() == (
                array.tobytes()
            )
        assert ck.verify().damage == []


def test_the_instant_is_that_of_the_call(ck: Any, memory: FakeMemory, place: Path) -> None:
    paged, plain = memory.array(np.zeros(50_000)), np.zeros(10)
    save = ck.save({"paged": paged, "plain": plain})
    paged[:] = 1
    plain[:] = 1
    save.result(60)
    found = read_with_zarr(place)
    assert not found["paged"].any()
    assert not found["plain"].any()


@pytest.mark.parametrize("order", ["C", "F"])
def test_only_changed_chunks_are_written(
    ck: Any, memory: FakeMemory, place: Path, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    x = memory.array(np.asarray(RANDOM.integers(0, 99, (64, CHUNK)), "f4", order=order))
    y = RANDOM.integers(0, 99, (64, CHUNK))
    ck.save({"x": x, "y": y}).result(60)
    lengths = chunks_written(monkeypatch)
    flat = x.reshape(-1, order="A")
    flat[5 * CHUNK + 3] += 1
    flat[9 * CHUNK - 1 : 9 * CHUNK + 1] += 1
    y[3, 5] += 1
    done = ck.save({"x": x, "y": y}).result(60)
    assert lengths == [4 * CHUNK] * 4
    assert 0 < done.written < 4 * 4 * CHUNK
    lengths.clear()
    assert ck.save({"x": x, "y": y}).result(60).written == 0
    assert lengths == []
    found = read_with_zarr(place)
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["y"], y)


def test_pages_that_are_not_marked_are_not_looked_at(ck: Any, memory: FakeMemory) -> None:
    x = memory.array(np.arange(10 * CHUNK, dtype="f4"))
    ck.save({"x": x}).result(60)
    assert sum(end - start for start, end in memory.read_ranges) == x.nbytes
    memory.read_ranges.clear()
    x[3 * CHUNK] = -1
    ck.save({"x": x}).result(60)
    assert memory.read_ranges == [(12 * CHUNK, 16 * CHUNK)]


def test_what_was_written_with_its_own_value_is_not_written(
    ck: Any, memory: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = memory.array(np.arange(3 * CHUNK, dtype="f4"))
    ck.save({"x": x}).result(60)
    lengths = chunks_written(monkeypatch)
    x[5] += 1
    ck.save({"x": x.copy()}).result(60)  # other memory, compared chunk by chunk
    assert lengths == [4 * CHUNK]
    ck.save({"x": x}).result(60)
    assert lengths == [4 * CHUNK]


def test_zeros_are_stored_but_take_little(ck: Any, memory: FakeMemory, place: Path) -> None:
    x = memory.array(np.zeros(10 * CHUNK, "f4"))
    assert 0 < ck.save({"x": x}).result(60).written < 1000
    assert ck.verify().chunks == 10
    x[:] = 1
    ck.save({"x": x}).result(60)
    x[: 5 * CHUNK] = 0
    ck.save({"x": x}).result(60)
    np.testing.assert_array_equal(read_with_zarr(place)["x"], x)
    x[:] = 0
    ck.save({"x": x}).result(60)
    assert not read_with_zarr(place)["x"].any()


def test_arrays_come_and_go_and_change_shape(ck: Any, memory: FakeMemory, place: Path) -> None:
    x = memory.array(np.arange(10.0))
    ck.save({"x": x, "y": np.arange(5)}).result(60)
    ck.save({"x": x.reshape(2, 5), "z": np.arange(4)}).result(60)
    found = read_with_zarr(place)
    assert set(found) == {"x", "z"}
    assert found["x"].shape == (2, 5)
    ck.save({"x/below": x, "z": np.arange(4.0)}).result(60)
    found = read_with_zarr(place)
    assert set(found) == {"x/below", "z"}
    assert found["z"].dtype == np.float64
    ck.save({"x": x}).result(60)
    assert set(read_with_zarr(place)) == {"x"}


def test_checkpoints_follow_each_other(ck: Any, memory: FakeMemory, place: Path) -> None:
    x = memory.array(np.zeros(CHUNK, "f4"))
    saves = []
    for step in range(5):
        x[:] = step
        saves.append(ck.save({"x": x}, message=f"step {step}", metadata={"step": step}))
    done = [save.result(60) for save in saves]
    assert [one.metadata for one in done] == [{"step": step} for step in range(5)]
    assert ck.history() == done[::-1]
    assert [one.parent for one in done[1:]] == [one.id for one in done[:-1]]
    for step, one in enumerate(done):
        assert (read_with_zarr(place, snapshot_id=one.id)["x"] == step).all()


def test_another_program_s_checkpoint_in_between(ck: Any, memory: FakeMemory, place: Path) -> None:
    x, other = memory.array(np.arange(3 * CHUNK, dtype="f4")), np.ones(3 * CHUNK, "f4")
    ck.save({"x": x}).result(60)
    with refault.Checkpoints(place) as second:
        second.save({"x": other}).result(60)
        x[0] = 5
        ck.save({"x": x}).result(60)
        np.testing.assert_array_equal(read_with_zarr(place)["x"], x)
        # It does not take its own for the newest, either.
        second.save({"x": other}).result(60)
        np.testing.assert_array_equal(read_with_zarr(place)["x"], other)
    assert len(ck.history()) == 4


def test_another_program_commits_during_a_save(
    ck: Any, memory: FakeMemory, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = memory.array(np.arange(3 * CHUNK, dtype="f4"))
    ck.save({"x": x}).result(60)
    wait, go_on = threading.Event(), threading.Event()
    write = writer.Writer.write

    def slow(self: Any, *args: Any) -> None:
        write(self, *args)
        wait.set()
        assert go_on.wait(60)

    monkeypatch.setattr(writer.Writer, "write", slow)
    x[5] = 0
    save = ck.save({"x": x})
    assert wait.wait(60)
    monkeypatch.setattr(writer.Writer, "write", write)
    with refault.Checkpoints(place) as second:
        second.save({"x": np.zeros(3 * CHUNK, "f4")}).result(60)
    go_on.set()
    with pytest.raises(refault.StoreError, match="another checkpoint meanwhile"):
        save.result(60)
    ck.save({"x": x}).result(60)
    np.testing.assert_array_equal(read_with_zarr(place)["x"], x)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_history_can_be_read_back(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        memory = FakeMemory(patch)
        order = data.draw(st.sampled_from(["C", "F"]))
        x = memory.array(np.zeros((7, 3000), "u2", order=order))
        plain = np.zeros(5000, "u1")
        expected = {}
        with refault.Checkpoints(place, chunk_size=data.draw(st.sampled_from([999, 4096]))) as ck:
            for _ in range(data.draw(st.integers(1, 4))):
                for _ in range(data.draw(st.integers(0, 3))):
                    at, length = data.draw(st.integers(0, 2999)), data.draw(st.integers(0, 400))
                    x[data.draw(st.integers(0, 6)), at : at + length] = data.draw(st.integers(0, 2))
                    plain[at : at + length] = data.draw(st.integers(0, 1))
                done = ck.save({"x": x, "plain": plain}).result(60)
                expected[done.id] = x.copy(), plain.copy()
        for id, (first, second) in expected.items():
            found = read_with_zarr(place, snapshot_id=id)
            np.testing.assert_array_equal(found["x"], first)
            np.testing.assert_array_equal(found["plain"], second)


def test_what_cannot_be_stored_is_refused(ck: Any, memory: FakeMemory) -> None:
    fine = np.zeros(3)
    for arrays, match in (
        ({"x": np.array(["a"])}, "Zarr has no type"),
        ({"x": np.array([object()])}, "Zarr has no type"),
        ({"x": np.zeros(3, "f4,i4")}, "Zarr has no type"),
        ({"x": np.zeros(3, np.longdouble)}, "Zarr has no type"),
        ({"x": memory.array(np.zeros((4, 4)))[:, ::2]}, "lie apart"),
        ({"": fine}, "does not allow"),
        ({"a//b": fine}, "does not allow"),
        ({"../b": fine}, "does not allow"),
        ({"zarr.json": fine}, "does not allow"),
        ({5: fine}, "is no text"),
        ({"a": fine, "a/b": fine}, "below it"),
    ):
        with pytest.raises(refault.UsageError, match=match):
            ck.save(arrays)
    with pytest.raises(refault.UsageError, match="metadata cannot be kept"):
        ck.save({"x": fine}, metadata={"x": fine})
    with pytest.raises(refault.UsageError, match=r"ref not found.*checkpoints list"):
        ck.save({"x": fine}, branch="nowhere").result(60)


def test_progress(ck: Any, memory: FakeMemory) -> None:
    x = memory.array(np.zeros(10 * CHUNK, "f4"))
    save = ck.save({"x": x, "y": np.zeros(5)})
    save.result(60)
    assert save.done()
    assert save.progress == (x.nbytes + 40, x.nbytes + 40)
    x[0] = 1
    save = ck.save({"x": x, "y": np.zeros(5)})
    save.result(60)
    assert save.progress == (4 * CHUNK + 40, 4 * CHUNK + 40)
    assert UNIT < 4 * CHUNK


def test_a_closed_one_is_refused(ck: Any) -> None:
    save = ck.save({"x": np.zeros(3)})
    ck.close()
    assert save.done()
    for call in (lambda: ck.save({"x": np.zeros(3)}), ck.load, ck.garbage_collect):
        with pytest.raises(refault.UsageError, match="is closed"):
            call()


def test_chunks_are_encoded_when_there_is_room_for_them(
    ck: Any, memory: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save holds what is on its way, not all that has changed."""
    x = memory.array(np.random.default_rng(0).integers(1 << 63, size=256 * 8192))
    monkeypatch.setattr(writer, "REQUESTS", 8)
    held: list[int] = [0, 0]

    class Encoded(bytes):
        def __del__(self) -> None:
            held[0] -= 1

    def encode(*arguments: Any) -> bytes:
        found = Encoded(codec.encode(*arguments))
        held[0] += 1
        held[1] = max(held)
        return found

    monkeypatch.setattr(writer, "encode", encode)
    assert ck.save({"x": x}).result(60).written > 256 * 65536
    assert held[1] < 64  # some have arrived, and nobody has looked yet

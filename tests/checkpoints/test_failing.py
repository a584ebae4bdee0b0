"""A save that fails says so, leaves nothing behind, and the next one has everything."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import refault
from helpers.bucket import Bucket
from helpers.child import run_child
from helpers.fake_snapshots import FakeMemory
from helpers.reading import read_with_zarr
from refault import cli

CHUNK = 16384


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as found:
        yield found


def read_bucket(bucket: Bucket) -> Any:
    storage = icechunk.s3_storage(bucket="bucket", prefix="checkpoints", **bucket.options)
    session = icechunk.Repository.open(storage).readonly_session("main")
    return zarr.open_group(session.store, mode="r")


def break_folder(place: Path, part: str = "chunks") -> None:
    """No object of one kind can be written any more."""
    (place / part).rename(place / "elsewhere")
    (place / part).write_text("in the way")


def mend_folder(place: Path, part: str = "chunks") -> None:
    (place / part).unlink()
    (place / "elsewhere").rename(place / part)


@pytest.mark.parametrize("part", ["chunks", "manifests", "transactions"])
def test_a_save_that_fails_is_made_up_for(
    ck: Any, memory: FakeMemory, place: Path, part: str
) -> None:
    """Chunks are written during the save, the others with the commit."""
    x = memory.array(np.arange(8 * CHUNK, dtype="f4"))
    plain = np.arange(3 * CHUNK, dtype="f4")
    first = ck.save({"x": x, "plain": plain}).result(60)
    break_folder(place, part)
    x[5], plain[5] = -1, -1
    before = x.copy()
    with pytest.raises(refault.StoreError, match=r"cannot save.*do it again") as caught:
        ck.save({"x": x, "plain": plain}).result(60)
    assert "context" not in str(caught.value)
    np.testing.assert_array_equal(x, before)
    assert not memory.snapshots
    # Other chunks than those whose save has failed.
    x[5 * CHUNK] = -2
    mend_folder(place, part)
    assert ck.history() == [first]
    done = ck.save({"x": x, "plain": plain}).result(60)
    assert done.parent == first.id
    found = read_with_zarr(place)
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["plain"], plain)
    assert read_with_zarr(place, snapshot_id=first.id)["x"][5] == 5
    assert 0 < done.written < 4 * 4 * CHUNK


def test_saves_behind_one_that_fails_are_written(ck: Any, memory: FakeMemory, place: Path) -> None:
    x = memory.array(np.arange(8 * CHUNK, dtype="f4"))
    ck.save({"x": x}).result(60)
    write, go_on = ck._repository.writable_session, threading.Event()

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(repository, name)

        def writable_session(self, branch: str) -> Any:
            assert go_on.wait(60)
            ck._repository = repository
            raise OSError("no route to host")

    repository = ck._repository
    ck._repository = Refusing()
    x[1] = -1
    failing = ck.save({"x": x})
    x[5 * CHUNK] = -2
    following = ck.save({"x": x})
    go_on.set()
    with pytest.raises(refault.StoreError, match="no route to host"):
        failing.result(60)
    assert following.result(60).written > 0
    np.testing.assert_array_equal(read_with_zarr(place)["x"], x)
    assert write is not None


def test_a_failure_that_nobody_asked_for_is_told(ck: Any, memory: FakeMemory, place: Path) -> None:
    ck.save({"x": np.random.default_rng(0).random(999)}).result(60)
    break_folder(place)
    save = ck.save({"x": np.random.default_rng(1).random(999)})
    while not save.done():
        time.sleep(0.01)
    with pytest.warns(RuntimeWarning, match=r"a checkpoint was not saved: .*do it again"):
        # The saver's thread lets go of it soon.
        gone = weakref.ref(save)
        del save
        while gone() is not None:
            gc.collect()
            time.sleep(0.01)
    save = ck.save({"x": np.random.default_rng(1).random(999)})
    with pytest.raises(refault.StoreError):
        save.result(60)
    del save
    gc.collect()
    mend_folder(place)


def test_a_full_disk(tmp_path: Path) -> None:
    """Files may have 256 KiB, as if there were no room for more."""
    code = """
        import resource, signal, sys
        import numpy as np
        import refault

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        small = np.random.default_rng(0).integers(0, 255, 100_000, dtype="u1")
        large = np.random.default_rng(0).integers(0, 255, 10_000_000, dtype="u1")
        with refault.Checkpoints(sys.argv[1], chunk_size="1MiB") as ck:
            first = ck.save({"x": small}).result(60)
            resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
            try:
                ck.save({"x": small, "large": large}).result(60)
            except refault.StoreError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert ck.history() == [first]
            ck.save({"x": small, "large": large}).result(60)
            assert not ck.verify().damage
    """
    out = run_child(code, timeout=100, args=[str(tmp_path / "ck")]).stdout
    assert "File too large" in out
    assert "has room" in out
    assert len(read_with_zarr(tmp_path / "ck")["large"]) == 10_000_000


def test_a_bucket(
    bucket: Bucket,
    memory: FakeMemory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = memory.array(np.arange(8 * CHUNK, dtype="f4"))
    with refault.Checkpoints(bucket.url, **bucket.options) as ck:
        first = ck.save({"x": x}).result(60)
        x[5] = -1
        bucket.forbid()
        with pytest.raises(refault.StoreError, match=r"AccessDenied.*lets you in"):
            ck.save({"x": x}).result(60)
        with pytest.raises(refault.StoreError, match=r"cannot open.*lets you in"):
            refault.Checkpoints(bucket.url, **bucket.options)
        with pytest.raises(refault.StoreError, match="AccessDenied"):
            ck.history()
        bucket.forbid(False)
        second = ck.save({"x": x}).result(60)
        assert ck.history() == [second, first]
        assert ck.verify().damage == []
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    words = ["verify", bucket.url, "--endpoint-url", bucket.options["endpoint_url"]]
    assert cli.main(["checkpoints", *words]) == 0
    assert "all is well: 8 chunks" in capsys.readouterr().out
    np.testing.assert_array_equal(read_bucket(bucket)["x"][...], x)


def test_a_bucket_that_is_away_for_a_while(bucket: Bucket, memory: FakeMemory) -> None:
    x = memory.array(np.arange(8 * CHUNK, dtype="f4"))
    with refault.Checkpoints(bucket.url, **bucket.options) as ck:
        bucket.shut()
        save = ck.save({"x": x})
        with pytest.raises(TimeoutError):
            save.result(0.5)
        bucket.open()
        save.result(60)
    np.testing.assert_array_equal(read_bucket(bucket)["x"][...], x)


@pytest.mark.slow
def test_a_bucket_that_cannot_be_reached(bucket: Bucket, memory: FakeMemory) -> None:
    x = memory.array(np.arange(8 * CHUNK, dtype="f4"))
    with refault.Checkpoints(bucket.url, **bucket.options) as ck:
        bucket.shut()
        with pytest.raises(refault.StoreError, match=r"Connection refused.*can be reached"):
            ck.save({"x": x}).result(100)
        bucket.open()
        ck.save({"x": x}).result(60)
    np.testing.assert_array_equal(read_bucket(bucket)["x"][...], x)

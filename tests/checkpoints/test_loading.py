"""Arrays of a checkpoint, paged in by the pager."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refault
from helpers.bucket import Bucket
from helpers.child import run_child
from helpers.fake_snapshots import FakeMemory
from helpers.userfaultfd import needs_userfaultfd

CHUNK = 16384


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
def test_arrays_come_back(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        import refault

        random = np.random.default_rng(0)
        arrays = {
            "noise": random.standard_normal(300_000),
            "columns": np.asfortranarray(random.integers(0, 1000, (3, 70_000), dtype="i4")),
            "cube": random.integers(0, 255, (4, 50, 600), dtype="u1"),
            "rows": random.integers(0, 255, (7, 70_001), dtype="u1"),
            "zeros": np.zeros(100_000),
            "value": np.array(7),
            "nothing": np.empty((0, 3)),
            "times": np.array(["2020-01-01", "NaT"], "M8[D]"),
            "big": np.arange(3, dtype=">u2"),
            "flags": np.array([True, False]),
            "a/b": np.array([1j]),
        }
        for compression in (-1, None):
            place = f"{sys.argv[1]}/{compression}"
            with refault.Checkpoints(place, compression=compression) as ck:
                ck.save(arrays).result(60)
                found = ck.load(resident="1MiB")
                assert set(found) == set(arrays)
                for name, array in arrays.items():
                    loaded = found[name]
                    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape), name
                    assert loaded.flags.f_contiguous == array.flags.f_contiguous
                    assert not loaded.flags.writeable
                    np.testing.assert_array_equal(loaded, array)
                assert refault.region(found["noise"]).statistics().resident <= 1 << 20
                # Here and there, forwards and backwards, in units of another size.
                small = ck.load(page_size="4KiB")["noise"]
                for at in (299_999, 5, 8191, 8193, 200_000):
                    assert small[at] == arrays["noise"][at]
                del found, loaded, small
    """
    run_child(code, timeout=100, args=[str(tmp_path)])


@needs_userfaultfd
@pytest.mark.usefixtures("nothing_left")
def test_old_ones_are_as_they_were(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        import refault

        with refault.Checkpoints(sys.argv[1]) as ck:
            x = np.zeros(100_000, "i4")
            done = []
            for step in range(3):
                x[step * 20_000 :] = step
                done.append(ck.save({"x": x}).result(60))
            ck.tag("first", done[0])
            old = [ck.load(one)["x"] for one in done]
            for step, array in enumerate(old):
                expected = np.minimum(np.arange(100_000) // 20_000, step)
                np.testing.assert_array_equal(array, expected)
            assert ck.load("first")["x"][99_999] == 0
            assert ck.load(done[1].id)["x"][99_999] == 1
            assert ck.load()["x"][99_999] == 2
            del old, array
    """
    run_child(code, timeout=100, args=[str(tmp_path / "ck")])


@needs_userfaultfd
def test_damage_is_loud(tmp_path: Path, memory: FakeMemory) -> None:
    with refault.Checkpoints(tmp_path / "ck") as ck:
        ck.save({"x": np.random.default_rng(0).integers(1, 9, 8 * CHUNK)}).result(60)
    for number, file in enumerate(sorted((tmp_path / "ck" / "chunks").iterdir())):
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        if number == 0:
            file.write_bytes(data)
    code = """
        import sys
        import refault

        with refault.Checkpoints(sys.argv[1]) as ck:
            x = ck.load()["x"]
            try:
                refault.region(x).populate()
            except refault.StoreError as error:
                print(error)
            del x
    """
    out = run_child(code, timeout=100, args=[str(tmp_path / "ck")]).stdout
    assert "x/c/" in out
    assert "checksum is wrong" in out
    assert "refault checkpoints verify" in out


@needs_userfaultfd
def test_from_a_bucket(memory: FakeMemory) -> None:
    x = np.random.default_rng(0).standard_normal(8 * CHUNK).astype("f4")
    with Bucket() as bucket:
        with refault.Checkpoints(bucket.url, **bucket.options) as ck:
            ck.save({"x": x}).result(60)
        code = """
            import json, sys
            import numpy as np
            import refault

            with refault.Checkpoints(sys.argv[1], **json.loads(sys.argv[2])) as ck:
                x = ck.load()["x"]
                expected = np.random.default_rng(0).standard_normal(len(x)).astype("f4")
                np.testing.assert_array_equal(x, expected)
                del x
        """

        run_child(code, timeout=100, args=[bucket.url, json.dumps(bucket.options)])


@pytest.fixture
def store(tmp_path: Path, memory: FakeMemory) -> Any:
    x = np.arange(5 * CHUNK // 2, dtype="i4")
    with refault.Checkpoints(tmp_path / "ck") as ck:
        done = ck.save({"deep/x": x}).result(60)
        [(name, layout, found)] = ck._stores(done.id)
    assert (name, layout.shape) == ("deep/x", x.shape)
    return found, x.tobytes()


def test_any_range_of_the_store(store: Any) -> None:
    found, data = store
    assert found.size == len(data)
    random = np.random.default_rng(0)
    for _ in range(50):
        start, stop = sorted(map(int, random.integers(0, len(data) + 1, 2)))
        buffer = bytearray(b"\xee" * (stop - start))
        found.read_into(start, memoryview(buffer))
        assert buffer == data[start:stop]


def test_neighbouring_pages_are_decoded_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from refault.checkpoints import store as module

    decoded: list[int] = []
    decode = module.decode

    def counted(stored: bytes, length: int, *, compressed: bool) -> bytes:
        decoded.append(length)
        return decode(stored, length, compressed=compressed)

    monkeypatch.setattr(module, "decode", counted)
    found, data = store
    for start in range(0, 8 * 4096, 4096):
        buffer = bytearray(4096)
        found.read_into(start, memoryview(buffer))
        assert buffer == data[start : start + 4096]
    assert len(decoded) == 1


def test_the_pager_imports_neither_numpy_nor_zarr(store: Any, tmp_path: Path) -> None:
    found, data = store
    (tmp_path / "store").write_bytes(pickle.dumps(found))
    code = """
import pickle, sys
store = pickle.load(open(sys.argv[1], "rb"))
buffer = bytearray(store.size)
store.read_into(0, memoryview(buffer))
loaded = {"numpy", "zarr"} & set(sys.modules)
assert not loaded, loaded
import icechunk  # the other half, later
assert icechunk.Storage is sys.modules["icechunk._icechunk_python"].Storage
icechunk.Repository.open(icechunk.local_filesystem_storage(sys.argv[2]))
sys.stdout.buffer.write(buffer)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "store", tmp_path / "ck"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=True,
        env={**os.environ, "ICECHUNK_LOG": "error"},
    )
    assert done.stdout == data

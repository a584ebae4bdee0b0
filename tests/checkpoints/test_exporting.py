"""A checkpoint as plain Zarr, and readers that know nothing of refault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import refault
from refault import cli

RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "noise": RANDOM.standard_normal(100_000).astype("f4"),
    "columns": np.asfortranarray(RANDOM.integers(0, 1000, (3, 70_000), dtype="i4")),
    "model/weights": RANDOM.integers(0, 255, (4, 50, 600), dtype="u1"),
    "model/bias": np.arange(7.0),
    "zeros": np.zeros(100_000),
    "step": np.array(7),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "ck"
    with refault.Checkpoints(place) as ck:
        ck.save(ARRAYS).result(60)
        ck.tag("all")
        ck.save({"step": np.array(8)}).result(60)
    return place


def store_of(place: Path, tag: str) -> Any:
    storage = icechunk.local_filesystem_storage(str(place))
    return icechunk.Repository.open(storage).readonly_session(tag=tag).store


def test_an_export_is_plain_zarr(saved: Path, tmp_path: Path) -> None:
    with refault.Checkpoints(saved) as ck:
        done = ck.export(tmp_path / "a.zarr", "all")
        assert done.arrays == len(ARRAYS)
        assert done.chunks == sum(array.chunks for array in ck.arrays("all"))
        assert ck.export(tmp_path / "b.zarr").arrays == 1
        with pytest.raises(refault.UsageError, match="give the name of a new folder"):
            ck.export(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for name, array in ARRAYS.items():
        found = group[name]
        assert isinstance(found, zarr.Array)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found[...], array)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]
    size = sum(one.stat().st_size for one in (tmp_path / "a.zarr").rglob("*") if one.is_file())
    assert size == done.nbytes


def test_what_others_have_stored_is_exported_too(tmp_path: Path) -> None:
    with refault.Checkpoints(tmp_path / "ck") as ck:
        ck.save({"x": ARRAYS["noise"]}).result(60)
        repository = icechunk.Repository.open(
            icechunk.local_filesystem_storage(str(tmp_path / "ck"))
        )
        session = repository.writable_session("main")
        zarr.create_array(session.store, name="x2", data=ARRAYS["columns"], chunks=(2, 999))
        zarr.create_group(session.store, path="empty")
        session.commit("theirs")
        ck.export(tmp_path / "out")
    group = zarr.open_group(tmp_path / "out", mode="r")
    assert set(group) == {"x", "x2", "empty"}
    for name, wanted in (("x", "noise"), ("x2", "columns")):
        np.testing.assert_array_equal(np.asarray(group[name]), ARRAYS[wanted])


def test_an_export_of_damage_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "ck"
    with refault.Checkpoints(place) as ck:
        ck.save({"noise": ARRAYS["noise"]}).result(60)
        chunk = next(one for one in (place / "chunks").iterdir())
        content = bytearray(chunk.read_bytes())
        content[100] ^= 1
        chunk.write_bytes(content)
        with pytest.raises(refault.StoreError, match=r"noise/c/\d is damaged: its checksum"):
            ck.export(tmp_path / "out")
        chunk.unlink()
        with pytest.raises(refault.StoreError, match=r"noise/c/\d is damaged: it cannot be read"):
            ck.export(tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["ck"]


def test_a_chunk_that_is_not_there_is_not_zeros(tmp_path: Path) -> None:
    with refault.Checkpoints(tmp_path / "ck") as ck:
        ck.save({"noise": ARRAYS["noise"]}).result(60)
        repository = icechunk.Repository.open(
            icechunk.local_filesystem_storage(str(tmp_path / "ck"))
        )
        session = repository.writable_session("main")
        zarr.open_group(session.store)["noise"][:] = 0  # type: ignore[index]
        session.commit("theirs")
        with pytest.raises(refault.StoreError, match="it is gone"):
            ck.export(tmp_path / "out")


def test_the_command_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["checkpoints", "export", str(saved), str(tmp_path / "out"), "all"]
    assert cli.main(words) == 0
    assert "chunks of 6 arrays" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "new folder" in capsys.readouterr().err
    words[3] = str(tmp_path / "again")
    assert cli.main([*words, "--json"]) == 0
    assert '"arrays": 6' in capsys.readouterr().out


def test_xarray(saved: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray needs pandas; pip install xarray")
    for group, names in ((None, ["noise", "columns", "zeros", "step"]), ("model", ["weights"])):
        with xarray.open_zarr(
            store_of(saved, "all"), group=group, consolidated=False, chunks=None
        ) as found:
            for name in names:
                array = ARRAYS[f"{group}/{name}" if group else name]
                assert found[name].dims == tuple(f"{name}_dim_{i}" for i in range(array.ndim))
                np.testing.assert_array_equal(found[name].values, array)


def test_tensorstore(saved: Path, tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="pip install tensorstore")
    with refault.Checkpoints(saved) as ck:
        ck.export(tmp_path / "out", "all")
    for name, array in ARRAYS.items():
        path = str(tmp_path / "out" / name) + "/"
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        found = tensorstore.open(spec, open=True).result()
        assert found.domain.labels == tuple(
            f"{name.rpartition('/')[2]}_dim_{axis}" for axis in range(array.ndim)
        )
        np.testing.assert_array_equal(found.read().result(), array)

"""`verify` finds what is not as it was stored, and `load` never delivers it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import refault
from helpers.child import run_child
from helpers.fake_snapshots import FakeMemory
from refault import cli

CHUNK = 16384


@pytest.fixture
def saved(ck: Any, memory: FakeMemory, place: Path) -> Path:
    random = np.random.default_rng(0)
    x = random.integers(0, 9, 4 * CHUNK, dtype="i4")
    y = random.standard_normal(3 * CHUNK).astype("f4")
    ck.save({"x": x, "y": y, "tiny": np.arange(5)}, message="saved").result(60)
    return place


def chunk_files(place: Path) -> list[Path]:
    return sorted((place / "chunks").iterdir())


def read_all(ck: Any) -> None:
    """As the pager does, but here."""
    for _, _, store in ck._stores(ck.history()[0].id):
        store.read_into(0, memoryview(bytearray(store.size)))


def test_all_is_well(saved: Path, ck: Any) -> None:
    found = ck.verify()
    assert (found.arrays, found.chunks, found.damage) == (3, 8, [])
    assert found.nbytes == ck.history()[0].written
    read_all(ck)


@pytest.mark.parametrize("number", range(7))
def test_a_flipped_byte(saved: Path, ck: Any, number: int) -> None:
    file = chunk_files(saved)[number]
    data = bytearray(file.read_bytes())
    at = np.random.default_rng(number).integers(len(data))
    data[at] ^= 1 << (number % 8)
    file.write_bytes(data)
    damage = ck.verify().damage
    assert len(damage) == 1
    assert "checksum" in damage[0].problem
    assert damage[0].key[:4] in ("x/c/", "y/c/")
    with pytest.raises(refault.StoreError, match=r"is damaged.*checkpoints verify") as caught:
        read_all(ck)
    assert caught.value.permanent


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_chunk_that_was_cut_short(saved: Path, ck: Any, length: int) -> None:
    file = chunk_files(saved)[0]
    file.write_bytes(file.read_bytes()[:length])
    assert len(ck.verify().damage) == 1
    with pytest.raises(Exception, match=r"damaged|error"):
        read_all(ck)


def test_a_chunk_that_is_gone(saved: Path, ck: Any) -> None:
    chunk_files(saved)[0].unlink()
    assert len(ck.verify().damage) == 1
    with pytest.raises(Exception, match="No such file"):
        read_all(ck)


def test_a_manifest_that_is_damaged(saved: Path) -> None:
    """Whatever byte of the books is flipped, nothing is taken for right that is not."""
    expected = {}
    with refault.Checkpoints(saved) as ck:
        for name, _, store in ck._stores(ck.branches()["main"]):
            expected[name] = bytearray(store.size)
            store.read_into(0, memoryview(expected[name]))
    silent = 0
    books = [*(saved / "manifests").iterdir(), *(saved / "snapshots").iterdir()]
    for file in books:
        whole = file.read_bytes()
        for at in np.random.default_rng(0).choice(len(whole), min(25, len(whole)), replace=False):
            data = bytearray(whole)
            data[at] ^= 0x10
            file.write_bytes(data)
            try:
                with refault.Checkpoints(saved) as ck:
                    found = ck.verify()
                    if found.damage:
                        continue
                    for name, _, store in ck._stores(ck.branches()["main"]):
                        buffer = bytearray(store.size)
                        store.read_into(0, memoryview(buffer))
                        silent += buffer != expected[name]
            except refault.Error:
                continue
        file.write_bytes(whole)
    assert silent == 0


def test_a_chunk_that_the_manifest_has_lost(saved: Path, ck: Any) -> None:
    """For Zarr that is a chunk of zeros."""
    session = ck._repository.writable_session("main")
    zarr.open_array(session.store, path="x")[CHUNK : 2 * CHUNK] = 0  # zarr stores no zeros
    session.commit("by hand")
    assert [one.key for one in ck.verify().damage] == ["x/c/1"]
    with pytest.raises(refault.StoreError, match="x/c/1 is damaged: it is gone") as caught:
        read_all(ck)
    assert caught.value.permanent


def test_an_array_that_the_books_have_lost(saved: Path, ck: Any) -> None:
    said = ck._repository.lookup_snapshot(ck.branches()["main"])
    session = ck._repository.writable_session("main")
    del zarr.open_group(session.store)["tiny"]
    session.commit(said.message, said.metadata)
    assert ["not those that were saved" in one.problem for one in ck.verify().damage] == [True]
    with pytest.raises(refault.StoreError, match=r"x, y or what is said.*not those that were"):
        ck.load()


def test_of_another_program(saved: Path, ck: Any) -> None:
    session = ck._repository.writable_session("main")
    zarr.create_array(session.store, name="theirs", data=np.arange(10))
    session.commit("by hand")
    found = ck.verify()
    assert found.unchecked == ["theirs"]
    assert found.damage == []
    with pytest.raises(refault.UsageError, match=r"theirs was not stored by refault.*zarr.open"):
        ck.load()
    assert ck.history()[0].message == "by hand"
    assert ck.history()[0].written == 0


def run(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    assert cli.main(["checkpoints", *map(str, words)]) == status
    return capsys.readouterr().out


def test_command_line(saved: Path, ck: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ck.tag("v1")
    ck.save({"x": np.zeros(5), "new": np.arange(3)}, message="more", metadata={"a": 1}).result(60)
    first, second = (one.id for one in ck.history()[::-1])
    title, *lines = run(capsys, "list", saved).splitlines()
    assert title.split() == ["id", "time", "size", "written", "names", "message"]
    assert [line.split()[0] for line in lines] == [second, first]
    assert lines[0].split()[-2:] == ["main", "more"]
    assert lines[1].split()[-2:] == ["v1", "saved"]
    text = run(capsys, "show", saved, "v1")
    assert text.startswith(first)
    assert "tiny" in text
    assert "65536" in text
    assert '{"a": 1}' in run(capsys, "show", saved)
    text = run(capsys, "diff", saved, "v1", "main")
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [
        ["new", "added"],
        ["tiny", "removed"],
        ["x", "replaced"],
        ["y", "removed"],
    ]
    assert run(capsys, "diff", saved, "v1", "v1") == "no array differs\n"
    assert run(capsys, "verify", saved, "v1").startswith("all is well: 8 chunks of 3 arrays")


def test_json(saved: Path, ck: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = json.loads(run(capsys, "list", saved, "--json"))[0]
    assert one["message"] == "saved"
    assert one["names"] == ["main"]
    shown = json.loads(run(capsys, "show", saved, "main", "--json"))
    assert [array["name"] for array in shown["arrays"]] == ["tiny", "x", "y"]
    assert json.loads(run(capsys, "diff", saved, "main", "main", "--json")) == []
    assert json.loads(run(capsys, "verify", saved, "--json"))["ok"] is True


def test_verify_on_the_command_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chunk_files(saved)[3].write_bytes(b"nonsense")
    text = run(capsys, "verify", saved, status=1)
    assert text.startswith("DAMAGED: ")
    assert text.splitlines()[-1].startswith("1 damaged; read: 8 chunks")
    assert json.loads(run(capsys, "verify", saved, "--json", status=1))["ok"] is False


def test_nothing_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoints", "list", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.startswith("refault: ")
    assert not (tmp_path / "no").exists()


def test_without_rich(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rich = run(capsys, "show", saved)
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    plain = run(capsys, "show", saved)
    assert [line.split() for line in plain.splitlines()] == [
        line.split() for line in rich.splitlines()
    ]
    assert shutil.which("refault") is None or plain


def test_a_program_ends_after_icechunk_s_threads(tmp_path: Path) -> None:
    """One that comes for the GIL while the interpreter ends would abort the process."""
    code = """
        import ctypes, hashlib, sys, threading
        import refault
        import refault.checkpoints.checkpoints

        assert refault.Checkpoints(sys.argv[1])

        def work():
            # Runs without the GIL, under the name of a thread of Icechunk's runtime.
            ctypes.CDLL(None).prctl(15, b"tokio-runtime-w", 0, 0, 0)
            begun.set()
            hashlib.sha256(bytes(64 << 20))
            print("at rest", flush=True)

        begun = threading.Event()
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
    """
    out = run_child(code, timeout=60, args=[str(tmp_path / "ck")]).stdout
    assert out == "at rest\n"

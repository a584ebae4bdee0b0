from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refault.errors import StoreError, UsageError
from refault.stores.base import NowaitStore, Store
from refault.stores.objects import (
    MAX_PICKLED,
    ObjectStore,
    dump_object,
    import_path,
    load_object,
)
from refault.wire.messages import MAX_PACKET

MODULE = """
    class Numbers:
        def __init__(self, size, payload=None, step=1):
            self.size = size
            self.payload = payload
            self.step = step

        def read_into(self, offset, buffer):
            buffer[:] = bytes((offset + i) * self.step % 256 for i in range(len(buffer)))

    class NoSize:
        def read_into(self, offset, buffer):
            pass

    def double(x):
        return 2 * x
"""


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import importlib

    (tmp_path / "refault_test_numbers.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield importlib.import_module("refault_test_numbers")
    del sys.modules["refault_test_numbers"]


def python(code: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
        **options,
    )


class Base:
    name = "memory"
    size = 1000

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.data = bytearray(i % 256 for i in range(self.size))

    def read_into(self, offset: int, buffer: memoryview) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        buffer[:] = self.data[offset : offset + len(buffer)]
        return self.answer


class Writable(Base):
    def write_from(self, offset: int, buffer: memoryview) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        self.data[offset : offset + len(buffer)] = buffer
        return self.answer


def read(store: Store, offset: int, size: int) -> bytes:
    buffer = bytearray(b"\xee" * size)
    store.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_a_store_travels_to_another_process(numbers: Any, tmp_path: Path) -> None:
    pickled = dump_object(numbers.Numbers(4096, numbers.double))
    out = python(
        """
        import sys
        from refault.stores.objects import load_object
        store = load_object(bytes.fromhex(sys.argv[1]), [sys.argv[2]])
        buffer = bytearray(4)
        store.read_into(254, memoryview(buffer))
        assert sys.path[-1] == sys.argv[2]
        assert store.payload(4) == 8
        print(store.size, list(buffer))
        """,
        pickled.hex(),
        str(tmp_path),
    ).stdout
    assert out == "4096 [254, 255, 0, 1]\n"


def test_sys_path_is_appended_in_order_and_once(
    numbers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    pickled = dump_object(numbers.Numbers(1))
    load_object(pickled, ["/nowhere/2", str(tmp_path), "/nowhere/1", "/nowhere/2"])
    assert sys.path == [*before, "/nowhere/2", "/nowhere/1"]


def test_import_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "lib", "/abs"])
    assert import_path() == [str(tmp_path), str(tmp_path / "lib"), "/abs"]


def test_what_is_missing_in_the_pager_is_told(numbers: Any) -> None:
    pickled = dump_object(numbers.Numbers(1))
    out = python(
        """
        import sys
        from refault.errors import UsageError
        from refault.stores.objects import load_object
        try:
            load_object(bytes.fromhex(sys.argv[1]), [])
        except UsageError as error:
            print(error)
        """,
        pickled.hex(),
    ).stdout
    assert "ModuleNotFoundError" in out
    assert "refault_test_numbers" in out
    assert "module that can be imported" in out


@pytest.mark.parametrize("what", ["Numbers(1)", "m.Numbers(1, Numbers)", "m.Numbers(1, f)"])
def test_what_is_defined_in_main_is_refused(numbers: Any, tmp_path: Path, what: str) -> None:
    code = textwrap.dedent(MODULE) + textwrap.dedent("""
        def f(): pass
        import refault_test_numbers as m
        from refault.errors import UsageError
        from refault.stores.objects import dump_object
        try:
            dump_object(WHAT)
        except UsageError as error:
            print(error)
        """).replace("WHAT", what)
    path = os.pathsep.join([str(tmp_path), *import_path()])
    out = python(code, env={**os.environ, "PYTHONPATH": path}).stdout
    assert "defined in the program itself" in out
    assert "move it to a module that can be imported" in out


def test_what_is_defined_locally_is_refused(numbers: Any) -> None:
    class Local(numbers.Numbers):  # type: ignore[misc]
        pass

    for store in (Local(1), numbers.Numbers(1, lambda: 1), numbers.Numbers(1, [Local])):
        with pytest.raises(UsageError, match="inside a function; move it to a module"):
            dump_object(store)


def test_a_module_without_a_file_is_refused(numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.ModuleType("refault_test_made_up")
    exec(textwrap.dedent(MODULE), module.__dict__)
    monkeypatch.setitem(sys.modules, "refault_test_made_up", module)
    with pytest.raises(UsageError, match="not an importable module"):
        dump_object(module.Numbers(1))


def test_what_cannot_be_pickled_is_told(numbers: Any) -> None:
    import threading

    with pytest.raises(UsageError, match=r"cannot be pickled: TypeError.*__getstate__"):
        dump_object(numbers.Numbers(1, threading.Lock()))


def test_long_pickles_are_refused(numbers: Any) -> None:
    assert MAX_PICKLED + (16 << 10) <= MAX_PACKET
    with pytest.raises(UsageError, match="path or an address"):
        dump_object(numbers.Numbers(1, bytes(MAX_PICKLED)))
    dump_object(numbers.Numbers(1, bytes(MAX_PICKLED - 1000)))


def test_what_is_no_store_is_refused(numbers: Any) -> None:
    for thing, match in (
        (object(), "no method read_into"),
        (numbers.NoSize(), "asking its size failed"),
        (numbers.Numbers(-1), "its size is -1"),
        (numbers.Numbers(True), "its size is True"),
        (numbers.Numbers("4 GiB"), "its size is '4 GiB'"),
        (numbers.Numbers, "is a class"),
    ):
        with pytest.raises(UsageError, match=match):
            dump_object(thing)
        with pytest.raises(UsageError, match=match):
            ObjectStore(thing)
        with pytest.raises(UsageError, match=match):
            load_object(pickle.dumps(thing), [])


def test_an_object_is_read_and_written() -> None:
    inner = Writable()
    store = ObjectStore(inner)
    assert (store.name, store.size, store.writable) == ("memory", 1000, True)
    assert read(store, 10, 5) == bytes(range(10, 15))
    store.write_from(10, memoryview(b"hello"))
    assert read(store, 10, 5) == b"hello"
    store.flush()
    store.close()


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("kind", [ValueError, OSError, StoreError, SystemExit, KeyboardInterrupt])
def test_any_exception_becomes_a_store_error(kind: type[BaseException], permanent: bool) -> None:
    error: Any = kind("the moon is down")
    error.permanent = permanent
    store = ObjectStore(Writable(error))
    for call in (store.read_into, store.write_from):
        with pytest.raises(StoreError) as caught:
            call(123, memoryview(bytearray(10)))
        assert caught.value.permanent is permanent
        assert caught.value.__cause__ is error
        for part in ("memory", "offset 123", kind.__name__, "the moon is down", "; "):
            assert part in str(caught.value)


@pytest.mark.parametrize("permanent", [False, True])
def test_who_has_said_it_all_is_not_named_twice(permanent: bool) -> None:
    said = StoreError("memory: cannot read at 5: no; do this", permanent=permanent)
    with pytest.raises(StoreError) as caught:
        ObjectStore(Base(said)).read_into(123, memoryview(bytearray(10)))
    assert str(caught.value) == str(said)
    assert caught.value.permanent is permanent


def test_a_short_answer_is_refused() -> None:
    for answer in (9, 0, -1, 11):
        store = ObjectStore(Writable(answer))
        for call in (store.read_into, store.write_from):
            with pytest.raises(StoreError, match=f"returned {answer} instead of 10.*short answer"):
                call(0, memoryview(bytearray(10)))
    for fine in (None, 10):
        assert read(ObjectStore(Base(fine)), 0, 10) == bytes(range(10))
    for wrong in (True, False, b"x" * 10, 10.0):
        with pytest.raises(StoreError, match=f"returned {type(wrong).__name__}") as caught:
            read(ObjectStore(Base(wrong)), 0, 10)
        assert caught.value.permanent


def test_read_nowait_only_if_the_object_has_it() -> None:
    class Nowait(Base):
        def read_nowait(self, offset: int, buffer: memoryview) -> Any:
            if isinstance(self.answer, BaseException):
                raise self.answer
            buffer[:] = self.data[offset : offset + len(buffer)]
            return self.answer

    assert not isinstance(ObjectStore(Base()), NowaitStore)
    for answer, expected in (
        (True, True),
        (False, False),
        (None, False),
        (5, False),
        (OSError(), False),
    ):
        store = ObjectStore(Nowait(answer))
        assert isinstance(store, NowaitStore)
        buffer = bytearray(10)
        assert store.read_nowait(5, memoryview(buffer)) is expected
        assert not expected or buffer == bytes(range(5, 15))


def test_a_fetched_answer_has_its_length() -> None:
    class Fetching(Base):
        def fetch(self, offset: int, length: int) -> Any:
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

    assert not hasattr(ObjectStore(Base()), "fetch")
    for fine in (b"x" * 16, bytearray(16), memoryview(bytes(16)).cast("d"), [b"x" * 9, b"x" * 7]):
        assert sum(map(len, ObjectStore(Fetching(fine)).fetch(5, 16) or [])) == 16
    for wrong, length in ((b"x" * 15, 15), (b"x" * 17, 17), (b"", 0), ([b"x" * 9, b"x" * 6], 15)):
        with pytest.raises(StoreError, match=f"returned {length} instead of 16.*short answer"):
            ObjectStore(Fetching(wrong)).fetch(5, 16)
    for error in (OSError("no"), 16, "text"):
        with pytest.raises(StoreError, match="memory: cannot read at offset 5"):
            ObjectStore(Fetching(error)).fetch(5, 16)
    assert ObjectStore(Fetching(None)).fetch(5, 16) is None  # `read_into` is to be asked


def test_an_error_that_says_it_all_is_passed_on() -> None:
    for permanent in (True, False):
        error = StoreError("memory: is full; empty it", permanent=permanent)
        with pytest.raises(StoreError) as caught:
            read(ObjectStore(Base(error)), 0, 10)
        assert str(caught.value) == str(error)
        assert caught.value.permanent is permanent


def test_writable_is_what_the_object_says() -> None:
    assert not ObjectStore(Base()).writable
    inner = Writable()
    inner.writable = False  # type: ignore[attr-defined]
    for store in (ObjectStore(Base()), ObjectStore(inner)):
        with pytest.raises(StoreError, match="no write_from") as caught:
            store.write_from(0, memoryview(b"x"))
        assert caught.value.permanent


def test_flush_and_close_fail_as_store_errors() -> None:
    class Broken(Writable):
        def flush(self) -> None:
            raise OSError("no ink")

        close = flush

    store = ObjectStore(Broken())
    with pytest.raises(StoreError, match="memory: cannot make changes durable: OSError: no ink"):
        store.flush()
    with pytest.raises(StoreError, match="memory: cannot be closed"):
        store.close()


def test_buffers_may_not_be_kept() -> None:
    class Keeper(Writable):
        kept: Any = None

        def read_into(self, offset: int, buffer: memoryview) -> None:
            super().read_into(offset, buffer)
            self.kept = buffer

        def write_from(self, offset: int, buffer: memoryview) -> None:
            self.kept = buffer

    class Exporter(Base):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            super().read_into(offset, buffer)
            self.kept = pickle.PickleBuffer(buffer)

    inner = Keeper()
    store = ObjectStore(inner)
    read(store, 0, 10)
    with pytest.raises(ValueError, match="released"):
        inner.kept[0] = 1
    buffer = bytearray(b"hello")
    store.write_from(0, memoryview(buffer))
    buffer[:] = b"other"
    assert bytes(inner.kept) == b"hello"
    with pytest.raises(StoreError, match="kept a reference"):
        read(ObjectStore(Exporter()), 0, 10)

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import refault
from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = needs_userfaultfd


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> str:
    np.save(tmp_path / "x.npy", np.arange(100_000.0).reshape(100, 1000))
    np.save(tmp_path / "f.npy", np.asfortranarray(np.arange(6).reshape(2, 3)))
    (tmp_path / "raw.bin").write_bytes(np.arange(50_000, dtype="u2").tobytes())
    return str(tmp_path)


def test_files_are_what_numpy_reads(folder: str) -> None:
    def child(folder: str) -> None:
        import numpy as np

        import refault

        for name in ("x.npy", "f.npy"):
            x = refault.open(f"{folder}/{name}", resident="256KiB")
            expected = np.load(f"{folder}/{name}")
            assert (x.dtype, x.shape, x.strides) == (
                expected.dtype,
                expected.shape,
                expected.strides,
            )
            assert not x.flags.writeable
            np.testing.assert_array_equal(x, expected)
        raw = f"{folder}/raw.bin"
        for parameters in (
            {},
            {"dtype": "u2"},
            {"dtype": "u2", "offset": 5001, "shape": (7, 3)},
            {"dtype": ">i4", "offset": 4098, "shape": (100, 20), "order": "F"},
        ):
            for mode in ("r", "c", "r+"):
                x = refault.open(raw, mode, **parameters)
                y = np.memmap(raw, mode=mode, **parameters)
                assert (x.dtype, x.shape, x.strides) == (y.dtype, y.shape, y.strides)
                assert x.flags.writeable == y.flags.writeable
                np.testing.assert_array_equal(x, y)

    run_child(child, timeout=30, args=[folder])


def test_modes_write_where_they_should(folder: str) -> None:
    def child(folder: str) -> None:
        import os

        import numpy as np

        import refault

        path = f"{folder}/raw.bin"
        c = refault.open(path, "c", dtype="u2")
        c[3] = 99
        assert np.fromfile(path, "u2")[3] == 3 and c[3] == 99
        x = refault.open(path, "r+", dtype="u2", shape=60_000)
        assert os.path.getsize(path) == 120_000
        x[3] = 77
        x[-1] = 5
        refault.region(x).flush()
        assert np.fromfile(path, "u2")[[3, -1]].tolist() == [77, 5]
        x[4] = 78
        try:
            refault.open(path, "w+", shape=10)
        except refault.UsageError as error:
            assert "close its region" in str(error)
        else:
            raise AssertionError
        del x, c
        assert np.fromfile(path, "u2")[4] == 78, "written when the last array went"
        y = refault.open(path, "w+", shape=(4, 5), dtype="f4", offset=3)
        assert os.path.getsize(path) == 83 and not y.any()
        z = refault.open(f"{folder}/new.npy", "w+", shape=(4, 5), dtype="f4", order="F")
        z[:] = np.arange(20).reshape(4, 5)

    run_child(child, timeout=30, args=[folder])
    z = np.load(folder + "/new.npy")
    assert z.flags.f_contiguous
    assert z.ravel().tolist() == list(range(20))


def test_memory_without_a_file() -> None:
    def child() -> None:
        import numpy as np

        import refault

        x = refault.zeros((1 << 32,), "f4", resident="1MiB")
        x[5] = x[-1] = 7
        assert refault.region(x).nbytes == 1 << 34
        assert x[[0, 5, 6, -2, -1]].tolist() == [0, 7, 0, 0, 7]
        for value, dtype in (
            (1, None),
            (2.5, "f4"),
            ("abc", None),
            (np.datetime64("2020-01-01"), None),
            (7, "i2"),
            (0, None),
            (np.array((1, 2.5), [("a", "i1"), ("b", "f4")]), None),
        ):
            x = refault.full((3, 1000), value, dtype, "F")
            y = np.full((3, 1000), value, dtype, "F")
            assert (x.dtype, x.strides) == (y.dtype, y.strides), (x.dtype, y.dtype)
            assert (x == y).all(), value
        assert not refault.empty((10, 10)).any()
        assert refault.zeros(3, "S").dtype == np.zeros(3, "S").dtype

    run_child(child, timeout=30)


def test_arrays_without_elements(folder: str) -> None:
    def child(folder: str) -> None:
        import gc
        import os

        import refault

        for x in (
            refault.zeros((0, 3)),
            refault.full(0, 7),
            refault.open(f"{folder}/none.bin", "w+", shape=(3, 0), dtype="i4"),
            refault.open(f"{folder}/none.bin"),
            refault.open(f"{folder}/none.npy", "w+", shape=(0, 2), dtype="i4"),
        ):
            region = refault.region(x)
            assert x.size == 0 and region.array.shape == x.shape and region.nbytes == 0
            region.populate()
            region.flush()
            assert region.prefetch() == region.evict() == region.page_size == 0
            with region.pin():
                pass
            assert region.statistics().faults == 0
        del x
        gc.collect()
        region.close()
        assert region.closed
        assert not any("pager" in name for name in os.listdir("/proc/self/task"))

    run_child(child, timeout=30, args=[folder])


def test_what_keeps_the_memory_alive() -> None:
    def child() -> None:
        import gc

        import numpy as np

        import refault

        def mapped() -> int:
            with open("/proc/self/maps") as maps:
                return sum("memfd:" in line for line in maps)

        views = [
            lambda x: x,
            lambda x: x[3:7],
            lambda x: x[::-2, 1:].T,
            lambda x: x.reshape(-1)[5:],
            lambda x: x.view("u1"),
            np.asarray,
            memoryview,
            lambda x: memoryview(x[2:])[1:],
            lambda x: np.frombuffer(x, "u4"),
            lambda x: np.lib.stride_tricks.sliding_window_view(x, 3, axis=0),
            lambda x: x[4, ...],
            lambda x: x[4, 4:5].reshape(()),
            lambda x: np.broadcast_to(x, (2, *x.shape)),
        ]
        for view in [*views, refault.region]:
            x = refault.full((100, 50), 7, "i8")
            region = refault.region(x)
            kept = view(x)
            if view is not refault.region:
                assert refault.region(kept) is region
            del x, region
            gc.collect()
            assert mapped() == 1
            array = kept.array if view is refault.region else np.asarray(kept)
            assert 7 in array
            del kept, array
            gc.collect()
            assert mapped() == 0

    run_child(child, timeout=30)


def test_close() -> None:
    def child() -> None:
        import refault

        x = refault.zeros((1000, 1000))
        region = refault.region(x)
        view = x[5:]
        del x
        try:
            region.close()
        except refault.UsageError as error:
            assert "del x" in str(error)
        else:
            raise AssertionError
        assert not region.closed and view[0, 0] == 0
        del view
        pin = region.pin(slice(0, 10))
        try:
            region.close()
        except refault.UsageError:
            pin.release()
        assert pin.released
        with region as same:
            assert same is region
        region.close()
        assert region.closed and "closed" in repr(region)
        for call in (
            lambda: region.array,
            region.populate,
            region.pin,
            region.evict,
            region.flush,
            region.prefetch,
            region.statistics,
            region.__enter__,
        ):
            try:
                call()
            except refault.UsageError as error:
                assert "open the array again" in str(error)
            else:
                raise AssertionError(call)
        x = refault.zeros(10)
        try:
            with refault.region(x):
                raise KeyError("seen")
        except KeyError:
            pass

    run_child(child, timeout=30)


def test_requests_and_statistics(folder: str) -> None:
    def child(folder: str) -> None:
        import numpy as np

        import refault

        x = refault.open(f"{folder}/x.npy", "c", resident="512KiB", page_size="4KiB")
        region = refault.region(x)
        assert (region.page_size, region.mode, region.nbytes) == (4096, "c", 800_000)
        region.populate(slice(0, 10))
        before = region.statistics()
        assert x[:10].sum() == np.arange(10_000.0).sum()
        after = region.statistics()
        assert after.faults == before.faults
        assert 80_000 <= after.resident <= after.budget == 512 << 10
        assert after.page_size == 4096 and after.retries >= 0
        assert 72_000 < region.evict(x[:10]) <= 90_000
        region.populate((5, slice(3, 9)), write=True)
        assert region.statistics().dirty >= 4096
        assert region.prefetch(slice(50, 52)) > 0
        with region.pin((slice(None, 5), 3)):
            region.evict()
            assert region.statistics().pinned >= 32_000
        region.flush()
        assert region.prefetch(slice(5, 5)) == 0
        for where in (np.zeros(3), refault.zeros(5)):
            try:
                region.populate(where)
            except refault.UsageError as error:
                assert "does not lie in" in str(error)
            else:
                raise AssertionError
        r = refault.open(f"{folder}/x.npy")
        for call in (refault.region(r).populate, refault.region(r).pin):
            try:
                call(write=True)
            except refault.UsageError as error:
                assert "read-only" in str(error)
            else:
                raise AssertionError

    run_child(child, timeout=30, args=[folder])


def test_stores(folder: str) -> None:
    store = """
        class FileObject:
            def __init__(self, path):
                self.name = path.rpartition("/")[2].partition(".")[0]
                self.path = path
                with open(path, "rb") as file:
                    self.size = len(file.read())

            def read_into(self, offset, buffer):
                with open(self.path, "rb") as file:
                    file.seek(offset)
                    assert file.readinto(buffer) == len(buffer)


        class Writable(FileObject):
            def write_from(self, offset, buffer):
                with open(self.path, "r+b") as file:
                    file.seek(offset)
                    file.write(buffer)

            def flush(self):
                pass


        class Broken:
            size = 10

            def read_into(self, offset, buffer):
                from refault import StoreError

                raise StoreError("the disk is on fire", permanent=True)
    """

    def child(folder: str) -> None:
        import numpy as np
        import own_stores

        import refault

        x = refault.open(own_stores.FileObject(f"{folder}/x.npy"))
        np.testing.assert_array_equal(x, np.load(f"{folder}/x.npy"))
        raw = np.fromfile(f"{folder}/raw.bin", "u2")
        y = refault.open(own_stores.FileObject(f"{folder}/raw.bin"), dtype="u2", offset=6)
        np.testing.assert_array_equal(y, raw[3:])
        assert refault.open(own_stores.FileObject(f"{folder}/raw.bin"), "c").dtype == "u1"
        w = refault.open(own_stores.Writable(f"{folder}/raw.bin"), "r+", dtype="u2")
        w[8] = 4711
        refault.region(w).flush()
        assert np.fromfile(f"{folder}/raw.bin", "u2")[8] == 4711
        for store, mode, text in (
            (own_stores.FileObject(f"{folder}/raw.bin"), "r+", "no write_from"),
            (own_stores.Writable(f"{folder}/raw.bin"), "w+", "created anew"),
        ):
            try:
                refault.open(store, mode)
            except refault.UsageError as error:
                assert text in str(error)
            else:
                raise AssertionError
        try:
            refault.open(own_stores.Broken())
        except refault.StoreError as error:
            assert "the disk is on fire" in str(error) and error.permanent
        else:
            raise AssertionError

    run_child(child, timeout=30, args=[folder], files={"own_stores.py": store})


@pytest.mark.parametrize("array", [np.zeros(3), [1, 2, 3], 7, memoryview(b"abc"), object()])
def test_arrays_of_others(array: Any) -> None:
    with pytest.raises(refault.UsageError, match="give what refault"):
        refault.region(array)

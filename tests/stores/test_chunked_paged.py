"""Arrays in chunks, paged: what numpy says, sequentially and at random, and after changes."""

from __future__ import annotations

import json
import pathlib

import pytest

from helpers.child import Result, run_child
from helpers.child_tools import ENVIRONMENT
from helpers.chunked import KINDS
from helpers.s3_server import S3
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left"),
]

SIGBUS = 7


def run(code: object, *args: object, expect: int = 0) -> Result:
    assert callable(code)
    return run_child(
        code, timeout=60, args=[str(one) for one in args], env=ENVIRONMENT, expect=expect
    )


def paged(folder: str, kind: str) -> None:
    import pathlib

    import numpy as np

    import refault
    from helpers.chunked import load, numbers, save

    for number, (shape, chunks, dtype) in enumerate(
        [
            ((1000, 700), (64, 700), "<f4"),
            ((1000, 700), (170, 130), "<i4"),
            ((60, 90, 110), (25, 40, 33), ">f8"),
            ((700_001,), (50_000,), "S3"),
        ]
    ):
        place = pathlib.Path(folder, str(number))
        place.mkdir()
        path, key = save(kind, place, numbers(shape, dtype), chunks)
        right = load(path, key)
        x = refault.open(path, key=key, resident="512KiB", page_size="16KiB")
        assert (x.shape, x.dtype) == (shape, right.dtype)
        assert x.flags.c_contiguous and not x.flags.writeable
        assert np.array_equal(x, right)
        chance = np.random.default_rng(number)
        where = tuple(chance.integers(0, length, 500) for length in shape)
        assert np.array_equal(x[where], right[where])
        seen = refault.region(x).statistics()
        assert seen.peak_resident <= 512 << 10 < x.nbytes
        f = refault.open(path, key=key, order="F", resident="512KiB")
        assert f.flags.f_contiguous and np.array_equal(f.T, np.ascontiguousarray(right.T))
        private = refault.open(path, key=key, mode="c", resident="512KiB")
        private[shape[0] // 2 :] = private[0]
        assert np.array_equal(private[-1], right[0])
        del x, f, private


@pytest.mark.parametrize("kind", KINDS)
def test_paged_is_the_same(tmp_path: pathlib.Path, kind: str) -> None:
    run(paged, tmp_path, kind)


def changed(folder: str, kind: str) -> None:
    import pathlib

    import numpy as np

    import refault
    from helpers.chunked import load, numbers, save

    for order in "CF":
        place = pathlib.Path(folder, order)
        place.mkdir()
        path, key = save(kind, place, numbers((200, 300), "<i4"), (70, 130))
        right = load(path, key)
        x = refault.open(path, "r+", key=key, order=order, resident="128KiB", page_size="16KiB")
        for where in (np.s_[40:50], np.s_[:, 7], np.s_[199, 299], np.s_[60:180:3, 100:290:7]):
            x[where] = right[where] = right[where] * 2 + 1
        assert np.array_equal(x, right)
        region = refault.region(x)
        region.flush()
        assert region.statistics().store_writes
        if kind.startswith("hdf5"):
            # Nobody else may read it now.
            x[0, 0] = right[0, 0] = 77
            del x
            region.close()
        assert np.array_equal(load(path, key), right)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_what_the_library_reads(tmp_path: pathlib.Path, kind: str) -> None:
    run(changed, tmp_path, kind)


def objects(folder: str) -> None:
    import pathlib

    import blosc2
    import h5py
    import numpy as np
    import zarr

    import refault
    from helpers.chunked import numbers, save

    right = numbers((50, 60), "<f8")
    place = pathlib.Path(folder)
    h5 = save("hdf5", place, right, (20, 20))
    with h5py.File(h5[0]) as file:
        for thing, key in ((file["/some/numbers"], None), (file, "some/numbers"), (file, None)):
            assert np.array_equal(refault.open(thing, key=key), right)
        assert np.array_equal(refault.open(file["some"], key="numbers"), right)
    with h5py.File(place / "odd.h5", "w") as file:
        offset, number = 0, 0
        while offset % 8 == 0:
            # What is compressed ends somewhere.
            number += 1
            noise = np.random.default_rng(number).integers(0, 99, 1000 + number, "u1")
            name = f"noise{number}"
            file.create_dataset(name, data=noise, chunks=noise.shape, compression="gzip")
            file[f"f{number}"] = right
            offset = file[f"f{number}"].id.get_offset()
        file["aligned"] = right.astype("u1")
        file["unaligned"] = file[f"f{number}"]
    for name, mapped in (("aligned", True), ("unaligned", False)):
        # Without chunks it is the file that is mapped, if numbers are where C wants them.
        x = refault.open(place / "odd.h5", key=name)
        assert x.flags.aligned and np.array_equal(x, right.astype(x.dtype))
        assert ("/unaligned" in repr(refault.region(x))) is not mapped
    zarr_path, _ = save("zarr3", place, right, (20, 20))
    array = zarr.open_array(zarr_path, mode="r")
    assert np.array_equal(refault.open(array), right)
    x = refault.open(array, "r+")
    x[3] = 5
    refault.region(x).flush()
    assert (array[3] == 5).all()
    group = zarr.create_group(place / "group.zarr")
    for name in ("a", "deep/b"):
        group.create_array(name, shape=(50, 60), dtype="f8", chunks=(20, 20))[...] = right
        assert np.array_equal(refault.open(group, key=name), right)
        assert np.array_equal(refault.open(place / "group.zarr", key=f"/{name}"), right)
        assert np.array_equal(refault.open(f"{folder}/group.zarr/{name}"), right)
    with zarr.storage.ZipStore(place / "x.zarr.zip", mode="w") as store:
        zarr.create_array(store, data=right, chunks=(20, 20))
    assert np.array_equal(
        refault.open(zarr.open_array(zarr.storage.ZipStore(place / "x.zarr.zip", mode="r"))), right
    )
    path, _ = save("blosc2", place, right, (20, 20))
    assert np.array_equal(refault.open(blosc2.open(path, mode="r")), right)
    # Arrays of few elements, and of none.
    for kind in ("zarr2", "zarr3", "hdf5", "blosc2"):
        for shape in ((), (0,), (3, 0), (1, 1)):
            small = place / f"{kind}{shape}"
            small.mkdir()
            path, key = save(kind, small, numbers(shape, "<i2"), tuple(1 for _ in shape))
            for order in "CF":
                x = refault.open(path, key=key, order=order)
                assert x.shape == shape and np.array_equal(x, numbers(shape, "<i2")), (kind, shape)


def test_objects_of_the_libraries(tmp_path: pathlib.Path) -> None:
    run(objects, tmp_path)


def icechunk(folder: str) -> None:
    import icechunk
    import numpy as np
    import pytest
    import zarr

    import refault
    from helpers.chunked import numbers
    from refault.stores.chunked import ChunkedStore, find

    right = numbers((300, 400), "<f4")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(folder))
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    group.create_array("weights", shape=right.shape, dtype="f4", chunks=(64, 64))[...] = right
    with pytest.raises(refault.UsageError, match=r"commit, and open it from .*readonly_session"):
        refault.open(group["weights"])
    with pytest.raises(refault.UsageError, match="cannot be written to by two processes"):
        refault.open(group["weights"], "r+")
    session.commit("first")
    frozen = zarr.open_group(repository.readonly_session("main").store, mode="r")
    x = refault.open(frozen["weights"], resident="128KiB", page_size="16KiB")
    later = repository.writable_session("main")
    zarr.open_group(later.store)["weights"][...] = 0
    later.commit("second")
    # Still the one that was opened.
    assert np.array_equal(x, right)
    place = find(frozen["weights"])
    assert ChunkedStore(place, writable=False).version == frozen.store.session.snapshot_id
    newest = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert not refault.open(newest, key="weights").any()


def test_inside_icechunk(tmp_path: pathlib.Path) -> None:
    run(icechunk, tmp_path)


def damaged(folder: str, kind: str, how: str) -> None:
    import os
    import pathlib
    import re

    import numpy as np

    import refault
    from helpers.chunked import save

    place = pathlib.Path(folder)
    steps = np.random.default_rng(1).integers(-3, 4, (512, 512))
    right = np.cumsum(steps, axis=1).astype("f4")
    path, key = save(kind, place, right, (64, 512))
    files = [one for one in place.rglob("*") if one.is_file()]
    # The last chunk of Zarr; somewhere in the middle of a file that has all of them.
    file = next((one for one in files if re.search(r"\b7[./]0$", str(one))), files[0])
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = os.urandom(64)
    file.write_bytes(content)
    x = refault.open(path, key=key, page_size="128KiB", readahead=False)
    region = refault.region(x)
    wrong = 0
    for row in range(0, 512, 64):
        try:
            region.populate(slice(row, row + 64))
        except refault.StoreError as error:
            assert os.path.basename(path) in str(error) and f"[{row}, 0]" in str(error), error
            assert error.permanent
            wrong += 1
            bad = row
        else:
            assert np.array_equal(x[row : row + 64], right[row : row + 64])
    assert wrong == 1, wrong
    if how == "touch":
        print("touching", flush=True)
        print(x[bad])


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "hdf5", "blosc2"])
def test_a_damaged_chunk_is_an_error(tmp_path: pathlib.Path, kind: str) -> None:
    run(damaged, tmp_path, kind, "populate")


def test_who_touches_a_damaged_chunk_dies_and_learns_why(tmp_path: pathlib.Path) -> None:
    done = run(damaged, tmp_path, "zarr3", "touch", expect=-SIGBUS)
    assert done.stdout == "touching\n"
    assert "cannot read its elements from [448, 0] on" in done.stderr


def missing(folder: str) -> None:
    import shutil

    import numpy as np
    import pytest
    import zarr

    import refault

    array = zarr.create_array(
        f"{folder}/sparse.zarr", shape=(512, 512), dtype="f4", chunks=(64, 512), fill_value=2.5
    )
    array[100] = 7
    right = array[...]
    x = refault.open(array, page_size="64KiB", readahead=False, chunk_cache=1)
    region = refault.region(x)
    assert np.array_equal(x, right) and (x[:64] == 2.5).all()
    # A chunk that is not there has the fill value.  An array that is not there has none.
    region.evict()
    shutil.rmtree(f"{folder}/sparse.zarr")
    with pytest.raises(refault.StoreError, match=r"sparse.zarr.*see whether it is still there"):
        region.populate(slice(256, 320))
    zarr.create_array(f"{folder}/sparse.zarr", shape=(9, 9), dtype="f4", chunks=(4, 4))
    with pytest.raises(refault.StoreError, match="has become another array"):
        region.populate(slice(384, 448))


def test_missing_chunks_and_missing_arrays(tmp_path: pathlib.Path) -> None:
    run(missing, tmp_path)


def replaced(folder: str, kind: str) -> None:
    import pathlib

    import numpy as np
    import pytest

    import refault
    from helpers.chunked import numbers, save

    place = pathlib.Path(folder)
    array = numbers((512, 512), "<f4")
    path, key = save(kind, place, array, (64, 512))
    x = refault.open(path, key=key, readahead=False)
    assert np.array_equal(x[:64], array[:64])
    other = pathlib.Path(folder, "other")
    other.mkdir()
    changed, _ = save(kind, other, array * 2, (64, 512))
    pathlib.Path(changed).replace(path)
    with pytest.raises(refault.StoreError, match="was changed while it is open for reading"):
        refault.region(x).populate()


@pytest.mark.parametrize("kind", ["hdf5", "blosc2"])
def test_a_file_that_changes_is_an_error(tmp_path: pathlib.Path, kind: str) -> None:
    run(replaced, tmp_path, kind)


STORE = """
    import numpy as np


    class Table:
        name = "table"
        dtype = ">i4"
        shape = (300, 200)
        order = "F"
        size = 4 * 300 * 200

        def read_into(self, offset, buffer):
            values = np.arange(300 * 200, dtype=self.dtype).tobytes()
            buffer[:] = values[offset : offset + len(buffer)]
"""


def declared() -> None:
    import numpy as np
    import pytest
    import table_of_the_test

    import refault

    store = table_of_the_test.Table()
    right = np.arange(300 * 200, dtype=">i4").reshape((300, 200), order="F")
    x = refault.open(store, resident="64KiB")
    assert (x.dtype, x.shape, x.flags.f_contiguous) == (right.dtype, right.shape, True)
    assert np.array_equal(x, right)
    assert np.array_equal(refault.open(store, dtype=">i4", shape=(300, 200), order="F"), right)
    for wrong in ({"dtype": "<i4"}, {"shape": (200, 300)}):
        with pytest.raises(refault.UsageError, match="but the store says"):
            refault.open(store, **wrong)
    with pytest.raises(refault.UsageError, match="leave offset out"):
        refault.open(store, offset=4)
    store.size -= 1
    with pytest.raises(refault.UsageError, match="has 239999 bytes, and the array needs 240000"):
        refault.open(store)


def test_a_store_may_say_what_array_it_holds() -> None:
    run_child(declared, timeout=60, files={"table_of_the_test.py": STORE})


PARTS = """
import numpy as np

LENGTH = 6_000_000

class Parts:
    size = LENGTH

    def fetch(self, offset, length):
        content = memoryview(np.arange(LENGTH // 4, dtype="u4")).cast("B")
        bounds = sorted({offset, offset + length} | {
            at for at in range(0, LENGTH, 700_000) if offset < at < offset + length
        })
        return [content[low:high] for low, high in zip(bounds, bounds[1:])]

    def read_into(self, offset, buffer):
        raise NotImplementedError
"""


def in_parts() -> None:
    import numpy as np
    from parts_of_the_test import LENGTH, Parts

    import refault

    right = np.arange(LENGTH // 4, dtype="u4")
    x = refault.open(Parts(), dtype="u4", resident="5MiB", page_size="64KiB")
    assert np.array_equal(x, right)
    seen = refault.region(x).statistics()
    assert seen.bytes_read > (256 << 10) * seen.store_reads  # more than is written at a time
    # And with gaps between the units: what is near each other is one read.
    y = refault.open(Parts(), dtype="u4", page_size="16KiB")
    region = refault.region(y)
    region.prefetch([(at, at + 16384) for at in range(0, LENGTH - 16384, 2 * 16384)])
    region.wait_for_prefetch()
    assert np.array_equal(y, right)


def test_what_is_fetched_in_parts() -> None:
    run_child(in_parts, timeout=60, files={"parts_of_the_test.py": PARTS})


BUSY = """
class Busy:
    size = 16 << 20

    def __init__(self, **wishes):
        self.__dict__.update(wishes)

    def read_into(self, offset, buffer):
        buffer[:] = b"x" * len(buffer)
"""


def ahead() -> None:
    import time

    from busy_of_the_test import Busy

    import refault

    def read_ahead(*touches: int, **wishes: int) -> int:
        x = refault.open(Busy(**wishes), dtype="u1", page_size="64KiB")
        for page in touches:
            assert x[page << 16] == ord("x")
        region = refault.region(x)
        while not (found := region.statistics().readahead):
            time.sleep(0.01)
        assert isinstance(found, int)
        return found

    # One touch is no sequence of what is near; three are, and then 256 KiB are asked for.
    assert read_ahead(0, 1, 2) == read_ahead(0, 1, 2, parallel=2) == 4
    assert read_ahead(0, 1, 2, read_bytes=1 << 20) == 4
    assert read_ahead(0, parallel=32, read_bytes=2 << 20) == 63  # to the end of a read
    assert read_ahead(0, ahead_bytes=32 << 20) == 31
    assert read_ahead(0, ahead_bytes=32 << 20, parallel=32, read_bytes=2 << 20) == 31


def test_how_much_a_store_is_asked_for_ahead() -> None:
    run_child(ahead, timeout=60, files={"busy_of_the_test.py": BUSY})


def filters(folder: str) -> None:
    import subprocess
    import sys

    import h5py
    import numpy as np
    import pytest

    import refault

    # Written by somebody else: here nobody has imported hdf5plugin.
    writer = (
        "import h5py, hdf5plugin, numpy, sys\n"
        "with h5py.File(sys.argv[1], 'w') as file:\n"
        "    file.create_dataset('a', data=numpy.arange(90000.0).reshape(300, 300),"
        " chunks=(100, 100), **hdf5plugin.Zstd())\n"
    )
    path = folder + "/encoded.h5"
    subprocess.run([sys.executable, "-c", writer, path], check=True)
    sys.modules["hdf5plugin"] = None
    with pytest.raises(refault.UsageError, match=r"zstd filter \(32015\).*pip install hdf5plugin"):
        refault.open(path, key="a")
    del sys.modules["hdf5plugin"]
    assert not h5py.h5z.filter_avail(32015)
    x = refault.open(path, key="a", resident="128KiB", page_size="16KiB")
    assert np.array_equal(x, np.arange(90000.0).reshape(300, 300))


def test_filters_that_are_not_of_hdf5_itself(tmp_path: pathlib.Path) -> None:
    run(filters, tmp_path)


def in_s3(options: str) -> None:
    import json

    import numpy as np
    import zarr
    from obstore.store import S3Store

    import refault
    from helpers.chunked import numbers

    right = numbers((300, 400), "<f4")
    storage_options = json.loads(options)
    bucket = S3Store("bucket", client_options={"allow_http": True}, **storage_options)
    store = zarr.storage.ObjectStore(bucket)
    group = zarr.create_group(store, path="far.zarr")
    array = group.create_array("a", shape=right.shape, dtype="f4", chunks=(64, 64), fill_value=9)
    array[:200] = right[:200]
    right[200:] = 9
    for thing, key in (
        ("s3://bucket/far.zarr/a", None),
        ("s3://bucket/far.zarr", "a"),
    ):
        x = refault.open(thing, key=key, storage_options=storage_options, resident="128KiB")
        assert np.array_equal(x, right)
    x = refault.open(array, "r+", resident="128KiB")
    assert refault.region(x) and "s3://bucket/far.zarr/a" in repr(refault.region(x))
    x[100:250] = right[100:250] = right[100:250] * 2
    refault.region(x).flush()
    assert np.array_equal(array[...], right)


def test_zarr_in_s3(s3: S3) -> None:
    run(in_s3, json.dumps(s3.options))

"""Handles: pickled small, opened elsewhere, refused where bytes would be lost or others."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest

from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.object_server import object_server
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left"),
]


def run(code: object, *args: object) -> None:
    assert callable(code)
    run_child(code, timeout=30, args=[str(one) for one in args], env=ENVIRONMENT)


def views(folder: str) -> None:
    import os
    import pickle

    import numpy as np

    import refault
    from helpers import child_tools

    right = np.arange(24.0).reshape(4, 6)
    np.save(folder + "/c.npy", right)
    np.save(folder + "/f.npy", np.asfortranarray(right))
    right.tofile(folder + "/raw")
    os.chdir(folder)
    record = np.dtype([("a", "u1"), ("b", "<f4", (2,))])
    store = child_tools.Plain(9000)
    arrays = [
        refault.open("c.npy"),
        refault.open("f.npy", "c", resident="1MiB"),
        refault.open("raw", dtype=">i4", offset=8, shape=(2, 3, 4), order="F"),
        refault.open("raw", dtype="u1", offset=192),
        refault.open("raw", dtype=record, shape=7),
        refault.open(store, dtype="i2", offset=1, shape=(50, 50)),
        refault.open(store, dtype="f8", shape=()),
        refault.open(store),
        refault.open("new.npy", "w+", dtype="f4", shape=(3, 5)),
        refault.open("new", "w+", shape=3, order="F"),
    ]
    arrays[-2][:] = np.arange(15).reshape(3, 5)
    os.chdir("/")
    for x in arrays:
        parts = [x, x.T, x[...], x.view(np.ndarray)]
        if x.ndim:
            parts += [x[::-1], x[1:], x[:0], x[-1:], x[::2, ...]]
        if x.ndim == 2:
            parts += [x[1:3, ::-2], x[2], x[1:2].view("u1")] if x.flags.c_contiguous else []
        for part in parts:
            handle = refault.handle(part)
            pickled = pickle.dumps(handle)
            assert len(pickled) < 600, len(pickled)
            mode = "r" if handle.mode == "r+" else None
            found = pickle.loads(pickled).open(mode=mode)
            assert found.dtype == part.dtype and found.shape == part.shape, handle
            assert found.strides == part.strides or not part.size, handle
            assert found.tobytes() == part.tobytes(), handle
            assert refault.region(found) is not refault.region(x)
    part = refault.handle(arrays[0][1:3, ::-2])
    assert refault.open(part, resident="1MiB").tobytes() == right[1:3, ::-2].tobytes()
    whole = refault.region(arrays[0]).handle
    assert repr(whole) == f"<refault.Handle '{folder}/c.npy' mode='r' float64[4, 6]>"
    assert refault.region(whole.open(resident="1MiB")).statistics().budget == 1 << 20
    assert refault.region(arrays[-1]).handle.mode == "r+"
    assert refault.region(refault.region(arrays[-1]).handle.open()).mode == "r+"
    assert refault.region(refault.open(refault.handle(arrays[-1]))).mode == "r+"
    assert refault.region(refault.open(refault.handle(arrays[-1]), "r")).mode == "r"


def test_views(tmp_path: pathlib.Path) -> None:
    run(views, tmp_path)


def refused(folder: str) -> None:
    import numpy as np

    import refault
    from helpers import child_tools

    def fails(kind, text, call, *args, **more):
        try:
            call(*args, **more)
        except kind as error:
            assert text in str(error), error
        else:
            raise AssertionError(text)

    unit = 4096
    path = folder + "/raw"
    np.arange(4 * unit, dtype="u1").tofile(path)

    # What another process could not open.
    zeros = refault.zeros(10)
    fails(refault.UsageError, "numpy.save", refault.handle, zeros)
    with refault.snapshot(zeros) as snap:
        fails(refault.UsageError, "numpy.save", refault.handle, snap[zeros])
    fails(refault.UsageError, "does not lie in memory", refault.handle, np.zeros(3))

    # Changes that it could not see.
    x = refault.open(path, "c")
    kept = refault.handle(x)
    x[3] = 77
    fails(refault.UsageError, "changes of its own", refault.handle, x)
    assert kept.open()[3] == 3
    del x

    # Pages that it would share with somebody who writes.
    x = refault.open(path, "r+", page_size=unit)
    for good in (x, x[unit:], x[: 2 * unit], x[unit : 3 * unit], x[unit : 3 * unit][::-1], x[5:5]):
        refault.handle(good).open()
    for bad in (x[1:], x[: unit + 1], x[unit : unit + 5], x[unit::3]):
        fails(refault.UsageError, "whole pages of 4096", refault.handle(bad).open)
        refault.handle(bad).open(mode="r")
    fails(refault.UsageError, "would empty it", refault.handle(x).open, mode="w+")
    more = {"dtype": "u1", "shape": 3, "offset": 1, "order": "F", "page_size": unit}
    more |= {"deadline": None, "readahead": False, "storage_options": {}, "key": "a"}
    more |= {"chunk_cache": 1, "working_set": "auto", "cache": folder, "cache_size": 1}
    for name, value in more.items():
        fails(
            refault.UsageError,
            "mode and resident alone",
            refault.open,
            refault.handle(x),
            **{name: value},
        )
    x[unit] = 99  # to make a handle writes it to the file
    kept = refault.handle(x)
    assert np.fromfile(path, "u1")[unit] == 99
    assert kept.open(mode="r")[unit] == 99
    del x
    # The header counts.
    np.save(folder + "/it.npy", np.zeros(4 * unit, "u1"))
    y = refault.open(folder + "/it.npy", "r+", page_size=unit)
    fails(refault.UsageError, "bytes 4224 to 16512", refault.handle(y[unit:]).open)
    refault.handle(y[unit - 128 :]).open()
    del y
    y = refault.open(folder + "/it.npy", "r+")
    fails(refault.UsageError, "whole pages of 262144", refault.handle(y[unit - 128 :]).open)
    del y

    # Bytes of another version.
    kept = refault.handle(refault.open(path))
    kept.open()
    with open(path, "r+b") as file:
        file.write(b"x")
    fails(refault.StoreError, "has changed since", kept.open)
    store = child_tools.Counting(9000, folder + "/log", version="one")
    kept = refault.handle(refault.open(store))
    kept.open()
    store.version = "two"
    fails(refault.StoreError, "has changed since", kept.open)


def test_refused(tmp_path: pathlib.Path) -> None:
    run(refused, tmp_path)


WORKERS = """
import pickle, sys

import numpy as np
from distributed import Client, LocalCluster

import refault

def double(handle):
    part = handle.open()
    part *= 2
    region = refault.region(part)
    region.flush()
    statistics = region.statistics()
    return statistics.bytes_read, statistics.bytes_written

def main(path):
    size, parts = 1 << 22, 8
    step = size // parts
    np.arange(size, dtype="f8").tofile(path)
    x = refault.open(path, "r+", dtype="f8", page_size="64KiB", resident="4MiB")
    handles = [refault.handle(x[at : at + step]) for at in range(0, size, step)]
    assert max(len(pickle.dumps(handle)) for handle in handles) < 500
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        done = client.gather(client.map(double, handles))
    for read, written in done:
        # Its own 4 MiB, and what is read ahead; of the rest of the 32 MiB nothing.
        assert 8 * step <= read <= 8 * step + (2 << 20), done
        assert written == 8 * step, done
    assert refault.region(x).statistics().bytes_read == 0
    assert (x == 2 * np.arange(size)).all()

if __name__ == "__main__":
    main(sys.argv[1])
"""
"""Not a function like the others: workers import the program again, and must not run it."""


def test_dask_workers_write_their_parts(tmp_path: pathlib.Path) -> None:
    run_child(WORKERS, timeout=90, args=[str(tmp_path / "it")])


def far(url: str, folder: str) -> None:
    import os
    import pickle
    import urllib.request

    import numpy as np

    import refault

    os.environ["XDG_CACHE_HOME"] = folder
    # Behind the header: after the change there is none.
    layout = {"dtype": "i8", "shape": (2000, 100), "offset": 128}
    parameters = {**layout, "page_size": "64KiB", "working_set": "auto"}
    x = refault.open(url, **parameters)
    assert x[1000, 5] == 1000
    pickled = pickle.dumps(refault.handle(x[1000:1010]))
    assert len(pickled) < 600
    found = pickle.loads(pickled).open()
    assert np.array_equal(found[:, 0], np.arange(1000, 1010))
    used = refault.region(x).working_set()
    del x, found
    (name,) = os.listdir(folder + "/refault")
    assert name.endswith(".workingset")
    x = refault.open(url, **parameters)
    region = refault.region(x)
    while not region.statistics().prefetched:
        pass
    assert x[1000, 5] == 1000
    assert region.working_set() == used
    del x, region
    # Another version: no handle of the old one, and no working set.
    urllib.request.urlopen(url.rsplit("/", 1)[0] + "/change").close()
    try:
        pickle.loads(pickled).open()
    except refault.StoreError as error:
        assert "has changed since" in str(error)
    else:
        raise AssertionError("another version was opened")
    x = refault.open(url, **parameters)
    x[1, 1]
    assert refault.region(x).statistics().prefetched == 0


def test_of_a_url(tmp_path: pathlib.Path) -> None:
    file = io.BytesIO()
    np.save(file, np.repeat(np.arange(2000), 100).reshape(2000, 100))
    with object_server(file.getvalue()) as server:
        run(far, server.url, tmp_path)


def in_chunks(folder: str) -> None:
    import os
    import pickle

    import numpy as np
    import zarr

    import refault

    right = np.arange(100 * 1000).reshape(100, 1000)
    zarr.create_array(folder + "/it.zarr", data=right, chunks=(10, 100))
    for source in (folder + "/it.zarr", zarr.open_array(folder + "/it.zarr", mode="r")):
        x = refault.open(source)
        found = pickle.loads(pickle.dumps(refault.handle(x[20:30, ::-2]))).open()
        assert np.array_equal(found, right[20:30, ::-2])
        del x, found
    x = refault.open(folder + "/it.zarr", "r+", working_set="auto")
    x[3, 4] = 7
    part = refault.handle(x[:10])
    assert part.open(mode="r")[3, 4] == 7
    refault.handle(x).open()
    try:
        part.open()
    except refault.UsageError as error:
        assert "written in chunks" in str(error)
    else:
        raise AssertionError("a part in chunks was opened for writing")
    del x
    assert sorted(os.listdir(folder)) == ["it.zarr", "it.zarr.workingset"]


def test_of_an_array_in_chunks(tmp_path: pathlib.Path) -> None:
    run(in_chunks, tmp_path)

"""`refault.take`: what `numpy.take` gives, each page read once, many at a time."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import pytest

from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.object_server import object_server
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd]


def numpys(folder: str) -> None:
    import itertools

    import numpy as np

    import refault

    draw = np.random.default_rng(2)
    model = draw.integers(1, 1 << 30, (30, 50, 20), "i4")
    for order in "CF":
        path = f"{folder}/{order}.npy"
        np.save(path, np.asarray(model, order=order))
        x = refault.open(path, resident="64KiB", page_size=4096, readahead=False)
        views = [lambda a: a, lambda a: a[::-1, 3:, ::-2], lambda a: a.T[1:-1], lambda a: a[5]]
        for view in views:
            for axis in range(view(x).ndim):
                length = view(x).shape[axis]
                many = draw.integers(-length, length, (4, 5))
                for places in (many, [], int(many[0, 0])) if axis else (many.astype("i1"),):
                    right = np.take(view(model), np.asarray(places, int), axis)
                    found = refault.take(view(x), places, axis=axis)
                    assert found.dtype == right.dtype and found.shape == right.shape
                    assert np.array_equal(found, right), (order, axis)
                    assert not np.shares_memory(found, x)
        if order == "C":
            places = draw.integers(-model.size, model.size, 1000)
            assert np.array_equal(refault.take(x, places), np.take(model, places))
        assert refault.region(x).statistics().peak_resident <= 64 << 10
    errors = itertools.count()
    for error, places, axis in (
        (refault.UsageError, [0], None),
        (refault.UsageError, [0], 3),
        (refault.UsageError, [0.5], 0),
        (refault.UsageError, [True], 0),
        (IndexError, [0, 30], 0),
        (IndexError, -31, 0),
    ):
        try:
            refault.take(x, places, axis=axis)
        except error:
            next(errors)
    assert next(errors) == 6
    try:
        refault.take(model, [0])
    except refault.UsageError as error:
        assert "does not lie in memory of refault" in str(error)
    else:
        raise AssertionError("taken")


def test_it_gives_what_numpy_gives(tmp_path: pathlib.Path) -> None:
    run_child(numpys, timeout=60, args=[str(tmp_path)], env=ENVIRONMENT)


def once(url: str) -> None:
    """Rows of 1,024 places in no order, in every other page unit; there is memory for 16."""
    import numpy as np

    import refault

    draw = np.random.default_rng(3)
    places = draw.integers(0, 32, 1024) * 2048 + draw.integers(0, 1000, 1024)
    units = np.unique((places * 64 + 128) // 65536).size
    for bound in ("1MiB", None):
        x = refault.open(url, resident=bound, page_size="64KiB")
        region = refault.region(x)
        before = region.statistics()
        found = refault.take(x, places, axis=0)
        assert (found == places[:, None]).all()
        after = region.statistics()
        assert after.bytes_read - before.bytes_read <= (units + 1) * 65536, bound
        assert after.faults == before.faults, "the program itself has waited for pages"
        refault.configure(resident="1MiB")


def test_each_page_is_asked_for_once_and_many_at_a_time() -> None:
    file = io.BytesIO()
    np.save(file, np.repeat(np.arange(65536, dtype="i4")[:, None], 16, axis=1))
    with object_server(file.getvalue(), latency=0.02) as server:
        run_child(once, timeout=60, args=[server.url], env=ENVIRONMENT)
        assert server.most >= 3


def failing(url: str) -> None:
    import refault

    x = refault.open(url, resident="1MiB", page_size="64KiB", deadline=0.5)
    try:
        refault.take(x, range(0, len(x), 4096), axis=0)
    except refault.StoreError as error:
        assert "take" in str(error), error
    else:
        raise AssertionError("taken from a server that does not answer")


def test_what_cannot_be_read_is_an_error() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((65536, 16), "i4"))
    with object_server(file.getvalue(), faults={"error": 1.0}) as server:
        run_child(failing, timeout=60, args=[server.url], env=ENVIRONMENT)

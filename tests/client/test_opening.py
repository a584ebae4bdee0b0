"""What is refused before any pager is needed, and headers; arrays are in `test_region`."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy as np
import pytest

import refault
from refault.client import headers
from refault.client.options import Options, check_dtype, check_shape
from refault.client.source import Wanted, check_header, fit
from refault.errors import UsageError


@pytest.fixture
def raw(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "numbers.bin"
    path.write_bytes(bytes(range(100)))
    return path


@pytest.fixture
def npy(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(12, dtype="i4").reshape(3, 4))
    return path


def _wanted(**changes: Any) -> Wanted:
    options = Options(None, None, None, True)
    wanted = Wanted(mode="r", dtype=None, shape=None, offset=0, order="C", options=options)
    return wanted._replace(**changes)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "a"}, "mode='a' is none of 'r', "),
        ({"mode": 5}, "mode=5 is none of"),
        ({"dtype": "i8"}, "not a multiple of the data-type size"),
        ({"dtype": object}, "plain dtype"),
        ({"dtype": [("a", "O")]}, "plain dtype"),
        ({"dtype": "V0", "shape": 3}, "has no size"),
        ({"offset": 101}, "behind its end"),
        ({"offset": -1}, "offset=-1 is negative"),
        ({"offset": 1.5}, "not a whole number"),
        ({"order": "K"}, "order='K' is neither"),
        ({"shape": 101}, "has 100 bytes, and the array needs 101"),
        ({"shape": (2, -1)}, "negative length"),
        ({"shape": "ab"}, "no sequence of integers"),
        ({"resident": "2"}, "less than one page"),
        ({"resident": "4KiB", "page_size": "8KiB"}, "less than one page of 8192 bytes"),
        ({"page_size": "3KiB"}, "power of two"),
        ({"page_size": "4MiB"}, "power of two"),
        ({"page_size": 5000}, "power of two"),
        ({"deadline": 0}, "deadline=0 is not a time"),
        ({"deadline": float("nan")}, "not a time"),
        ({"deadline": "60"}, "not a time"),
        ({"mode": "w+"}, "give its shape"),
    ],
)
def test_parameters_that_make_no_sense(
    raw: pathlib.Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        refault.open(raw, **parameters)
    assert raw.stat().st_size == 100


@pytest.mark.parametrize("mode", ["r", "r+", "c", "readonly", "readwrite", "copyonwrite"])
def test_a_missing_file_is_what_numpy_says(tmp_path: pathlib.Path, mode: str) -> None:
    with pytest.raises(FileNotFoundError):
        refault.open(tmp_path / "missing", mode)


def test_a_directory_and_a_device_are_no_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises((UsageError, IsADirectoryError)):
        refault.open(tmp_path)
    with pytest.raises(UsageError, match="not a regular file"):
        refault.open("/dev/zero", shape=10)


@pytest.mark.parametrize("thing", [None, 3, [1, 2], io.BytesIO(b"abc")])
def test_what_is_neither_path_nor_store(thing: Any) -> None:
    with pytest.raises(UsageError, match="neither a path nor a store"):
        refault.open(thing)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dtype": "i8"}, "dtype=.*leave dtype out"),
        ({"shape": (4, 3)}, "leave shape out"),
        ({"order": "F"}, "leave order out"),
    ],
)
def test_what_contradicts_the_header(
    npy: pathlib.Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        refault.open(npy, **parameters)


def test_a_file_that_is_shorter_than_its_header_says(npy: pathlib.Path) -> None:
    npy.write_bytes(npy.read_bytes()[:-1])
    for mode in ("r", "r+"):
        with pytest.raises(UsageError, match="check that the file is complete"):
            refault.open(npy, mode)


def test_a_file_of_objects(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(UsageError, match="Python objects"):
        refault.open(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x09\x00aaaaaa"])
def test_a_damaged_header(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "damaged.npy"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"no valid \.npy header"):
        refault.open(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_all_versions_of_headers(version: tuple[int, int], order: Any) -> None:
    names = "\u0436" if version == (3, 0) else "a"
    array = np.zeros((3, 4), [(names, "f4"), ("b", "i2", (2,))], order=order)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    file.seek(0)
    header = headers.read_header(file, "x")
    assert header.dtype == array.dtype
    assert (header.shape, header.order) == (array.shape, order)
    assert header.offset == len(file.getvalue()) - array.nbytes
    layout = check_header(_wanted(shape=(3, 4)), header, len(file.getvalue()), "x")
    assert layout.nbytes == array.nbytes


def test_the_shape_that_a_file_has_room_for() -> None:
    assert fit(_wanted(dtype=np.dtype("f4"), offset=20), 100, "x").shape == (20,)
    assert fit(_wanted(), 0, "x").shape == (0,)


def test_dtypes_as_in_a_new_array() -> None:
    assert check_dtype("S").itemsize == 1
    assert check_dtype(float) == np.dtype("f8")


@pytest.mark.parametrize("shape", [3, np.int8(3), (3,), [3], np.array([3])])
def test_shapes(shape: Any) -> None:
    assert check_shape(shape) == (3,)


def test_full_takes_one_value() -> None:
    with pytest.raises(UsageError, match="not a single value"):
        refault.full((2, 2), [1, 2])
    with pytest.raises(UsageError, match="plain dtype"):
        refault.full((2, 2), {})

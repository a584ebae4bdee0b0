"""All that `numpy.memmap` can map, mapped by both: the same arrays, and the same files after."""

from __future__ import annotations

import pathlib

import pytest

from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left", "served_by"),
]

MODES = ["r", "r+", "w+", "c"]


def run(code: object, *args: object) -> None:
    assert callable(code)
    run_child(code, timeout=60, args=[str(one) for one in args], env=ENVIRONMENT)


def dtypes(folder: str, mode: str) -> None:
    from helpers import twins

    nbytes = 400_000
    odd = {
        "names": ["a", "b", "c"],
        "formats": ["u1", ">f8", "S4"],
        "offsets": [0, 1, 9],
        "itemsize": 13,
    }
    nested = [("x", "i2", (3,)), ("y", [("z", "?"), ("w", "U1")])]
    plain = ["f2", "c16", "S7", "U3", "?", "i1", ">u8", ">f4", "M8[ns]", "m8[D]", "V5", "f16"]
    for dtype in (*plain, odd, nested):
        twins.twins(folder, twins.data(nbytes), mode, dtype=dtype, shape=(97, 11))
    for order in "CF":
        for shape in ((7,), (), (1,), 1000, (200, 300), (3, 50, 70), (1, 1, 1, 500)):
            for offset in (0, 1, 4095, 4096, 65_537):
                twins.twins(
                    folder, twins.data(nbytes), mode,
                    dtype="f4", shape=shape, order=order, offset=offset,
                )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_dtypes_shapes_orders_offsets(tmp_path: pathlib.Path, mode: str) -> None:
    run(dtypes, tmp_path, mode)


def sizes(folder: str, mode: str) -> None:
    from typing import Any

    from helpers import twins

    for page_size in (4096 << power for power in range(10)):
        for size in (1, 4095, 4096, 4097, 65_536 + 3, (2 << 20) - 1, (4 << 20) + 1):
            how: dict[str, Any] = {"shape": (size,)} if mode == "w+" else {}
            content = twins.data(size)
            twins.twins(folder, content, mode, page_size=page_size, **how)
        # Two units of memory for all of it, beginning somewhere, with an end that no unit has.
        shape = ((9 * page_size + 77) // 6,) if page_size < 1 << 18 else (100_001,)
        twins.twins(
            folder, twins.data(6 * shape[0] + 4001), mode,
            page_size=page_size, resident=2 * page_size, dtype="V6", shape=shape, offset=1003,
        )  # fmt: skip
    # As numpy does it: what is there if nothing is said, and a longer file if more is wanted.
    if mode in ("r+", "w+"):
        twins.twins(folder, twins.data(1001), mode, shape=(5000, 3), dtype="u2", offset=7)
        twins.twins(folder, b"", mode, shape=(70_000,))


@pytest.mark.parametrize("mode", MODES)
def test_page_sizes_and_file_sizes(tmp_path: pathlib.Path, mode: str) -> None:
    run(sizes, tmp_path, mode)


def empty(folder: str) -> None:
    import os

    import refault

    path = os.path.join(folder, "file")
    for content in (b"", b"abcdefghijkl"):
        for mode in ("r", "r+", "c", "w+"):
            for shape in ((0,), (3, 0, 2), None):
                if shape is None and (content or mode == "w+"):
                    continue
                with open(path, "wb") as file:
                    file.write(content)
                x = refault.open(path, mode, dtype="f4", shape=shape)
                assert x.shape == (shape or (0,))
                assert x.tobytes() == b"" and x.sum() == 0
                assert x.flags.writeable == (mode != "r")
                if mode != "r":
                    x[...] = 5
                region = refault.region(x)
                region.populate()
                region.prefetch()
                region.flush()
                assert region.evict() == 0
                with region.pin():
                    pass
                assert region.statistics().resident == 0
                del x
                region.close()
                assert os.path.getsize(path) == (0 if mode == "w+" else len(content))
    for make in (refault.zeros, refault.empty):
        assert make((0, 5), "S7").shape == (0, 5)
        scalar = make((), "c16")
        scalar[()] = 3 + 4j
        assert scalar.ndim == 0 and scalar[()] == 3 + 4j
    assert refault.full((3, 0), 7).size == 0


def test_arrays_without_elements(tmp_path: pathlib.Path) -> None:
    run(empty, tmp_path)


def fills() -> None:
    import numpy as np

    import refault

    odd = np.dtype(
        {"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 1], "itemsize": 9}
    )
    for value, dtype in (
        (7, "u1"), (-1.5, "f8"), (3 + 4j, "c16"), ("ab", "U3"), (b"abcdefg", "S7"), (True, "?"),
        ((5, 2.5), odd), (0, "i4"), (np.datetime64("2019-02-11"), "M8[s]"),
    ):  # fmt: skip
        for order in "CF":
            plain = np.full((101, 37), np.array(value, dtype), dtype, order)  # type: ignore[call-overload]
            ours = refault.full((101, 37), np.array(value, dtype), dtype, order, resident="64KiB")
            assert ours.strides == plain.strides
            assert ours.tobytes() == plain.tobytes()
            ours[5::7] = plain[0, 0]
            ours[:, 3] = np.zeros((), dtype)
            plain[:, 3] = np.zeros((), dtype)
            assert ours.tobytes() == plain.tobytes()
    x = refault.zeros((300, 70, 5), "i4", "F", resident="128KiB")
    x[...] = np.arange(x.size).reshape(x.shape)
    assert (x == np.arange(x.size).reshape(x.shape)).all()
    assert refault.region(x).statistics().swap_writes > 0


def test_memory_without_a_file() -> None:
    run(fills)


def coherent(folder: str) -> None:
    import ctypes
    import os
    import threading
    from typing import Any

    import numpy as np

    import refault

    path, other = os.path.join(folder, "file"), os.path.join(folder, "other")
    size, unit = 1 << 20, 65_536
    plain = np.arange(size, dtype="u4").view("u1")[:size].copy()
    plain.tofile(path)
    os.link(path, other)
    how: Any = {"dtype": "u1", "page_size": unit, "resident": 4 * unit}
    ranges = [(0, size), (0, 5000), (1, 300_000), (unit - 3, 2 * unit), (70_000, size - 70_000)]
    writers = [
        refault.open(path if at % 2 else other, "r+", offset=start, shape=length, **how)
        for at, (start, length) in enumerate(ranges)
    ]
    readers = [
        refault.open(other if at % 2 else path, offset=start, shape=length, **how)
        for at, (start, length) in enumerate(ranges)
    ]
    dice = np.random.default_rng(4)
    for turn in range(300):
        at = int(dice.integers(len(ranges)))
        start, length = ranges[at]
        low = int(dice.integers(length))
        new = dice.integers(0, 256, min(length - low, int(dice.integers(1, 3000))), np.uint8)
        writers[at][low : low + len(new)] = new
        plain[start + low : start + low + len(new)] = new
        for arrays in (writers, readers):
            at = int(dice.integers(len(ranges)))
            start, length = ranges[at]
            assert np.array_equal(arrays[at], plain[start : start + length]), turn
    # Everybody writes every fifth byte of the same unit, through a region of his own.
    low = 2 * unit

    def write(number: int) -> None:
        start, _ = ranges[(0, 0, 2, 3, 4)[number]]
        array = writers[(0, 0, 2, 3, 4)[number]]
        for turn in range(300):
            at = low + number + 5 * turn * 40
            ctypes.memset(array.ctypes.data + at - start, 100 + number, 1)
            if turn % 10 == 0:
                refault.region(array).evict(slice(at - start, at - start + 1))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(5):
        plain[low + number :: 200][:300] = 100 + number
    for arrays in (writers, readers):
        for (start, length), array in zip(ranges, arrays, strict=True):
            assert np.array_equal(array, plain[start : start + length])
    # The small ones go first; what they wrote stays for the others, and reaches the file.
    writers[1][7] = plain[7] = 123
    while len(writers) > 1:
        region = refault.region(writers[-1])
        del writers[-1]
        array = writers[0]
        arrays = writers
        region.close()
        assert np.array_equal(writers[0], plain)
    refault.region(writers[0]).flush()
    assert np.array_equal(np.fromfile(path, "u1"), plain)


def test_regions_of_one_file_share_their_pages(tmp_path: pathlib.Path) -> None:
    run(coherent, tmp_path)


def grown(folder: str, how: str) -> None:
    import os

    import numpy as np

    import refault

    path = os.path.join(folder, "file")
    dice = np.random.default_rng(6)
    plain = dice.integers(1, 256, 100_000, dtype=np.uint8)
    plain.tofile(path)
    x = refault.open(path, "r+", dtype="u1", page_size="64KiB")
    region = refault.region(x)
    held = []
    for more in (1, 50, 4096, 60_000, 200_000):
        assert np.array_equal(x, plain[: len(x)])
        # The last unit is in memory in one state or another, and longer than the file was.
        if how == "dirty":
            x[-1] = plain[len(x) - 1] = more % 251 + 1
        elif how == "evicted":
            region.evict()
        pin = region.pin(slice(len(x) - 1, None)) if how == "pinned" else None
        new = dice.integers(1, 256, more, dtype=np.uint8)
        with open(path, "ab") as file:
            file.write(new.tobytes())
        plain = np.concatenate([plain, new])
        try:
            y = refault.open(path, "r+", dtype="u1")
        except refault.UsageError as error:
            assert how == "pinned" and "pin" in str(error), error
            assert pin is not None
            pin.release()
            y = refault.open(path, "r+", dtype="u1")
        if pin is not None:
            pin.release()
        assert len(y) == len(plain)
        assert np.array_equal(y, plain), np.flatnonzero(y != plain)[:5]
        held.append(x)
        x, region = y, refault.region(y)
    x[:] = plain = plain[::-1].copy()
    region.flush()
    for one in held:
        assert np.array_equal(one, plain[: len(one)])
    assert np.array_equal(np.fromfile(path, "u1"), plain)


@pytest.mark.parametrize("how", ["clean", "dirty", "evicted", "pinned"])
def test_a_file_that_grows_between_two_opens(tmp_path: pathlib.Path, how: str) -> None:
    run(grown, tmp_path, how)


def private(folder: str) -> None:
    import os

    import numpy as np

    import refault

    path = os.path.join(folder, "file")
    size, unit = 2_000_003, 4096
    dice = np.random.default_rng(8)
    plain = dice.integers(0, 256, size, dtype=np.uint8)
    plain.tofile(path)
    shared = refault.open(path, "r+", dtype="u1", page_size=unit)
    shared[5] = plain[5] = 99
    copies = [
        refault.open(path, "c", dtype="u1", page_size=unit, resident=20 * unit) for _ in range(2)
    ]
    wanted = [plain.copy(), plain.copy()]
    for turn in range(400):
        at = int(dice.integers(size))
        new = dice.integers(0, 256, int(dice.integers(1, 9000)), dtype=np.uint8)[: size - at]
        copies[turn % 2][at : at + len(new)] = new
        wanted[turn % 2][at : at + len(new)] = new
        at = int(dice.integers(size))
        assert copies[turn % 2][at] == wanted[turn % 2][at]
        if turn % 100 < 2:
            refault.region(copies[turn % 2]).evict()
            refault.region(copies[turn % 2]).flush()
    for copy, right in zip(copies, wanted, strict=True):
        assert np.array_equal(copy, right)
        seen = refault.region(copy).statistics()
        assert seen.swap_writes > 20 and seen.store_writes == 0, seen
        assert seen.peak_resident <= 20 * unit
    assert np.array_equal(shared, plain)
    del copy, copies
    refault.region(shared).flush()
    assert np.array_equal(np.fromfile(path, "u1"), plain)
    # A file that nobody may write can be changed in private.
    os.chmod(path, 0o400)
    x = refault.open(path, "c", dtype="u1")
    x[:100] = 1
    refault.region(x).evict()
    assert (x[:100] == 1).all() and np.array_equal(x[100:], plain[100:])


def test_private_changes_stay_private_and_survive_eviction(tmp_path: pathlib.Path) -> None:
    run(private, tmp_path)

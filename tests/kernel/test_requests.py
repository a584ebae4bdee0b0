"""populate, prefetch, pin, evict, flush, statistics, close: what they promise."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left", "served_by"),
]

MIB = 1 << 20


@pytest.fixture
def numbers(tmp_path: pathlib.Path) -> str:
    """A file of 16 MiB: the u8 numbers from 0 on."""
    path = tmp_path / "numbers"
    np.arange(16 * MIB // 8, dtype="u8").tofile(path)
    return str(path)


def populated_pages_do_not_fault(path: str) -> None:
    import numpy as np

    import refault

    for mode, write in (("r", False), ("r+", False), ("r+", True), ("c", True)):
        for page_size in ("4KiB", "64KiB", "2MiB"):
            x = refault.open(path, mode, dtype="u8", resident="8MiB", page_size=page_size)
            region = refault.region(x)
            part = slice(12_345, 500_000)
            region.populate(part, write=write)
            before = region.statistics()
            assert int(x[part].sum()) == sum(range(12_345, 500_000))
            if write:
                x[part] += np.uint64(1)
                assert region.statistics().dirty >= 8 * (500_000 - 12_345)
                x[part] -= np.uint64(1)
            after = region.statistics()
            assert after.faults == before.faults, (mode, write, page_size, before, after)
            if not write:
                assert after.dirty == 0
            del x
            region.close()
    # Reading ahead leaves marks; populate must map those pages as well.
    x = refault.open(path, dtype="u8", resident="16MiB", page_size="4KiB")
    region = refault.region(x)
    assert int(x[: 1 << 17].sum()) == (1 << 16) * ((1 << 17) - 1)
    region.populate(slice(0, 1 << 18))
    before = region.statistics()
    assert int(x[: 1 << 18].sum()) == (1 << 17) * ((1 << 18) - 1)
    assert region.statistics().faults == before.faults


def test_populated_pages_do_not_fault(numbers: str) -> None:
    run_child(populated_pages_do_not_fault, timeout=30, args=[numbers])


def pins(path: str) -> None:
    import refault

    x = refault.open(path, "r+", dtype="u8", resident="2MiB", page_size="64KiB", readahead=False)
    region = refault.region(x)
    part = slice(50_000, 100_000)

    def pressure() -> None:
        assert int(x[200_000::512].sum()) == sum(range(200_000, len(x), 512))

    with region.pin(part) as pin:
        pinned = region.statistics().pinned
        assert 400_000 <= pinned <= 400_000 + 2 * 65_536
        for _ in range(2):
            pressure()
        assert region.evict() > 0
        assert region.statistics().resident >= pinned
        before = region.statistics()
        assert int(x[part].sum()) == sum(range(50_000, 100_000))
        assert region.statistics().faults == before.faults
        try:
            region.close()
        except refault.UsageError as error:
            assert "pins" in str(error)
        else:
            raise AssertionError("closed under a pin")
        assert region.statistics().pinned == pinned
    assert pin.released
    assert region.statistics().pinned == 0
    pressure()
    before = region.statistics()
    assert int(x[part].sum()) == sum(range(50_000, 100_000))
    assert region.statistics().faults > before.faults

    # Twice pinned, once released: still pinned.
    first, second = region.pin(part), region.pin(part)
    first.release()
    first.release()
    assert region.statistics().pinned == pinned
    second.release()
    assert region.statistics().pinned == 0

    # An exception lets go as well, and so does forgetting it.
    try:
        with region.pin(part):
            raise RuntimeError
    except RuntimeError:
        pass
    assert region.statistics().pinned == 0
    forgotten = region.pin(part)
    assert region.statistics().pinned == pinned
    del forgotten
    deadline = 1000
    while region.statistics().pinned and deadline:
        deadline -= 1
    assert region.statistics().pinned == 0

    # A pin for writing: the changes stay in memory and are not lost.
    with region.pin(part, write=True):
        x[part] = 7
        pressure()
        assert (x[part] == 7).all()
    pressure()
    assert (x[part] == 7).all()

    # More than the budget has, in one piece and in several.
    for ask in (region.pin, region.populate):
        try:
            ask(None)
        except refault.UsageError as error:
            assert "budget" in str(error) and "resident" in str(error), error
        else:
            raise AssertionError("16 MiB in 2 MiB")
    with region.pin(slice(0, 100_000)), region.pin(slice(100_000, 200_000)):
        try:
            region.pin(slice(200_000, 300_000))
        except refault.UsageError as error:
            assert "release a pin" in str(error), error
        else:
            raise AssertionError("2.4 MB pinned in 2 MiB")
        pressure()
    assert region.statistics().pinned == 0
    assert int(x[300_000:].sum()) == sum(range(300_000, len(x)))


def test_pins(numbers: str) -> None:
    run_child(pins, timeout=30, args=[numbers])


def evicts(path: str) -> None:
    import time

    import numpy as np

    import refault

    x = refault.open(path, "r+", dtype="u8")
    private = refault.open(path, "c", dtype="u8")
    memory = refault.zeros(1 << 20, "u8")
    for one in (x, private, memory):
        region = refault.region(one)
        one[100_000:200_000] = np.arange(100_000, dtype="u8") * 3
        assert region.statistics().dirty >= 800_000
        assert region.evict(slice(100_000, 200_000)) >= 800_000
        assert region.statistics().dirty == 0
        before = region.statistics()
        assert np.array_equal(one[100_000:200_000], np.arange(100_000, dtype="u8") * 3)
        assert region.statistics().faults > before.faults
        # What is being read ahead at that moment comes in afterwards, and the next window with it.
        quiet = 0
        for _ in range(1000):
            region.evict()
            quiet = 0 if region.statistics().resident else quiet + 1
            if quiet == 20:
                break
            time.sleep(0.005)
        assert region.statistics().resident == 0
        assert region.evict() == 0
        assert np.array_equal(one[100_000:200_000], np.arange(100_000, dtype="u8") * 3)
    plain = np.fromfile(path, "u8")
    assert np.array_equal(plain[100_000:200_000], np.arange(100_000, dtype="u8") * 3)
    assert np.array_equal(plain[:100_000], np.arange(100_000, dtype="u8"))


def test_evict_drops_and_the_data_survives(numbers: str) -> None:
    run_child(evicts, timeout=30, args=[numbers])


def flushes(path: str) -> None:
    import numpy as np

    import refault

    x = refault.open(path, "r+", dtype="u8", resident="4MiB")
    region = refault.region(x)
    x[10] = 1_000_001
    x[300_000] = 1_000_002
    region.flush(slice(0, 20))
    plain = np.memmap(path, "u8", "r")
    assert plain[10] == 1_000_001
    assert plain[300_000] == 300_000
    assert 0 < region.statistics().dirty <= 65_536
    region.flush()
    assert plain[300_000] == 1_000_002
    assert region.statistics().dirty == 0
    # Clean again, and writable again: the next change is seen as one.
    for value in range(5):
        x[10] = value
        assert region.statistics().dirty > 0
        region.flush()
        assert plain[10] == value
        assert region.statistics().dirty == 0
    # For what is never written, nothing happens.
    for quiet in (refault.open(path, "c", dtype="u8"), refault.zeros(1000, "u8")):
        quiet[10] = 77
        refault.region(quiet).flush()
        assert quiet[10] == 77
    assert plain[10] == 4
    refault.region(refault.open(path, dtype="u8")).flush()


def test_flush(numbers: str) -> None:
    run_child(flushes, timeout=30, args=[numbers])


def prefetches(gate: str) -> None:
    import os
    import time

    import refault
    from helpers import child_tools

    store = child_tools.Blocking(4 << 20, gate)
    x = refault.open(store, dtype="u1", shape=4 << 20, resident="4MiB", readahead=False)
    region = refault.region(x)
    begin = time.monotonic()
    begun = region.prefetch(slice(0, 1 << 20))
    seconds = time.monotonic() - begin
    assert begun >= 1 << 20
    assert seconds < 1, seconds
    open(gate, "x").close()
    deadline = time.monotonic() + 10
    while region.statistics().bytes_read < 1 << 20:
        assert time.monotonic() < deadline, region.statistics()
        time.sleep(0.01)
    before = region.statistics()
    assert before.faults == 0
    assert bytes(x[: 1 << 20]) == child_tools.content(0, 1 << 20)
    after = region.statistics()
    assert after.store_reads == before.store_reads
    assert after.major == 0, after
    # More than the budget: it begins what fits, and takes nothing away again.
    assert region.prefetch() < 4 << 20
    os.unlink(gate)
    print(f"prefetch of a blocked store: {seconds * 1e3:.2f} ms")


def test_prefetch_waits_for_nothing(tmp_path: pathlib.Path) -> None:
    done = run_child(prefetches, timeout=30, args=[str(tmp_path / "gate")], env=ENVIRONMENT)
    print(done.stdout)


def counts(path: str) -> None:
    import refault

    # In order, reads run ahead; in disorder they do not.
    x = refault.open(path, dtype="u8", resident="8MiB")
    region = refault.region(x)
    for at in range(0, len(x), 512):
        assert x[at] == at
    ordered = region.statistics()
    assert ordered.readahead > 100, ordered
    assert ordered.bytes_read <= 1.3 * x.nbytes, ordered
    assert ordered.resident <= ordered.peak_resident <= ordered.budget == 8 << 20
    assert ordered.faults == ordered.major + ordered.minor
    assert ordered.attempts >= ordered.faults
    assert ordered.page_size == 65_536
    del x, region

    x = refault.open(path, dtype="u8", resident="8MiB")
    region = refault.region(x)
    for unit in range(256):
        at = unit * 89 % 256 * 8192
        assert x[at] == at
    scattered = region.statistics()
    assert scattered.readahead == 0, scattered
    assert scattered.bytes_read == x.nbytes
    assert scattered.evictions >= 128
    del x, region

    x = refault.open(path, dtype="u8", resident="8MiB", readahead=False)
    for at in range(0, len(x), 8192):
        assert x[at] == at
    assert refault.region(x).statistics().readahead == 0
    del x

    # A loop over a little more than the budget: what was evicted comes back soon.
    x = refault.open(path, dtype="u8", resident="4MiB", page_size="64KiB", readahead=False)
    region = refault.region(x)
    for turn in range(5):
        for at in range(0, 72 * 8192, 8192):
            assert x[at] == at
        if turn == 0:
            assert region.statistics().refaults == 0
    seen = region.statistics()
    assert seen.refaults > 8, seen
    try:
        seen.refaults = 0  # type: ignore[misc]
    except AttributeError:
        pass
    else:
        raise AssertionError("not frozen")


def test_statistics(numbers: str) -> None:
    run_child(counts, timeout=30, args=[numbers])


def closes(path: str) -> None:
    import os

    import numpy as np

    import refault

    x = refault.open(path, "r+", dtype="u8")
    region = refault.region(x)
    view = x[100:200][::-2]
    memory = memoryview(x)  # type: ignore[arg-type]
    for holder in range(3):
        try:
            region.close()
        except refault.UsageError as error:
            assert "arrays, views or pins" in str(error)
        else:
            raise AssertionError("closed")
        view[0] = holder
        if holder == 0:
            del x
        elif holder == 1:
            memory.release()
            del memory
        else:
            del view
    region.close()
    region.close()
    assert region.closed
    assert np.memmap(path, "u8", "r")[199] == 2
    for use in (
        lambda: region.array,
        region.populate,
        region.prefetch,
        region.pin,
        region.evict,
        region.flush,
        region.statistics,
        region.__enter__,
    ):
        try:
            use()
        except refault.UsageError as error:
            assert "closed" in str(error)
        else:
            raise AssertionError(use)

    # As a context; and with an exception, where the traceback still has the array.
    x = refault.open(path, "r+", dtype="u8")
    with refault.region(x) as region:
        x[5] = 555
        del x
    assert region.closed
    try:
        with refault.region(refault.open(path, "r+", dtype="u8")) as region:
            held = region.array
            held[6] = 666
            raise KeyError(held)
    except KeyError:
        pass
    assert not region.closed
    del held
    region.close()
    assert list(np.memmap(path, "u8", "r")[4:8]) == [4, 555, 666, 7]
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    assert not [link for link in links if "memfd" in link], links


def test_close(numbers: str) -> None:
    run_child(closes, timeout=30, args=[numbers])


def wrong_input(path: str) -> None:
    import os

    import numpy as np

    import refault

    def refuses(kind: type[BaseException], words: str, *args: object, **others: object) -> None:
        try:
            refault.open(*args, **others)  # type: ignore[arg-type]
        except kind as error:
            assert words in str(error), (words, error)
        else:
            raise AssertionError((args, others))

    usage = refault.UsageError
    refuses(FileNotFoundError, path + "-", path + "-")
    refuses(FileNotFoundError, path + "-", path + "-", "r+")
    refuses(usage, "not a regular file", os.path.dirname(path))
    refuses(usage, "mode='a'", path, "a")
    refuses(usage, "mode=5", path, 5)
    refuses(usage, "offset=-8", path, offset=-8)
    refuses(usage, "offset=", path, offset=17 << 20)
    refuses(usage, "offset=1.5", path, offset=1.5)
    refuses(usage, "multiple", path, dtype="V7")
    refuses(usage, "objects", path, dtype=object)
    refuses(TypeError, "", path, dtype="nonsense")
    refuses(usage, "shape", path, dtype="u8", shape=(1 << 21, 2))
    refuses(usage, "shape", path, dtype="u8", shape=(-1,))
    refuses(usage, "shape", path, dtype="u8", shape="abc")
    refuses(usage, "order", path, order="K")
    refuses(usage, "resident", path, resident=4095)
    refuses(usage, "resident", path, resident="32KiB", page_size="64KiB")
    refuses(usage, "resident", path, resident="much")
    refuses(usage, "page_size", path, page_size=12_288)
    refuses(usage, "page_size", path, page_size="4MiB")
    refuses(usage, "page_size", path, page_size=2048)
    refuses(usage, "deadline", path, deadline=0)
    refuses(usage, "deadline", path, deadline="soon")
    refuses(usage, "shape", path + ".new", "w+")
    refuses(usage, "neither a path nor a store", 17)
    assert not os.path.exists(path + ".new")
    np.save(path + ".npy", np.zeros((3, 4), "f4"))
    refuses(usage, "dtype", path + ".npy", dtype="f8")
    refuses(usage, "shape", path + ".npy", shape=(4, 3))
    refuses(usage, "order", path + ".npy", order="F")
    with open(path + ".npy", "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    refuses(usage, "complete", path + ".npy")
    assert issubclass(usage, ValueError)

    # What is open already decides how large a page unit of the file is.
    x = refault.open(path, dtype="u8", resident=4096, page_size=4096)
    assert int(x.sum()) == sum(range(len(x)))
    refuses(usage, "page_size=4096", path, dtype="u8", page_size="64KiB")
    other = refault.zeros(100)

    for foreign in (np.zeros(3), x.copy(), np.memmap(path, "u8", "r"), [1, 2], "text"):
        try:
            refault.region(foreign)
        except usage:
            pass
        else:
            raise AssertionError(type(foreign))
    assert refault.region(x[3:7].T).nbytes == x.nbytes
    seen = memoryview(x)  # type: ignore[arg-type]
    assert refault.region(seen) is refault.region(x)

    region = refault.region(x)
    for where in ([1, 2], np.zeros(3), other[:10], 1.5, "text", True):
        try:
            region.populate(where)  # type: ignore[arg-type]
        except usage:
            pass
        else:
            raise AssertionError(where)
    for ask in (region.pin, region.populate):
        try:
            ask(slice(0, 10), write=True)
        except usage as error:
            assert "read-only" in str(error)
        else:
            raise AssertionError(ask)
    for write in (
        lambda: x.__setitem__(0, 1),
        x.sort,
        lambda: np.add(x, 1, out=x),
    ):
        try:
            write()
        except ValueError as error:
            assert "read-only" in str(error), error
        else:
            raise AssertionError("written")
    try:
        x.flags.writeable = True
    except ValueError:
        pass
    else:
        raise AssertionError("made writable")
    try:
        x[0] = 1
    except ValueError as error:
        assert str(error) == "assignment destination is read-only"


def test_wrong_input(numbers: str) -> None:
    run_child(wrong_input, timeout=60, args=[numbers])


def writes_to_read_only_memory(path: str, touched: str) -> None:
    import ctypes

    import refault

    x = refault.open(path, dtype="u8")
    if touched == "touched":
        assert x[0] == 0
    ctypes.memset(x.ctypes.data, 1, 8)


@pytest.mark.parametrize("touched", ["touched", "absent"])
def test_a_write_to_read_only_memory_is_a_segmentation_fault(numbers: str, touched: str) -> None:
    run_child(writes_to_read_only_memory, timeout=30, args=[numbers, touched], expect=-11)
    assert np.fromfile(numbers, "u8", 1)[0] == 0

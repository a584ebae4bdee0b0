"""Stores that fail: a page is real, or the access fails loudly."""

from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from helpers.child import Result, run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left", "served_by"),
]

SIGBUS = 7


def run(code: object, *args: str, expect: int = 0, orphans: float = 5) -> Result:
    assert callable(code)
    done = run_child(code, timeout=30, args=args, env=ENVIRONMENT, expect=expect, orphans=orphans)
    print(done.stdout, end="")
    return done


def flaky() -> None:
    import refault
    from helpers import child_tools

    size, unit = 10 << 16, 65_536
    right = child_tools.content(0, size)
    x = refault.open(
        child_tools.Flaky(size, 3), dtype="u1", shape=size, page_size=unit, readahead=False
    )
    region = refault.region(x)
    assert x[5 * unit + 3] == right[5 * unit + 3]
    seen = region.statistics()
    assert seen.store_errors == 3, seen
    assert seen.retries_store_error == 3, seen
    assert seen.faults == 1, seen
    # The first try, a retry after each of three pauses, and perhaps one while it is read.
    assert 4 <= seen.attempts <= 8, seen
    assert seen.attempts == seen.max_attempts
    region.populate(slice(8 * unit, 9 * unit))
    assert x.tobytes() == right
    assert region.statistics().given_up == 0


def test_a_store_is_asked_until_it_answers() -> None:
    done = run(flaky)
    # Who reads stderr learns which store, which bytes, what it said, and what happens next.
    assert "flaky: cannot read at offset 327680: OSError: [Errno 5] no answer 1" in done.stderr
    assert "no answer 1" in done.stderr
    assert "the next one is in" in done.stderr


def explicit(permanent: str) -> None:
    import time

    import refault
    from helpers import child_tools

    size, unit, good = 1 << 20, 65_536, 1 << 19
    store = child_tools.Failing(size, permanent=permanent == "permanent", good=good)
    x = refault.open(store, dtype="u1", shape=size, page_size=unit, deadline=1.0)
    region = refault.region(x)
    right = child_tools.content(0, size)
    for ask in (region.populate, region.pin):
        begin = time.monotonic()
        try:
            ask(slice(good - 10, good + 70_000))
        except refault.StoreError as error:
            text = str(error)
            assert text.count("failing") == 1, text
            assert str(good) in text, text
            assert "the disk is on fire" in text, text
            assert error.permanent == (permanent == "permanent")
        else:
            raise AssertionError("raised nothing")
        seconds = time.monotonic() - begin
        if permanent == "permanent":
            assert seconds < 0.9, seconds
        else:
            assert 0.9 < seconds < 5, seconds
    assert region.statistics().pinned == 0
    assert bytes(x[:good]) == right[:good]
    region.populate(slice(0, good))
    region.prefetch()
    del x
    region.close()


@pytest.mark.parametrize("permanent", ["permanent", "deadline"])
def test_explicit_calls_raise(permanent: str) -> None:
    run(explicit, permanent)


def implicit(permanent: str, access: str) -> None:
    import ctypes

    import refault
    from helpers import child_tools

    size, unit, good = 1 << 20, 65_536, 1 << 19
    store = child_tools.Failing(size, permanent=permanent == "permanent", good=good)
    x = refault.open(store, "c", dtype="u1", shape=size, page_size=unit, deadline=0.5)
    # Readahead, prefetch and a populate that failed have touched the bad page already.
    assert bytes(x[:good]) == child_tools.content(0, good)
    refault.region(x).prefetch(slice(good, size))
    value = None
    if access == "read":
        value = x[good + 5]
    elif access == "write":
        x[good + 5] = 1
    elif access == "populated":
        try:
            refault.region(x).populate(slice(good, size))
        except refault.StoreError:
            pass
        value = x[good + 5]
    else:
        # Into a page that is there, out of one that is not.
        ctypes.memmove(x.ctypes.data, x.ctypes.data + good - 100, 200)
    print("went on with", value)


@pytest.mark.parametrize(
    ("permanent", "access"),
    [
        ("permanent", "read"),
        ("permanent", "write"),
        ("permanent", "populated"),
        ("permanent", "memmove"),
        ("deadline", "read"),
        ("deadline", "write"),
    ],
)
def test_a_touch_gets_sigbus_and_the_reason_is_said_before(permanent: str, access: str) -> None:
    done = run(implicit, permanent, access, expect=-SIGBUS)
    assert "went on" not in done.stdout
    # faulthandler writes word by word, and the pager may speak in between.
    reason, _, death = done.stderr.partition("Fatal Python error: ")
    assert "Bus error" in death, done.stderr
    assert "failing: thread" in reason
    assert "bytes 524288 to 589824" in reason
    assert "the disk is on fire" in reason
    assert "SIGBUS" in reason


def short() -> None:
    import refault
    from helpers import child_tools
    from refault.testing import TornStore

    size = 1 << 18
    store = TornStore(child_tools.Plain(size), 1, how="short")
    x = refault.open(store, dtype="u1", shape=size, deadline=0.5)
    try:
        refault.region(x).populate()
    except refault.StoreError as error:
        assert "short answer" in str(error), error
    else:
        raise AssertionError("taken")
    print("went on with", x[5])


def test_short_answers_are_refused() -> None:
    done = run(short, expect=-SIGBUS)
    assert "went on" not in done.stdout
    assert "returned 32768 instead of 65536" in done.stderr


def truncated(path: str, page_size: str, how: str) -> None:
    import os

    import numpy as np

    import refault

    size, end = 1 << 20, 300_000
    unit = int(page_size)
    whole = end // unit * unit
    right = np.fromfile(path, "u1")
    x = refault.open(path, "r+", dtype="u1", page_size=unit, deadline=0.5)
    region = refault.region(x)
    x[size - 1] = 77
    os.truncate(path, end)
    assert np.array_equal(x[:whole], right[:whole])
    try:
        region.flush()
    except refault.StoreError as error:
        assert path in str(error)
    else:
        raise AssertionError("a page was written behind the end of the file")
    assert os.path.getsize(path) == end
    for start, stop in ((whole, size), (end, end + 1), (size // 2, size // 2 + 1)):
        try:
            region.populate(slice(start, stop))
        except refault.StoreError as error:
            assert path in str(error) and "shorter" in str(error), error
        else:
            raise AssertionError((start, stop))
    if how == "restored":
        # What is asked again is right again; here a region of its own, which knows of no error.
        del x
        try:
            region.close()
        except refault.StoreError as error:
            assert "lost" in str(error)
        right[:].tofile(path)
        x = refault.open(path, dtype="u1", page_size=unit)
        assert np.array_equal(x, right)
        return
    print("went on with", x[end if how == "end" else size // 2])


@pytest.mark.parametrize("page_size", ["4096", "65536"])
@pytest.mark.parametrize("how", ["end", "far", "restored"])
def test_a_file_that_is_truncated(tmp_path: pathlib.Path, page_size: str, how: str) -> None:
    path = tmp_path / "shrinking"
    right = np.random.default_rng(3).integers(1, 255, 1 << 20, dtype=np.uint8)
    right.tofile(path)
    restored = how == "restored"
    done = run(truncated, str(path), page_size, how, expect=0 if restored else -SIGBUS)
    assert "went on" not in done.stdout
    if not restored:
        assert "shorter" in done.stderr
        assert os.path.getsize(path) == 300_000
        assert np.array_equal(np.fromfile(path, "u1"), right[:300_000])


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A tmpfs of 4 MiB; 3 MiB of it are taken by the file `filler`."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=4m"):
        pytest.skip(f"cannot mount a tmpfs here: {os.strerror(ctypes.get_errno())}")
    try:
        (folder / "filler").write_bytes(bytes(3 << 20))
        yield folder
    finally:
        assert libc.umount(bytes(folder)) == 0


def disk_full_in_background(folder: str) -> None:
    import ctypes
    import os
    import threading
    import time

    import refault

    size = 3 << 20
    x = refault.open(folder + "/file", "w+", dtype="u1", shape=size, resident="1MiB", deadline=None)
    region = refault.region(x)
    base = x.ctypes.data
    writer = threading.Thread(target=ctypes.memset, args=(base, 7, size))
    writer.start()
    deadline = time.monotonic() + 10
    while region.statistics().store_errors < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    assert writer.is_alive(), "where did it put 3 MiB?"
    seen = region.statistics()
    assert seen.resident <= 1 << 20
    assert seen.dirty > 0
    os.unlink(folder + "/filler")
    writer.join(10)
    assert not writer.is_alive()
    assert (x == 7).all()
    del x
    region.close()
    with open(folder + "/file", "rb") as file:
        assert file.read() == b"\7" * size


def test_disk_full_stops_the_writer_and_loses_nothing(small_disk: pathlib.Path) -> None:
    done = run(disk_full_in_background, str(small_disk))
    assert f"{small_disk}/file: cannot write at offset" in done.stderr
    assert "No space left on device" in done.stderr
    assert "free some space" in done.stderr


def disk_full_flush(folder: str) -> None:
    import os

    import numpy as np

    import refault

    size = 3 << 20
    path = folder + "/file"
    right = np.random.default_rng(7).integers(0, 256, size, dtype=np.uint8)
    x = refault.open(path, "w+", dtype="u1", shape=size)
    region = refault.region(x)
    x[:] = right
    for ask in (region.flush, region.evict, region.flush):
        try:
            ask()
        except refault.StoreError as error:
            assert str(error).count(path) == 1, error
            assert "No space left" in str(error) and "free some space" in str(error), error
        else:
            raise AssertionError(ask)
        assert np.array_equal(x, right)
        assert region.statistics().dirty > 0
    os.unlink(folder + "/filler")
    region.flush()
    assert region.statistics().dirty == 0
    assert np.array_equal(np.fromfile(path, "u1"), right)
    assert region.evict() > 0
    assert np.array_equal(x, right)


def test_disk_full_at_flush(small_disk: pathlib.Path) -> None:
    run(disk_full_flush, str(small_disk))


def disk_full_close(folder: str) -> None:
    import time

    import refault

    size = 3 << 20
    x = refault.open(folder + "/file", "w+", dtype="u1", shape=size, deadline=1.0)
    region = refault.region(x)
    x[:] = 9
    del x
    begin = time.monotonic()
    try:
        region.close()
    except refault.StoreError as error:
        text = str(error)
    else:
        raise AssertionError("closed without a word")
    seconds = time.monotonic() - begin
    assert folder + "/file" in text and "No space left" in text and "lost" in text, text
    lost = next(int(word) for word in text.split() if word.isdigit())
    assert 2 << 20 <= lost <= 3 << 20, text
    assert 0.9 < seconds < 5, seconds
    assert region.closed


def test_disk_full_at_close(small_disk: pathlib.Path) -> None:
    done = run(disk_full_close, str(small_disk))
    assert "NOT written" in done.stderr


def hangs(how: str) -> None:
    import ctypes
    import threading
    import time

    import refault
    from helpers import child_tools

    size = 1 << 20
    x = refault.open(child_tools.Hanging(size, free=65_536), dtype="u1", shape=size, deadline=None)
    region = refault.region(x)
    found = ctypes.create_string_buffer(100)
    base = x.ctypes.data

    def touch() -> None:
        ctypes.memmove(found, base + 500_000, 100)

    def populate() -> None:
        region.populate(slice(700_000, 800_000))

    for target in (touch, populate) if how == "waiting" else ():
        threading.Thread(target=target, daemon=True).start()
    assert bytes(x[:100]) == child_tools.content(0, 100)
    region.prefetch()
    time.sleep(0.2)
    if how == "closed":
        del x
        begin = time.monotonic()
        region.close()
        assert time.monotonic() - begin < 1


@pytest.mark.parametrize("how", ["waiting", "prefetched", "closed"])
def test_a_read_that_never_ends_keeps_nobody(how: str) -> None:
    done = run(hangs, how, orphans=4)
    print(f"the child took {done.seconds:.1f} s")
    assert done.seconds < 5


def write_hangs(how: str) -> None:
    import sys
    import time

    import refault
    from helpers import child_tools

    size = 1 << 20
    x = refault.open(child_tools.HangingWrites(size), "r+", dtype="u1", shape=size, deadline=1.0)
    x[5] = 9
    region = refault.region(x)
    if how == "exit":
        sys.array = x  # type: ignore[attr-defined]
        return
    del x
    begin = time.monotonic()
    try:
        region.close()
    except refault.StoreError as error:
        assert "65536" in str(error) and "lost" in str(error), error
    else:
        raise AssertionError("closed without a word")
    assert 0.9 < time.monotonic() - begin < 4


@pytest.mark.parametrize("how", ["close", "exit"])
def test_a_write_that_never_ends_keeps_nobody_longer_than_the_deadline(how: str) -> None:
    done = run(write_hangs, how, orphans=6)
    print(f"the child took {done.seconds:.1f} s")
    assert done.seconds < 8
    assert "NOT written" in done.stderr

"""Native code serves the same faults in the same way as the fault path itself."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest

import refault.native
from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.userfaultfd,
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(
        not refault.native.available(),
        reason="no native library: there was no C compiler when refault was installed",
    ),
]


def played(folder: str, seed: str, page_size: str) -> None:
    """Touch regions of all kinds at random, in one thread, all of it resident; print the counts.

    Snapshots are taken and closed in between, two at a time at most.
    """
    import json
    import random

    import numpy as np

    import refault

    dice = random.Random(int(seed))
    page = int(page_size)
    # So few large ones that no copy is moved to the disk, which takes its time.
    size = (64 if page < 65536 else 24) * page + 8
    path = folder + "/numbers"
    for name in (path, path + "-c"):
        np.arange(size // 8, dtype="u8").tofile(name)
    how: dict[str, Any] = {"page_size": page, "readahead": False}
    arrays = {
        "r": refault.open(path, "r", dtype="u8", **how),
        "r+": refault.open(path, "r+", dtype="u8", **how),
        "c": refault.open(path + "-c", "c", dtype="u8", **how),
        "zeros": refault.zeros(size // 8, "u8", page_size=page),
        "full": refault.full(size // 8, 7, "u8", page_size=page),
        # Begins in the middle of a unit, and ends there: native code leaves both ends alone.
        "part": refault.open(path, "r", dtype="u8", offset=4096 * 3, shape=20 * page // 8, **how),
    }
    truth = {name: np.array(array) * 0 for name, array in arrays.items()}
    numbers = np.arange(size // 8, dtype="u8")
    truth["r+"][:] = truth["r"][:] = truth["c"][:] = numbers
    truth["full"][:] = 7
    truth["part"][:] = numbers[4096 * 3 // 8 :][: len(truth["part"])]
    for array in arrays.values():
        refault.region(array).evict()
    snapshots: list[tuple[refault.Snapshot, dict[str, np.ndarray[Any, Any]]]] = []

    def end_snapshot(at: int) -> None:
        snapshot, then = snapshots.pop(at)
        for name, array in arrays.items():
            wrong = np.flatnonzero(snapshot[array] != then[name])
            assert not len(wrong), (name, wrong)
        snapshot.close()

    copies = 0
    for step in range(4000):
        if dice.random() < 0.005 and len(snapshots) < 2:
            then = {name: content.copy() for name, content in truth.items()}
            snapshots.append((refault.snapshot(*arrays.values()), then))
        elif step > 1000 and dice.random() < 0.005 and snapshots:
            copies += refault.region(arrays["r"]).statistics().copies
            end_snapshot(dice.randrange(len(snapshots)))
        name = dice.choice(list(arrays))
        array = arrays[name]
        index = dice.randrange(len(array))
        if array.flags.writeable and dice.random() < 0.4:
            array[index] = truth[name][index] = dice.randrange(1 << 60)
            if name == "r+":
                truth["r"][index] = truth[name][index]
                if 0 <= index - 4096 * 3 // 8 < len(truth["part"]):
                    truth["part"][index - 4096 * 3 // 8] = truth[name][index]
        else:
            assert array[index] == truth[name][index], (name, index)
        if dice.random() < 0.02:
            place = dice.randrange(len(array))
            refault.region(array).evict(slice(place, place + 3 * page // 8))
    while snapshots:
        end_snapshot(0)
    for name, array in arrays.items():
        wrong = np.flatnonzero(array != truth[name])
        assert not len(wrong), (name, wrong, array[wrong], truth[name][wrong])
    counted = {name: refault.region(array).statistics() for name, array in arrays.items()}
    refault.region(arrays["r+"]).flush()
    assert (np.fromfile(path, "u8") == truth["r+"]).all()
    names = ["faults", "major", "minor", "write_protect_faults", "attempts", "max_attempts"]
    names += ["evictions", "store_reads", "bytes_read", "swap_reads", "resident", "peak_resident"]
    names += ["retries_write_protect", "dirty", "native"]
    assert counted["r+"].retries_write_protect and copies
    assert counted["r"].copies == 0
    found = {name: [getattr(one, n) for n in names] for name, one in counted.items()}
    print(json.dumps({"copies": [copies, 0], **found}))


def counts(folder: pathlib.Path, native: bool, *args: object) -> dict[str, list[int]]:
    folder.mkdir()
    environment = ENVIRONMENT | {"REFAULT_NATIVE": str(int(native))}
    words = [str(folder), *map(str, args)]
    done = run_child(played, timeout=100, args=words, env=environment)
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_same_counts(tmp_path: pathlib.Path, page_size: int) -> None:
    """Whoever serves: as many faults of each kind, as many bytes, as much resident."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    fast = counts(tmp_path / "native", True, seed, page_size)
    plain = counts(tmp_path / "python", False, seed, page_size)
    copied = fast.pop("copies"), plain.pop("copies")
    assert copied[0] == copied[1]
    for name, numbers in fast.items():
        *numbers, served = numbers
        assert served > numbers[0] // 2, f"{name}: native code served {served} of {numbers[0]}"
        if name in ("zeros", "full"):
            continue  # these read ahead, and how far depends on who was quicker
        *expected, by_python = plain[name]
        assert numbers == expected, name
        assert by_python == 0


def crowded(path: str) -> None:
    """Many threads on the same few units: what one maps another finds mapped."""
    import threading

    import numpy as np

    import refault

    expected = np.fromfile(path, "u8")
    wrong: list[int] = []

    def work(x: np.ndarray, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(expected) // 512) * 512
        for _ in range(3):
            # `take` gives the GIL up.
            found = np.take(x, order, mode="clip")
            wrong.extend(np.flatnonzero(found != expected[order]))

    for page_size in (4096, 65536):
        for resident in (None, "2MiB"):
            x = refault.open(path, dtype="u8", page_size=page_size, resident=resident)
            threads = [threading.Thread(target=work, args=(x, seed)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong, wrong[:10]
            seen = refault.region(x).statistics()
            assert seen.native, seen
            assert seen.peak_resident <= (2 << 20 if resident else 1 << 40), seen
            del x, threads


def test_many_threads_on_the_same_pages(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(1, 256)) * (8 << 12) + b"\1" * (8 << 12))
    assert path.stat().st_size == 8 << 20
    run_child(crowded, timeout=100, args=[str(path)], env=ENVIRONMENT | {"REFAULT_NATIVE": "1"})


def near_a_stream(path: str) -> None:
    import random
    import time

    import refault

    # Of a file that may be written to nothing is mapped instead of read.
    x = refault.open(path, "r+", dtype="u8", page_size=4096)
    region = refault.region(x)
    unit = 4096 // 8
    for index in range(1000):
        assert x[index * unit] == index * unit
    before, same = region.statistics().bytes_read, 0
    while same < 5:  # what was begun ahead comes to its end
        time.sleep(0.02)
        now = region.statistics().bytes_read
        before, same = now, same + 1 if now == before else 0
    ahead = region.statistics().readahead
    assert ahead > 1000
    region.evict()
    for index in random.Random(1).sample(range(1003, 15_000), 2000):
        assert x[index * unit] == index * unit
    # The marker and the ends may be among them, or three neighbours: four windows, and not 28.
    assert region.statistics().readahead - ahead <= 4 * 512, region.statistics()


@pytest.mark.parametrize("native", ["0", "1"])
def test_touches_in_no_order_near_a_stream_are_not_its_reader(
    tmp_path: pathlib.Path, native: str
) -> None:
    """However large its windows are: they do not come where the reader must."""
    import numpy as np

    path = tmp_path / "numbers"
    np.arange(1 << 23, dtype="u8").tofile(path)
    environment = ENVIRONMENT | {"REFAULT_NATIVE": native}
    run_child(near_a_stream, timeout=60, args=[str(path)], env=environment)


def cut_short(path: str) -> None:
    import os

    import numpy as np

    import refault

    x = refault.open(path, dtype="u8", page_size="64KiB", readahead=False)
    assert x[0] == 0  # the table learns from the first one
    assert x[1 << 13] == 1 << 13
    assert refault.region(x).statistics().native
    os.truncate(path, 1 << 20)
    print("native until here", flush=True)
    assert (x[: 1 << 17] == np.arange(1 << 17)).all()
    print(x[1 << 18])


def test_file_that_is_cut_short_is_not_read_as_zeros(tmp_path: pathlib.Path) -> None:
    """The file is mapped into the pager, and copied from there: it must not die either."""
    import numpy as np

    path = tmp_path / "numbers"
    np.arange(1 << 19, dtype="u8").tofile(path)
    done = run_child(cut_short, timeout=60, args=[str(path)], env=ENVIRONMENT, expect=-7)
    assert done.stdout == "native until here\n"
    assert "shorter than" in done.stderr


def errors_and_back(path: str) -> None:
    """While a unit has an error the fault path serves alone; then native code goes on."""
    import refault
    from helpers import child_tools

    size = 1 << 20
    store = child_tools.Flaky(size, 2)
    y = refault.open(store, dtype="u1", shape=size, page_size=4096, readahead=False)
    assert y[0] == child_tools.content(0, 1)[0]
    x = refault.open(path, dtype="u1", page_size=4096, readahead=False)
    for index in range(0, 1 << 20, 4096):
        assert x[index] == 5
    seen = refault.region(x).statistics()
    assert seen.native > 200, seen


def test_an_error_of_one_region_is_no_matter_of_another(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fives"
    path.write_bytes(b"\5" * (1 << 20))
    run_child(errors_and_back, timeout=60, args=[str(path)], env=ENVIRONMENT)


def pressed(path: str) -> None:
    """A quarter fits: room is made while native code serves, which is never refused any."""
    import refault

    x = refault.open(path, dtype="u1", page_size=4096, readahead=False, resident="4MiB")
    for index in range(0, 16 << 20, 4096):
        assert x[index] == 5
    seen = refault.region(x).statistics()
    assert seen.faults == 4096, seen
    assert seen.evictions > 3000, seen
    assert seen.peak_resident <= 4 << 20, seen
    # The first ones teach the table what to do.
    assert seen.faults - seen.native <= 8, seen


def test_room_is_made_before_native_code_needs_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fives"
    path.write_bytes(b"\5" * (16 << 20))
    run_child(pressed, timeout=60, args=[str(path)], env=ENVIRONMENT)


def spread_out() -> None:
    """16 TiB, a unit here and there: what the pager needs for each is one page of states."""
    import pathlib

    import refault
    from refault.client.connection import current

    x = refault.zeros(16 << 40, "u1", page_size="64KiB")
    connection = current()
    assert connection is not None

    def page_faults() -> int:
        stat = pathlib.Path(f"/proc/{connection.pager}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[7])

    step = len(x) // 2000
    for index in range(100):
        assert x[index * step] == 0
    before = page_faults()
    for index in range(100, 2000):
        assert x[index * step] == 0
    seen = refault.region(x).statistics()
    assert seen.native > 1900, seen
    assert 1900 <= page_faults() - before <= 1900 * 1.25, page_faults() - before


def test_one_page_of_states_for_a_unit_in_a_sparse_region() -> None:
    run_child(spread_out, timeout=60, env=ENVIRONMENT)

"""Arrays whose pages come over a network: right, or a loud failure; whatever the server does."""

from __future__ import annotations

import io
import json
import pathlib
import signal
import zipfile
from typing import Any

import numpy as np
import pytest

from helpers.child import Result, run_child
from helpers.child_tools import ENVIRONMENT, content
from helpers.object_server import object_server
from helpers.s3_server import S3
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd, pytest.mark.slow]

ROWS = 2048
"""Of 4 KiB: 8 MiB."""


def run(code: Any, *args: str, timeout: float = 60) -> Result:
    return run_child(code, timeout=timeout, args=args, env=ENVIRONMENT)


def npy() -> bytes:
    """A ``.npy`` file of `ROWS` rows, no two alike."""
    file = io.BytesIO()
    np.save(file, np.frombuffer(content(0, ROWS * 4096), "u1").reshape(ROWS, 4096))
    return file.getvalue()


def compare(url: str, wanted: str = "", options: str = "{}") -> None:
    """All in order, then at random; what is wanted of the counters."""
    import json

    import numpy as np

    import refault
    from helpers.child_tools import content

    x = refault.open(url, resident="1MiB", storage_options=json.loads(options))
    assert (x.shape, x.dtype) == ((2048, 4096), "u1")
    right = np.frombuffer(content(0, x.nbytes), "u1").reshape(x.shape)
    for row in range(len(x)):
        assert np.array_equal(x[row], right[row]), row
    for row in np.random.default_rng(1).permutation(len(x))[:200]:
        assert np.array_equal(x[row], right[row]), row
    seen = refault.region(x).statistics()
    assert seen.peak_resident <= 1 << 20, seen
    assert seen.given_up == 0, seen
    print("retries after errors:", seen.retries_store_error, "errors:", seen.store_errors)
    if wanted == "errors":
        assert seen.retries_store_error > 0, seen
        assert seen.store_errors > 0, seen
    else:
        assert seen.store_errors == 0, seen


def test_an_array_behind_http() -> None:
    with object_server(npy()) as server:
        run(compare, server.url)


def first_elements(url: str, row: str) -> None:
    import refault

    assert refault.open(url, resident="1MiB")[int(row), 0] == (1 + int(row) * 4096) % 251


@pytest.mark.parametrize(("row", "requests"), [(0, 1), (2047, 2)])
def test_first_element_takes_two_requests_at_most(row: int, requests: int) -> None:
    """The header comes with size, version and the first bytes."""
    with object_server(npy()) as server:
        run(first_elements, server.url, str(row))
        assert server.requests == requests


def joined(url: str) -> None:
    import refault

    x = refault.open(url, resident="64MiB")
    refault.region(x).populate()


def test_neighbouring_pages_are_one_request() -> None:
    with object_server(npy()) as server:
        run(joined, server.url)
        # 8 MiB in requests of 2 MiB, and 4 MiB begun at a time.
        assert server.requests < 12


def through_a_folder(url: str, folder: str) -> None:
    import os
    import pickle

    import numpy as np

    import refault
    from helpers.child_tools import content

    os.chdir(folder)
    x = refault.open(url, cache="kept", cache_size="64MiB", resident="1MiB")
    right = np.frombuffer(content(0, x.nbytes), "u1").reshape(x.shape)
    assert np.array_equal(x, right)
    handle = pickle.loads(pickle.dumps(refault.handle(x[5:9])))
    os.chdir("/")
    assert np.array_equal(refault.open(handle), right[5:9])
    for bad, text in (
        ({"mode": "r+", "cache": "kept"}, "put an Overlay in front"),
        ({"cache": "kept", "cache_size": "1KiB"}, "no room for one block"),
        ({"cache_size": "1GiB"}, "give its folder as cache"),
    ):
        try:
            refault.open(url, **bad)
        except refault.UsageError as error:
            assert text in str(error), error
        else:
            raise AssertionError(bad)


def test_what_was_read_is_kept_in_a_folder(tmp_path: pathlib.Path) -> None:
    with object_server(npy()) as server:
        run(through_a_folder, server.url, str(tmp_path))
        before = server.requests
        run(through_a_folder, server.url, str(tmp_path))
        # Each opening asks for size and version, and reads the rest from the folder.
        assert server.requests - before <= 8
    assert sum(file.stat().st_size for file in (tmp_path / "kept").rglob("*")) >= 8 << 20


def side_by_side(url: str) -> None:
    import refault

    x = refault.open(url, resident="64MiB")
    region = refault.region(x)
    for row in range(40, len(x), 32):
        region.prefetch(x[row])
    region.populate(slice(2000, 2001))


def test_requests_run_side_by_side_and_no_more_than_said() -> None:
    with object_server(npy(), latency=0.3) as server:
        run(side_by_side, server.url)
        assert 24 <= server.most <= 32


def demand(url: str, prefetched: str) -> None:
    """Touch one page while many others are read for nobody, none of which is answered before."""
    import refault
    from refault.stores import Obstore, Policy

    store = Obstore.from_url(url, policy=Policy(parallel=4, timeout=50))
    x = refault.open(store, resident="64MiB")
    region = refault.region(x)
    for row in range(32, 1900, 32):
        region.prefetch(x[row])
    if prefetched:
        region.prefetch(x[2000])
    assert x[2000, 0] == (1 + 2000 * 4096) % 251


@pytest.mark.parametrize("prefetched", ["", "prefetched"])
def test_what_is_waited_for_goes_before_what_is_read_ahead(prefetched: str) -> None:
    with object_server(npy(), until=128 + 2000 * 4096) as server:
        run(demand, server.url, prefetched, timeout=25)
        assert server.asked.is_set()


def test_an_array_in_s3(s3: S3) -> None:
    run(compare, s3.put("array.npy", npy()), "", json.dumps(s3.options))


def environment(url: str, *variables: str) -> None:
    import os

    import refault

    refault.zeros(1)[0] = 1
    # The pager runs already.
    os.environ.update(variable.split("=", 1) for variable in variables)
    assert refault.open(url, resident="1MiB")[1000, 0] == 1 + 1000 * 4096 % 251


def test_what_is_not_given_is_taken_from_the_environment(s3: S3) -> None:
    url = s3.put("environment.npy", npy())
    run(environment, url, *(f"{name}={value}" for name, value in s3.environment.items()))


def test_an_array_in_an_archive(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("x.npy", npy())
    run(compare, f"zip://x.npy::{tmp_path}/all.zip")


def test_a_file_by_its_url(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a b.npy").write_bytes(npy())
    run(compare, (tmp_path / "a b.npy").as_uri())


@pytest.mark.parametrize("percent", [1, 20])
def test_faults_are_never_seen_but_in_the_statistics(percent: int) -> None:
    """Errors, resets, short bodies and short answers; what hangs is in the next test."""
    each = percent / 400
    faults = {"error": each, "reset": each, "short": each, "less": each}
    with object_server(npy(), faults=faults) as server:
        run(compare, server.url, "errors")
        assert server.failed > 0


def hang(url: str) -> None:
    """Read through requests of which many hang for 100 s."""
    import numpy as np

    import refault
    from helpers.child_tools import content
    from refault.stores import Obstore, Policy

    store = Obstore.from_url(url, policy=Policy(timeout=0.3))
    x = refault.open(store, resident="1MiB")
    right = np.frombuffer(content(0, x.nbytes), "u1").reshape(x.shape)
    for row in range(0, len(x), 64):
        assert np.array_equal(x[row], right[row]), row
    seen = refault.region(x).statistics()
    assert seen.store_errors > 0, seen
    assert seen.retries_store_error > 0, seen
    assert seen.given_up == 0, seen


def test_a_request_that_hangs_is_given_up_and_the_page_asked_for_again() -> None:
    with object_server(npy(), faults={"hang": 0.2}) as server:
        done = run(hang, server.url)
        assert server.failed > 0
    assert "no answer in time" in done.stderr


def hedge(url: str) -> None:
    """The first request for each range hangs, and nobody notices."""
    import numpy as np

    import refault
    from helpers.child_tools import content
    from refault.stores import Obstore, Policy

    store = Obstore.from_url(url, policy=Policy(timeout=90, hedge_after=0.05))
    x = refault.open(store, resident="1MiB")
    right = np.frombuffer(content(0, x.nbytes), "u1").reshape(x.shape)
    for row in range(0, len(x), 128):
        assert np.array_equal(x[row], right[row]), row
    seen = refault.region(x).statistics()
    assert seen.store_errors == 0, seen


def test_a_second_request_beside_one_that_hangs() -> None:
    with object_server(npy(), hang_first=True) as server:
        run(hedge, server.url)


def test_a_server_that_is_stopped_and_started_again() -> None:
    with object_server(npy(), stop_at=30, stop_seconds=1) as server:
        done = run(compare, server.url, "errors")
        assert server.stop_at == 0
    assert "no connection to the server" in done.stderr


def changed(url: str) -> None:
    import urllib.request

    import refault

    x = refault.open(url, resident="1MiB", deadline=60)
    region = refault.region(x)
    region.populate(slice(0, 16))
    here = x[:16].copy()
    urllib.request.urlopen(url.replace("object.npy", "change")).close()
    try:
        region.populate(slice(1000, 1001))
    except refault.StoreError as error:
        assert error.permanent, error
        assert "has changed since it was opened" in str(error), error
    else:
        raise AssertionError("bytes of another version were read")
    assert (x[:16] == here).all()


def test_an_object_that_changes_is_an_error_at_once() -> None:
    with object_server(npy()) as server:
        run(changed, server.url)


def elsewhere(url: str) -> None:
    """A store that hangs holds nobody up but who waits for it."""
    import refault
    from refault.stores import Obstore, Policy

    x = refault.open(Obstore.from_url(url, policy=Policy(timeout=60)), resident="1MiB")
    for row in range(0, 2048, 16):
        refault.region(x).prefetch(slice(row, row + 1))
    y = refault.zeros(1 << 22, "u1", resident="1MiB")
    y[:] = 5
    assert y.sum() == 5 * len(y)
    assert refault.region(y).statistics().given_up == 0


def test_a_server_that_hangs_delays_no_other_region() -> None:
    with object_server(npy(), faults={"hang": 1.0}) as server:
        run(elsewhere, server.url)


def refused(folder: str) -> None:
    import refault

    for path, options in ((folder + "/x.npy", {"anon": True}), ("file:///x.npy", {"anon": True})):
        try:
            refault.open(path, storage_options=options)
        except refault.UsageError as error:
            assert "takes no storage_options" in str(error)
        else:
            raise AssertionError(path)
    for path, text in (
        (folder + "/x.npy", "takes no cache"),
        (folder + "/x.zarr", "give chunk_cache"),
        ("https://localhost/x.zarr", "give chunk_cache"),
    ):
        try:
            refault.open(path, cache=folder)
        except refault.UsageError as error:
            assert text in str(error)
        else:
            raise AssertionError(path)
    try:
        refault.open("file://elsewhere/x.npy")
    except refault.UsageError as error:
        assert "on another machine" in str(error)
    else:
        raise AssertionError("opened")


def test_what_makes_no_sense_is_refused(tmp_path: pathlib.Path) -> None:
    run(refused, str(tmp_path))


def change(url: str, options: str, end: str) -> None:
    """Change rows here and there, in much less memory than they take; then end."""
    import json
    import os
    import signal

    import numpy as np

    import refault

    x = refault.open(url, mode="r+", resident="1MiB", storage_options=json.loads(options))
    model = np.array(x)
    draw = np.random.default_rng(5)
    for number in range(300):
        row = draw.integers(len(x))
        x[row] = model[row] = number % 256
    for row in draw.permutation(len(x))[:300]:
        assert np.array_equal(x[row], model[row]), row
    region = refault.region(x)
    np.save("model.npy", model)
    if end == "flush":
        region.flush()
        x[0] = model[0] = 77
        region.flush()
        np.save("model.npy", model)
        assert np.array_equal(x, model)
    elif end == "close":
        del x
        region.close()
    elif end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["flush", "close", "nothing", "kill"])
def test_changes_are_in_the_object_however_the_program_ends(
    s3: S3, tmp_path: pathlib.Path, end: str
) -> None:
    url = s3.put(f"{end}.npy", npy())
    run_child(
        change,
        timeout=60,
        args=[url, json.dumps(s3.options), end],
        env=ENVIRONMENT,
        cwd=tmp_path,
        expect=-signal.SIGKILL if end == "kill" else 0,
        orphans=30,
    )
    assert s3.get(f"{end}.npy") == (tmp_path / "model.npy").read_bytes()


def overtaken(url: str, options: str) -> None:
    """Somebody else replaces the object while it is open for writing."""
    import json

    import obstore

    import refault
    from refault.stores import Obstore

    store = Obstore.from_url(url, **json.loads(options))
    x = refault.open(store, mode="r+", resident="1MiB")
    region = refault.region(x)
    x[:4] = 9
    obstore.put(store._store, store.path, bytes(store.size))
    for ask in (region.flush, lambda: region.populate(slice(1000, 1001))):
        try:
            ask()
        except refault.StoreError as error:
            assert error.permanent, error
            assert "has changed since it was opened" in str(error), error
        else:
            raise AssertionError("overwritten, or mixed")
    assert (x[:4] == 9).all()


def test_another_programs_change_is_not_overwritten(s3: S3) -> None:
    data = npy()
    url = s3.put("overtaken.npy", data)
    done = run(overtaken, url, json.dumps(s3.options))
    assert s3.get("overtaken.npy") == bytes(len(data))
    assert "NOT written and are lost" in done.stderr


def no_changes(url: str) -> None:
    import refault

    try:
        refault.open(url, mode="r+", resident="1MiB")
    except refault.UsageError as error:
        assert "cannot be changed" in str(error), error
    else:
        raise AssertionError("opened")
    x = refault.open(url, mode="c", resident="1MiB")
    x[5] = 3
    assert (x[5] == 3).all()


def test_what_cannot_be_replaced_is_refused_when_it_is_opened(tmp_path: pathlib.Path) -> None:
    with object_server(npy()) as server:
        run(no_changes, server.url)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("x.npy", npy())
    run(no_changes, f"zip://x.npy::{tmp_path}/all.zip")

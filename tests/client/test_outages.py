"""Servers that are killed in the middle of a run and started again: the run ends right.

REFAULT_OUTAGE_SECONDS=10 has them away for so long, beside the time that it takes to be missed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import threading
import time

import numpy as np
import pytest

from helpers import servers
from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.s3_files import s3_files
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd]

SECONDS = float(os.environ.get("REFAULT_OUTAGE_SECONDS", "0"))
LIMIT = 60.0


def outage(folder: str, described: str) -> None:
    """Read half of everything; all servers vanish; the rest is read when they are back."""
    import concurrent.futures
    import json
    import pathlib
    import time

    import numpy as np

    import refault
    from refault.stores import Redis

    place, given = pathlib.Path(folder), json.loads(described)
    right = np.load(place / "x.npy")
    how = {"resident": right.nbytes // 8, "page_size": "16KiB"}
    redis = Redis(given["redis"], "x", size=right.nbytes)
    redis.write_from(0, memoryview(right).cast("B"))
    far = refault.zeros(right.shape, right.dtype, swap=given["redis"], **how)
    far[:] = right
    arrays = {
        "http": refault.open(given["http"] + "/x.npy", **how),
        "s3": refault.open("s3://bucket/x.npy", storage_options=given["s3"], **how),
        "redis": refault.open(redis, dtype=right.dtype, shape=right.shape, **how),
        "swap": far,
    }
    half = len(right) // 2
    for name, x in arrays.items():
        assert np.array_equal(x[:half], right[:half]), name
    (place / "half").touch()
    while not (place / "gone").exists():
        time.sleep(0.01)

    def rest(name: str) -> None:
        x = arrays[name]
        for row in range(half, len(right), 16):
            # It waits without the GIL, so all of them are asked while nobody answers.
            refault.region(x).populate(slice(row, row + 16))
            assert np.array_equal(x[row : row + 16], right[row : row + 16]), (name, row)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = [threads.submit(rest, name) for name in arrays]
        missed = set()
        while missed < arrays.keys() and not all(one.done() for one in running):
            missed |= {
                name for name, x in arrays.items() if refault.region(x).statistics().store_errors
            }
            time.sleep(0.01)
        (place / "missed").touch()
        for one in running:
            one.result()
    for name, x in arrays.items():
        seen = refault.region(x).statistics()
        assert seen.store_errors > 0 and seen.retries_store_error > 0, (name, seen)
        assert seen.given_up == 0, (name, seen)
        print(name, "errors:", seen.store_errors, "retries:", seen.retries_store_error)


def wait_for(path: pathlib.Path, ended: threading.Event) -> None:
    while not path.exists():
        assert not ended.wait(0.01), f"{path.name}: did not happen"


def test_servers_that_are_killed_and_started_again(tmp_path: pathlib.Path) -> None:
    array = np.random.default_rng(1).standard_normal((512, 1024), "f4")
    file, ended = io.BytesIO(), threading.Event()
    np.save(file, array)
    with contextlib.ExitStack() as stack:
        nginx = stack.enter_context(servers.nginx())
        s3 = stack.enter_context(s3_files())
        redis = stack.enter_context(servers.redis())
        all_of_them = (nginx, s3, redis)
        for folder in (nginx.root, s3.root, tmp_path):
            (folder / "x.npy").write_bytes(file.getvalue())

        def vanish() -> None:
            wait_for(tmp_path / "half", ended)
            for server in all_of_them:
                server.kill()
            (tmp_path / "gone").touch()
            wait_for(tmp_path / "missed", ended)
            time.sleep(SECONDS)
            for server in all_of_them:
                server.start()

        described = {"http": nginx.url, "s3": s3.options, "redis": redis.url}
        with concurrent.futures.ThreadPoolExecutor() as threads:
            vanished = threads.submit(vanish)
            args = [str(tmp_path), json.dumps(described)]
            try:
                done = run_child(
                    outage,
                    timeout=LIMIT + 2 * SECONDS,
                    args=args,
                    env=ENVIRONMENT,
                    beside=lambda: [server.pid for server in all_of_them],
                )
            finally:
                ended.set()
            vanished.result()
    print(done.stdout)

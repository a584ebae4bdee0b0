"""A memory cgroup: the only way to give a memory-mapped file a bound like `resident`.

Its own child of the cgroup that we are in, so that whatever bounds us goes on to do so.  Version 1
where the memory controller is mounted, version 2 otherwise; there a process may have
children with a memory controller only if it is not itself in their parent (start the
benchmarks with ``systemd-run --user --scope -p Delegate=yes`` then, or as root).

A page of the page cache is charged to whoever brought it in.  So a file must be out of the
page cache before a child in a cgroup reads it: otherwise it would use what is
charged to somebody else, and there would be no bound.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

from benchmarks.model import Missing

__all__ = ["memory_group"]

ROOT = pathlib.Path("/sys/fs/cgroup")
REMOVE_SECONDS = 10.0


@contextlib.contextmanager
def memory_group(size: int) -> Iterator[pathlib.Path]:
    """Make a cgroup that may hold `size` bytes; it is removed afterwards.

    Raises
    ------
    Missing
        It is not allowed here.
    """
    parent, limit = _place()
    group = parent / f"refault-benchmark-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Missing(f"no memory cgroup: {error.strerror}: {group}") from error
    try:
        try:
            (group / limit).write_text(str(size))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
        except OSError as error:
            raise Missing(f"no memory cgroup: {error.strerror}: {group / limit}") from error
        yield group
    finally:
        _remove(group)


def _place() -> tuple[pathlib.Path, str]:
    """The cgroup that we are in, and the name of the file with the limit."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _first(ROOT / "memory", path), "memory.limit_in_bytes"
        if not controllers and (ROOT / "cgroup.controllers").exists():
            return _first(ROOT, path), "memory.max"
    raise Missing("no memory cgroup: the controller is not mounted")


def _first(root: pathlib.Path, path: str) -> pathlib.Path:
    # In a container the path may be that of the host.
    own = root / path.lstrip("/")
    return own if own.exists() else root


def _remove(group: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        (group / "memory.force_empty").write_text("0")
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return

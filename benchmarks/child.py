"""Every contender measures in a process of its own: a fresh region, a fresh pager.

`call` runs a function of a module there and returns the dict that it returns, sent as JSON through
a pipe.  The time is taken inside.  It returns when the pager has ended too, so that no
work of one contender falls into the time of the next.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import refault
from benchmarks.cgroup import memory_group
from benchmarks.model import Contender, Missing, Sample

__all__ = ["call", "contender"]

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 1800.0


def contender(
    name: str,
    function: Callable[..., dict[str, float]],
    *,
    before: Callable[[], None] | None = None,
    group: int | None = None,
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Contender:
    """Make a contender that runs in a child process.

    Parameters
    ----------
    function
        At the top of its module.
    before
        Called before each run, in this process: sets the page cache up, for example.
    group
        Bytes of the memory cgroup that the child, and its pager, are put into.
    environment
        Variables that the child, and its pager, have besides ours.
    **arguments
        What the function gets; it must be possible to say it in JSON.
    """

    def run() -> Sample:
        if before is not None:
            before()
        return call(function, arguments, group=group, environment=environment)

    return Contender(name, run)


def call(
    function: Callable[..., dict[str, float]],
    arguments: dict[str, Any],
    *,
    group: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Call a function in a child process.

    Raises
    ------
    Missing
        The child says so, or there can be no cgroup.
    RuntimeError
        The child has failed.
    """
    with contextlib.ExitStack() as stack:
        path = "" if group is None else str(stack.enter_context(memory_group(group)))
        read, write = os.pipe()
        stack.enter_context(answer := os.fdopen(read, "rb"))
        name = f"{function.__module__}:{function.__qualname__}"
        words = [name, json.dumps(arguments), str(write), path]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.child", *words],
                cwd=ROOT,
                env=_environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # The pager has it too: its end is the end of both.
                stderr=subprocess.PIPE,
                pass_fds=[write],
                timeout=SECONDS,
                check=False,
            )
        finally:
            os.close(write)
        text = answer.read()
    if done.returncode or not text:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RuntimeError(f"{name} ended with {done.returncode}: {lines[-1][:300]}")
    found: dict[str, Any] = json.loads(text)
    if "missing" in found:
        raise Missing(found["missing"])
    return found


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(pathlib.Path(refault.__file__).parents[1])]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    # numpy's own threads would be on the CPUs that are measured.
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)}


def _main(name: str, arguments: str, fd: str, group: str) -> None:
    if group:
        pathlib.Path(group, "cgroup.procs").write_text(str(os.getpid()))
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    except Missing as error:
        found = {"missing": str(error)}
    with os.fdopen(int(fd), "w") as answer:
        json.dump(found, answer)


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""Every contender measures in a process of its own: a fresh region, a fresh pager.

`call` runs a function of a module there and returns the dict that it returns, sent as JSON through
a pipe.  The time is taken inside.  It returns when the pager has ended too, so that no
work of one contender falls into the time of the next.

Contenders that differ little, and need long to come to what is to be measured, are compared in
slices instead (`staying`): their processes stay, and in each round each goes on for a second or so,
while the others wait.  A machine that is slower for a minute is so for all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pathlib
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import refault
from benchmarks.cgroup import memory_group
from benchmarks.model import Contender, Missing, Sample

__all__ = ["call", "contender", "staying"]

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


def staying(
    name: str,
    function: Callable[..., Iterator[dict[str, float]]],
    *,
    before: Callable[[], None],
    **arguments: Any,
) -> Contender:
    """Make a contender whose child process stays until the comparison is over.

    Parameters
    ----------
    function
        At the top of its module.  A generator: each run lets it go on to its next ``yield``.
    before
        Called before the first run, in this process.
    **arguments
        As for `contender`.
    """
    children: list[_Child] = []

    def run() -> Sample:
        if not children:
            before()
            children.append(_Child(function, arguments))
        return children[0].measure()

    def end() -> None:
        if children:
            children.pop().end()

    return Contender(name, run, end)


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
        child = _Child(function, arguments, path, environment)
        try:
            found = child.measure()
        finally:
            child.end()
    if child.process.returncode:
        raise child.failure()
    return found


class _Child:
    """A child process that measures whenever it is told to."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        group: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"{function.__module__}:{function.__qualname__}"
        read, write = os.pipe()
        self.answers = os.fdopen(read, "rb")
        self.said = ""
        words = [self.name, json.dumps(arguments), str(write), group]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.child", *words],
                cwd=ROOT,
                env=_environment() | dict(environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # The pager has it too: its end is the end of both.
                stderr=subprocess.PIPE,
                pass_fds=[write],
            )
        finally:
            os.close(write)

    def measure(self) -> dict[str, float]:
        """Tell it to measure once, and wait for the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), b"\n")
        there, _, _ = select.select([self.answers], [], [], SECONDS)
        if not there:
            self.process.kill()
            raise RuntimeError(f"{self.name} has not answered for {SECONDS:g} s")
        line = self.answers.readline()
        if not line:
            self.end()
            raise self.failure()
        found: dict[str, Any] = json.loads(line)
        if "missing" in found:
            raise Missing(found["missing"])
        return found

    def end(self) -> None:
        """End it, and wait until its pager has ended too."""
        if not self.answers.closed:
            self.answers.close()
            _, said = self.process.communicate(timeout=SECONDS)
            self.said = said.decode(errors="replace")

    def failure(self) -> RuntimeError:
        """What it ended with, and the last that it or its pager has said."""
        last = (self.said.strip().splitlines() or ["no message"])[-1]
        return RuntimeError(f"{self.name} ended with {self.process.returncode}: {last[:300]}")


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
    measure = getattr(importlib.import_module(module), function)
    going = None
    if inspect.isgeneratorfunction(measure):
        going = measure(**json.loads(arguments))
    with os.fdopen(int(fd), "w") as answers:
        for _ in sys.stdin:
            try:
                found = measure(**json.loads(arguments)) if going is None else next(going)
            except Missing as error:
                found = {"missing": str(error)}
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])

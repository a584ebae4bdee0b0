"""The yardstick ``limit.c`` as contenders; what it does is told there."""

from __future__ import annotations

import json
import pathlib
import subprocess

from benchmarks.compiler import build
from benchmarks.model import Contender, Missing, Sample

__all__ = ["limit"]

SECONDS = 300.0


def limit(
    name: str,
    mode: str,
    *,
    unit: int,
    units: int,
    touches: int,
    warm: int,
    path: pathlib.Path | None = None,
    threads: int = 1,
    handler: str = "process",
    cpu: int | None = None,
) -> Contender:
    """Make a contender.

    Parameters
    ----------
    mode
        "copy", "share", "fill" or "continue".
    warm
        Touches before those that count.
    path
        What is read for every page; None: bytes in memory.
    handler
        "process" or "thread".
    cpu
        Where faulting threads and handler are bound to; None: nowhere.
    """

    def run() -> Sample:
        where = str(-1 if cpu is None else cpu)
        numbers = [str(number) for number in (unit, units, touches, warm, threads)]
        command = [str(build("limit.c")), mode, *numbers, handler, where, where]
        command += [str(path)] if path is not None else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise Missing(done.stderr.strip() or f"limit ended with {done.returncode}")
        found: dict[str, float] = json.loads(done.stdout)
        return found

    return Contender(name, run)

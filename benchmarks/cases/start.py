"""From nothing to the first page, and what a pager that does nothing needs.

*served*: from the call of `refault.open` in a program that has imported refault and numpy already,
to the first element of a file in the page cache: pager started, file opened, page served.
*with imports*: from before ``import refault``, with numpy.  *program*: from the start of the
interpreter to its end; the bare interpreter with numpy is its yardstick.

*pager* is the resident set of the pager process half a second after that; *private* is what pager
and guardian would give back if they ended (shared pages of the interpreter are not counted).
The memory of the region itself is not in it: the pager does not map it.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.child import contender
from benchmarks.files import numbers_file, warm
from benchmarks.model import Comparison, Contender, Goal, Measure, Sample, Settings
from benchmarks.pagers import pager_memory

__all__ = ["comparisons", "serve"]

PROGRAM = "import refault, sys; print(refault.open(sys.argv[1], dtype='u8')[1])"
YARDSTICK = "import numpy, sys; print(numpy.memmap(sys.argv[1], 'u8', 'r')[1])"


def comparisons(settings: Settings) -> Iterator[Comparison]:
    path = numbers_file(settings.data, 64 << 20)
    warm(path)

    def program(name: str, code: str) -> Contender:
        def run() -> Sample:
            import refault

            source = str(pathlib.Path(refault.__file__).parents[1])
            begin = time.perf_counter_ns()
            subprocess.run(
                [sys.executable, "-c", code, str(path)],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": source},
                timeout=60,
            )
            return {"program": (time.perf_counter_ns() - begin) / 1e6}

        return Contender(name, run)

    yield Comparison(
        "start: to the first page, and the pager at rest",
        [
            contender("refault", serve, path=str(path)),
            program("program with refault", PROGRAM),
            program("program with memmap", YARDSTICK),
        ],
        [
            Measure("served", "ms", 1),
            Measure("with_imports", "ms", 1),
            Measure("program", "ms", 1),
            Measure("pager_mib", "MiB", 1),
            Measure("both_private_mib", "MiB", 1),
        ],
        [
            Goal("refault", "served", at_most=250),
            Goal("refault", "pager_mib", at_most=60),
            Goal("refault", "both_private_mib", at_most=60),
        ],
    )


def serve(path: str) -> dict[str, float]:
    """Open a file and touch its second element.

    The function's module has numpy loaded; what importing costs is asked of another interpreter.
    """
    code = "import time; t = time.perf_counter_ns(); import refault, numpy; refault.open;"
    code += "print(time.perf_counter_ns() - t)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, timeout=60
    )
    import refault

    opener = refault.open
    begin = time.perf_counter_ns()
    array = opener(path, dtype="u8")
    value = int(array[1])
    served = time.perf_counter_ns() - begin
    if value != 1:
        raise RuntimeError(f"read {value}")
    time.sleep(0.5)
    found = {"served": served / 1e6, "with_imports": (served + int(done.stdout)) / 1e6}
    return found | pager_memory()

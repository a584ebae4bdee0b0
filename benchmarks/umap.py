"""UMap's own programs, if they are installed: ``--umap DIR``.  Nothing of UMap is in here.

pfbenchmark is run on our file (``--noinit``).  umapsort makes its file anew in any case, and so has
to fill it itself: without that it sorts zeros, and then says that they are not what it expects.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
from collections.abc import Callable

from benchmarks.model import Contender, Missing, Sample, Settings

__all__ = ["umap_faults", "umap_sort"]

SECONDS = 1800.0
PROGRAMS = {
    "read": "pfbenchmark-read",
    "write": "pfbenchmark-write",
    "read-modify-write": "pfbenchmark-readmodifywrite",
}


def umap_faults(
    settings: Settings,
    operation: str,
    *,
    pages: int,
    buffer: int,
    threads: int,
    path: pathlib.Path,
    before: Callable[[], None],
) -> Contender:
    """pfbenchmark, 4 KiB pages, shuffled.

    Parameters
    ----------
    path
        The file; it holds the word's number in every word, or the program ends with status 1.
    before
        Called before each run.
    """

    def run() -> Sample:
        before()
        changed = path.stat().st_mtime_ns
        words = ["--noinit", "--shuffle", "-p", str(pages), "-t", str(threads), "-f", str(path)]
        text = _run(settings, PROGRAMS[operation], words, page=4096, buffer=buffer)
        # "umap,shuffle,read,THREADS,UFFD THREADS,NANOSECONDS"
        found = re.findall(r"^umap,.*,(\d+)$", text, re.MULTILINE)
        if not found:
            raise Missing(f"UMap printed no time: {text[-200:]!r}")
        stored = path.stat().st_mtime_ns != changed
        return {"us": int(found[-1]) / 1000, "stored": float(stored)}

    return Contender("UMap", run)


def umap_sort(
    settings: Settings, *, size: int, buffer: int, page: int, path: pathlib.Path
) -> Sample:
    """Sort with one thread, by UMap's umapsort; `path` is replaced."""
    words = ["-p", str(size // page), "-t", "1", "-f", str(path)]
    text = _run(settings, "umapsort", words, page=page, buffer=buffer // page)
    found = re.search(r"Sort took ([\d.]+) seconds", text)
    if found is None:
        raise Missing(f"UMap printed no time: {text[-200:]!r}")
    return {"sort": float(found[1])}


def _run(settings: Settings, program: str, words: list[str], *, page: int, buffer: int) -> str:
    if settings.umap is None:
        raise Missing("not measured: no --umap DIR")
    places = [settings.umap / "bin" / program, settings.umap / program]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise Missing(f"not measured: no {program} in {settings.umap}")
    libraries = os.pathsep.join(str(settings.umap / name) for name in ("lib", "lib64"))
    environment = os.environ | {
        "UMAP_PAGESIZE": str(page),
        "UMAP_BUFSIZE": str(buffer),
        "LD_LIBRARY_PATH": libraries,
    }
    done = subprocess.run(
        [str(found), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[-300:]
        raise Missing(f"{program} ended with {done.returncode}: {said}")
    # pfbenchmark says its time there, umapsort here.
    return done.stdout + done.stderr

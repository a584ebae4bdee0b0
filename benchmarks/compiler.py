"""The C programs of the benchmarks: compiled once per run, if a compiler is there."""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import subprocess

from benchmarks.model import Missing

__all__ = ["build"]

HERE = pathlib.Path(__file__).parent
VARIABLE = "REFAULT_BENCHMARKS_BUILT"
"""Where the parent process has put what it compiled; its children look there."""


@functools.cache
def build(source: str, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Compile ``limit.c`` to a program, or ``touch.c`` to a library.

    Parameters
    ----------
    folder
        Where to put it; by default where the parent process did.

    Raises
    ------
    Missing
        There is no compiler, or it fails.
    """
    target = folder or pathlib.Path(os.environ.get(VARIABLE, ""))
    name = pathlib.Path(source).stem
    flags = ["-shared", "-fPIC"] if name == "touch" else ["-pthread"]
    built = target / (name + (".so" if name == "touch" else ""))
    if built.is_absolute() and built.exists():
        return built
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Missing("no C compiler (cc)")
    if folder is None:
        raise Missing(f"{source} has not been compiled")
    command = [compiler, "-O2", "-Wall", "-Wextra", *flags, "-o", str(built), str(HERE / source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise Missing(f"{source} does not compile: {done.stderr.strip()[:500]}")
    os.environ[VARIABLE] = str(target)
    return built

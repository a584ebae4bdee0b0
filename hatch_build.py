"""Builds the native part of refault if there is a C compiler; without one nothing is missing.

``src/refault/native/*.c`` becomes one shared library beside them.  It does not use Python's
own headers and is loaded with ctypes, so one library serves every CPython.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src", "refault", "native")
FLAGS = ["-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror=vla"]


class NativeBuildHook(BuildHookInterface[Any]):
    """Compile, or say that there is no compiler."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        library = folder / "_native.so"
        library.unlink(missing_ok=True)
        if sys.platform != "linux":
            return
        compiler = shlex.split(os.environ.get("CC", "cc"))
        sources = sorted(map(str, folder.glob("*.c")))
        try:
            subprocess.run(
                [*compiler, *FLAGS, "-o", str(library), *sources],
                check=True,
                stdin=subprocess.DEVNULL,
                timeout=120,
            )
        except (OSError, subprocess.SubprocessError) as error:
            library.unlink(missing_ok=True)
            self.app.display_warning(
                f"no native library ({error}); faults are served by plain Python, which is slower"
            )
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(f"/{FOLDER.as_posix()}/{library.name}")

"""Runs in the child: ``bootstrap.py FILE LIMIT ARGUMENT...`` (see `helpers.child`).

Runs FILE as ``__main__``, with the watchdog set to shortly before LIMIT (0: no
watchdog), and dies when the test process dies.
"""

from __future__ import annotations

import sys

__all__: list[str] = []


def _prepare() -> str:
    import ctypes
    import faulthandler
    import os
    import resource
    import signal

    path, limit = sys.argv[1], float(sys.argv[2])
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    # A death by SIGBUS or SIGABRT is asked for here; its core file is not.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if limit:
        faulthandler.dump_traceback_later(max(limit * 0.8, limit - 1))
    sys.argv[:] = [path, *sys.argv[3:]]
    sys.path[0] = os.path.dirname(path)
    return path


if __name__ == "__main__":
    __file__ = _prepare()
    del _prepare, __all__, annotations
    with open(__file__) as _file:
        _code = compile(_file.read(), __file__, "exec", dont_inherit=True)
    del _file
    exec(_code)

"""The same array through every store equals numpy's, with an eighth of it in memory.

Arrays in chunks have their own tests of it (test_chunked_paged.py), and are here only if a size is
given.  256 MiB, in 32 MiB, and how long each store took:

    REFAULT_EQUALITY_BYTES=268435456 python -m pytest -s --timeout 3600 -o faulthandler_timeout=0 \
        tests/client/test_equality.py
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib

import pytest

from helpers import servers
from helpers.child import run_child
from helpers.child_tools import ENVIRONMENT
from helpers.everywhere import CHUNKED, COLUMNS, PLACES, prepare
from helpers.s3_files import s3_files
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.userfaultfd]

GIVEN = os.environ.get("REFAULT_EQUALITY_BYTES")
BYTES = int(GIVEN or 1 << 20)
KINDS = [kind for kind in PLACES if GIVEN or kind not in CHUNKED]


def everywhere(folder: str, described: str, resident: str, *kinds: str) -> None:
    import json
    import pathlib

    from helpers.everywhere import compare

    for kind in kinds:
        seconds = compare(kind, pathlib.Path(folder), json.loads(described), int(resident))
        print(f"{kind:12} equal  {seconds:7.1f} s", flush=True)


def test_every_store_gives_what_numpy_has(tmp_path: pathlib.Path) -> None:
    prepare(tmp_path, BYTES // 4 // COLUMNS)
    with contextlib.ExitStack() as stack:
        nginx = stack.enter_context(servers.nginx())
        redis = stack.enter_context(servers.redis())
        s3 = stack.enter_context(s3_files())
        described = {
            "http": nginx.url,
            "http_root": str(nginx.root),
            "redis": redis.url,
            "s3": s3.options,
            "s3_root": str(s3.root),
        }
        limit = 60 + BYTES / (100 << 10)
        args = [str(tmp_path), json.dumps(described), str(BYTES // 8), *KINDS]
        done = run_child(everywhere, timeout=limit, args=args, env=ENVIRONMENT)
    print(done.stdout)

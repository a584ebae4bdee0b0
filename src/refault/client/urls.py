"""Which store a URL means.

What makes the store is imported when such a URL is opened.
"""

from __future__ import annotations

import importlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, cast

from refault.errors import UsageError
from refault.stores.base import Store

__all__ = ["SCHEMES", "is_local", "local_path", "open_url", "scheme"]

SCHEMES: dict[str, str] = {
    **dict.fromkeys(("s3", "s3a"), "refault.stores.cloud:open_object"),
    "gs": "refault.stores.cloud:open_object",
    **dict.fromkeys(("az", "adl", "azure", "abfs", "abfss"), "refault.stores.cloud:open_object"),
    **dict.fromkeys(("http", "https"), "refault.stores.cloud:open_object"),
    **dict.fromkeys(("redis", "rediss", "unix"), "refault.stores.redis:open_url"),
}
"""Scheme of a URL -> ``module:function``, which is called with the URL and the storage options."""

OTHERS = "refault.stores.filesystems:open_file"
"""What makes a store from a URL of any other scheme, or of several joined with ``::``."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:::.*)?://")


def scheme(path: str | bytes) -> str | None:
    """The scheme of a URL; None: it is a path."""
    found = _SCHEME.match(path) if isinstance(path, str) else None
    return found[1].lower() if found else None


def is_local(path: str | bytes) -> bool:
    """Whether it is a path, or the URL of one on this machine."""
    return scheme(path) in (None, "file", "local")


def local_path(url: str | bytes) -> str | bytes:
    """The path that a ``file:`` URL means; a path as it is."""
    if not isinstance(url, str) or scheme(url) is None:
        return url
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url}: is on another machine, {parts.netloc}; give a path of this one")
    return urllib.parse.unquote(parts.path)


def open_url(url: str, storage_options: Mapping[str, Any]) -> Store:
    """Make the store that a URL means."""
    maker = OTHERS if "::" in url.partition("://")[0] else SCHEMES.get(scheme(url) or "", OTHERS)
    module, _, function = maker.partition(":")
    found = getattr(importlib.import_module(module), function)(url, dict(storage_options))
    return cast("Store", found)

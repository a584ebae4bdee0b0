"""An array in Redis by one URL, ``redis://HOST:PORT/DB?key=NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from refault.errors import UsageError

from .server import address
from .store import Redis

__all__ = ["open_url"]


def open_url(url: str, options: Mapping[str, Any]) -> Redis:
    """Open an array that is there.

    Parameters
    ----------
    url
        Of a server, or a node of a cluster; ``key`` in its query is the name of the array, and what
        else there is belongs to the server's URL.
    options
        ``timeout``, as in `Redis`, or nothing.

    Raises
    ------
    UsageError
        The URL names no array, or there is none by that name; or the options are others.
    StoreError
        The server does not answer.
    """
    wrong = sorted(options.keys() - {"timeout"})
    if wrong:
        raise UsageError(f"{address(url)}: takes timeout alone as storage_options, not {wrong}")
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    keys = [value for name, value in query if name == "key"]
    if len(keys) != 1:
        raise UsageError(
            f"{address(url)}: say which array of it, as in redis://HOST:PORT/DB?key=NAME"
        )
    rest = urlencode([pair for pair in query if pair[0] != "key"])
    return Redis(parts._replace(query=rest).geturl(), keys[0], **options)

"""How obstore's clients are made: from a URL or another one, and again in another process.

Some facts about obstore's stores
---------------------------------
* A store that is pickled takes along what it was given, not what it found in the environment; and
  the other process, the pager, may have been started before the environment was changed.  So the
  variables that count travel too, and are there while the store is made.
* Client options that are given replace those of the environment altogether, and ours, the time
  limit, always are.  So those of the environment are looked for here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from refault.errors import UsageError

from .remote import public

__all__ = ["Recipe", "obstore_module", "store_from_url"]

_PREFIXES = {"S3Store": "AWS_", "GCSStore": "GOOGLE_", "AzureStore": "AZURE_"}
_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "proxy_url",
    "proxy_ca_certificate",
    "proxy_excludes",
)
_BUCKETS = ("s3", "s3a", "gs", "az", "adl", "azure")
"""Schemes whose URLs are a bucket (or container) and a key, and nothing else."""

_environment_lock = threading.Lock()


def obstore_module() -> Any:
    """The library.

    Raises
    ------
    UsageError
        It is not installed.
    """
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise UsageError(
            "objects in S3, GCS, Azure or behind HTTP need obstore; pip install 'refault[objects]'"
        ) from error
    return obstore


@dataclasses.dataclass(frozen=True, repr=False)
class Recipe:
    """A store that can be made anew, here or in another process.

    Attributes
    ----------
    kind
        Its class.
    """

    kind: type[Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    environment: Mapping[str, str]

    @classmethod
    def of(cls, store: Any) -> Recipe:
        """The recipe of a store that somebody has made.

        Raises
        ------
        UsageError
            Another process cannot use it.
        """
        kind = type(store).__name__
        if kind in ("MemoryStore", "LocalStore") or not hasattr(store, "__getnewargs_ex__"):
            step = (
                "open the file by its path" if kind == "LocalStore" else "give one behind a network"
            )
            raise UsageError(f"{kind} cannot be read by another process; {step}")
        arguments, options = store.__getnewargs_ex__()
        prefix = _PREFIXES.get(kind)
        found = {k: v for k, v in os.environ.items() if prefix and k.startswith(prefix)}
        client = {
            name: found[prefix + name.upper()]
            for name in _CLIENT_OPTIONS
            if prefix and prefix + name.upper() in found
        }
        client |= dict(options.get("client_options") or {})
        return cls(type(store), arguments, {**options, "client_options": client}, found)

    def make(self, timeout: float) -> Any:
        """Make it, with a time limit for each request, and without retries of its own."""
        limit = datetime.timedelta(seconds=timeout)
        client = {**self.options["client_options"], "timeout": limit}
        options = {**self.options, "client_options": client, "retry_config": {"max_retries": 0}}
        with _in_environment(self.environment):
            return self.kind(*self.arguments, **options)


def store_from_url(url: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the store that a URL means, and the path in it.

    Raises
    ------
    UsageError
        It names no object, or obstore does not know an option.
    """
    module = obstore_module().store
    scheme = url.partition(":")[0].lower()
    folder, path, query = _split(url)
    if not path:
        raise UsageError(f"{public(url)}: names no object; add its key")
    options = dict(storage_options)
    client = dict(options.pop("client_options", None) or {})
    endpoint = str(options.get("endpoint") or options.get("aws_endpoint") or "")
    if scheme == "http" or endpoint.startswith("http://"):
        client.setdefault("allow_http", True)
    try:
        if scheme in ("http", "https"):
            return module.HTTPStore(folder + query, client_options=client, **options), path
        return module.from_url(folder, client_options=client or None, **options), path
    except Exception as error:
        line = public(str(error).partition("\n")[0])
        raise UsageError(
            f"{public(url)}: obstore does not take these storage_options: {line}"
        ) from error


def _split(url: str) -> tuple[str, str, str]:
    """Part a URL into what is the store's, the last name in its path, and the query."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() in _BUCKETS:
        # The key is no part of the store: it may have any character, '?' and '#' as well.
        bucket, _, path = rest.partition("/")
        return f"{scheme}://{bucket}", path, ""
    if scheme.lower() not in ("http", "https"):
        folder, _, path = rest.rpartition("/")
        return (f"{scheme}://{folder}", path, "") if folder else (url, "", "")
    parts = urllib.parse.urlsplit(url)
    above, _, path = parts.path.rpartition("/")
    folder = f"{parts.scheme}://{parts.netloc}{above}/"
    return folder, urllib.parse.unquote(path), f"?{parts.query}" if parts.query else ""


@contextlib.contextmanager
def _in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables as long as the block lasts."""
    with _environment_lock:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

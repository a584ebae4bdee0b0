"""Objects in S3, Google Cloud Storage, Azure, or behind HTTP, through obstore.

Some facts about objects
------------------------
* An object has no parts that could be changed, only a whole that can be replaced.  Its ETag says
  which whole it is.  So each GET says which one it wants (If-Match), and looks at which one it got:
  a server may not know the header.
* A weak ETag (``W/"..."``) never matches in If-Match (RFC 9110), so it is only looked at.  Where
  there is no ETag, the time of the last change stands in for it.
* A GET of the first bytes tells size and ETag as well, so opening takes one request.  Of an
  empty object there are no first bytes, and the answer is an error (416): then HEAD tells.
* obstore's messages hold the whole URL with its query, and a presigned URL has its signature there.
  So messages are made anew from what is in them.
"""

from __future__ import annotations

import datetime
import re
import urllib.parse
from typing import Any, Self

from refault.errors import UsageError

from .remote import CHANGED, PERMANENT_STATUS, Policy, Refused, RemoteStore, public

__all__ = ["Obstore", "open_object"]

FIRST_BYTES = 64 << 10
"""Read when an object is opened, and kept: the header of a ``.npy``, and the first page."""

_NEXT_STEP = {
    401: "give credentials (storage_options, or the environment)",
    403: "see what these credentials may read, and whether they have expired",
    404: "check the name, and the bucket or server",
    410: "it has been deleted",
    412: CHANGED,
}
_STATUS = re.compile(r"status code: (\d{3})([ \w]*)")
_KIND = re.compile(r"\bkind: (\w+)")
_CAUSES = {
    "Connect": "no connection to the server",
    "Timeout": "no answer in time",
    "Interrupted": "the connection broke off",
    "Body": "the connection broke off",
}


class Obstore(RemoteStore):
    """An object that an obstore store holds.

    Parameters
    ----------
    store
        An `obstore.store.S3Store`, `GCSStore`, `AzureStore` or `HTTPStore`.  Its own retries are
        switched off and its timeout is that of the policy.
    path
        Of the object, in the store.
    policy
        How it is asked.

    Raises
    ------
    StoreError
        The object cannot be read.
    UsageError
        The store cannot be used from another process.

    Notes
    -----
    The object's first bytes are read when it is opened, with one request.
    """

    limits_itself = True

    def __init__(self, store: Any, path: str, *, policy: Policy | None = None) -> None:
        policy = policy or Policy()
        configured = _configured(store, policy)
        super().__init__(_name(store, path), policy)
        self.path = path
        self._store = configured
        self._condition: dict[str, Any] = {}
        self._version: tuple[str | None, datetime.datetime | None] | None = None
        self._first = self._ask_patiently(self._look, "open it")

    @classmethod
    def from_url(cls, url: str, *, policy: Policy | None = None, **storage_options: Any) -> Self:
        """Open the object at `url`.

        Parameters
        ----------
        url
            ``s3://bucket/key``, ``gs://bucket/key``, ``az://account/container/key`` or
            ``https://host/path``.
        policy
            How it is asked.
        **storage_options
            What `obstore.store.from_url` takes for such a URL: ``endpoint``, ``region``,
            ``access_key_id``, ``skip_signature``, ``client_options`` and so on.  What is not
            given is taken from the environment, as obstore does.
        """
        store, path = _from_url(url, storage_options)
        return cls(store, path, policy=policy)

    def _look(self) -> bytes:
        """Read the first bytes, and learn size and version from the answer."""
        obstore = _obstore()
        try:
            found = obstore.get(self._store, self.path, options={"range": (0, FIRST_BYTES)})
            meta, first = found.meta, bytes(found.bytes())
        except Exception as error:
            if _status(str(error)) != 416:
                raise
            meta, first = obstore.head(self._store, self.path), b""
        if len(first) != min(FIRST_BYTES, meta["size"]):
            raise EOFError(f"a short answer of {len(first)} bytes")
        self.size = meta["size"]
        etag, modified = meta.get("e_tag"), meta.get("last_modified")
        self._version = (etag, modified)
        if etag is None:
            self._condition = {"if_unmodified_since": modified}
        elif not etag.startswith("W/"):
            self._condition = {"if_match": etag}
        return first

    def fetch(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset` on, or raise `StoreError`."""
        if offset >= 0 and offset + length <= len(self._first):
            return memoryview(self._first)[offset : offset + length]
        return super().fetch(offset, length)

    def _get(self, start: int, end: int) -> Any:
        options = {"range": (start, end), **self._condition}
        found = _obstore().get(self._store, self.path, options=options)
        if (found.meta.get("e_tag"), found.meta.get("last_modified")) != self._version:
            raise Refused(CHANGED)
        return found.bytes()

    def _describe(self, error: BaseException) -> tuple[str, bool]:
        text = str(error)
        status = _status(text)
        if status is None and isinstance(error, FileNotFoundError):
            status = 404
        if status is not None:
            step = _NEXT_STEP.get(status)
            said = _STATUS.search(text)
            words = f"HTTP {status}{said[2] if said else ''}"
            return f"{words}; {step}" if step else words, status in PERMANENT_STATUS
        name = type(error).__name__
        if name == "NotSupportedError":
            return (
                "the server does not answer with parts of a file (range requests); download it",
                True,
            )
        for kind in _KIND.findall(text):
            if kind in _CAUSES:
                return _CAUSES[kind], False
        return f"{name}: {public(text.partition(chr(10))[0])}", False


def open_object(url: str, storage_options: dict[str, Any]) -> Obstore:
    """Open the object at `url`, see `refault.client.urls`."""
    return Obstore.from_url(url, **storage_options)


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise UsageError(
            "objects in S3, GCS, Azure or behind HTTP need obstore; pip install 'refault[objects]'"
        ) from error
    return obstore


def _status(text: str) -> int | None:
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def _from_url(url: str, storage_options: dict[str, Any]) -> tuple[Any, str]:
    """Return the store that a URL means, and the path in it."""
    module = _obstore().store
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
        return module.from_url(folder, client_options=client, **options), path
    except Exception as error:
        line = str(error).partition("\n")[0]
        raise UsageError(
            f"{public(url)}: obstore does not take these storage_options: {line}"
        ) from error


def _split(url: str) -> tuple[str, str, str]:
    """Part a URL into what is the store's, the last name in its path, and the query."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        # A key may have any character, '?' and '#' as well.
        folder, _, path = url.rpartition("/")
        return (folder, path, "") if "://" in folder and path else (url, "", "")
    above, _, path = parts.path.rpartition("/")
    folder = f"{parts.scheme}://{parts.netloc}{above}/"
    return folder, urllib.parse.unquote(path), f"?{parts.query}" if parts.query else ""


def _name(store: Any, path: str) -> str:
    """How messages name an object."""
    kind = type(store).__name__
    if kind == "HTTPStore":
        return public(store.url).rstrip("/") + "/" + path
    config = getattr(store, "config", None) or {}
    place = config.get("bucket") or config.get("container_name") or config.get("container") or kind
    scheme = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}.get(kind, "object")
    return "/".join(filter(None, [f"{scheme}://{place}", str(store.prefix or "").strip("/"), path]))


def _configured(store: Any, policy: Policy) -> Any:
    """The same store with our time limit, and without retries of its own."""
    kind = type(store).__name__
    if kind in ("MemoryStore", "LocalStore") or not hasattr(store, "__getnewargs_ex__"):
        step = "open the file by its path" if kind == "LocalStore" else "give one behind a network"
        raise UsageError(f"{kind} cannot be read by another process; {step}")
    arguments, options = store.__getnewargs_ex__()
    limit = datetime.timedelta(seconds=policy.timeout)
    client = dict(options.get("client_options") or {}) | {"timeout": limit}
    return type(store)(
        *arguments, **options | {"client_options": client, "retry_config": {"max_retries": 0}}
    )

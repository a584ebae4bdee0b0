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
* A PUT with If-Match replaces an object only if it is the one that was opened.  It takes all bytes
  at once, and S3 takes 5 GiB so.  A multipart upload could be larger, and take parts from the old
  object, but obstore's has neither conditions nor copies.
* An answer to a PUT may be lost.  Tried again, it fails: the object is another one now, ours.  So
  each PUT has a mark in the object's metadata, by which we know our own.
* obstore's messages hold the whole URL with its query, and a presigned URL has its signature there.
  So messages are made anew from what is in them.
"""

from __future__ import annotations

import re
import threading
import uuid
from typing import Any, Self

from refault.errors import StoreError, UsageError

from .base import check_range
from .clients import Recipe, obstore_module, store_from_url
from .remote import CHANGED, PERMANENT_STATUS, Policy, Refused, RemoteStore, public
from .replacing import Replacing

__all__ = ["Obstore", "object_name", "open_object"]

FIRST_BYTES = 64 << 10
"""Read when an object is opened, and kept: the header of a ``.npy``, and the first page."""

_NEXT_STEP = {
    401: "give credentials (storage_options, or the environment)",
    403: "see what these credentials may read, and whether they have expired",
    404: "check the name, and the bucket or server",
    410: "it has been deleted",
    412: CHANGED,
}
_LARGEST = {"S3Store": 5 << 30, "AzureStore": 5000 << 20, "GCSStore": 5 << 40}
"""Bytes that one PUT may have, of those that know PUT with a condition."""

LEAST_RATE = 1 << 20
"""An upload may take a second for so many bytes, beside the time limit of one request."""

MARK = "refaultupload"

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

    Changes are kept in a local file until `flush`, which puts a new object in the place of the old
    one, if that is still the one that was opened.  Its attributes (content type, metadata) are
    kept; tags and access rules are not.

    Attributes
    ----------
    readonly
        Why the object cannot be changed; empty if it can.
    """

    limits_itself = True
    buffered = True

    def __init__(self, store: Any, path: str, *, policy: Policy | None = None) -> None:
        policy = policy or Policy()
        recipe = Recipe.of(store)
        super().__init__(object_name(store, path), policy)
        self.path = path
        self._recipe = recipe
        self._store = recipe.make(policy.timeout)
        self._condition: dict[str, Any] = {}
        self._expected: dict[str, Any] = {}
        self._generation: dict[str, Any] = {}
        self._attributes: dict[str, Any] = {}
        self._marks: set[str] = set()
        self._changes: Replacing | None = None
        self._first = self._ask_patiently(self._look, "open it")
        self.readonly = self._why_readonly()
        self.writable = not self.readonly

    @classmethod
    def from_url(cls, url: str, *, policy: Policy | None = None, **storage_options: Any) -> Self:
        """Open the object at `url`.

        Parameters
        ----------
        url
            ``s3://bucket/key``, ``gs://bucket/key``, ``az://container/key`` (with
            ``account_name``) or ``https://host/path``.
        policy
            How it is asked.
        **storage_options
            What `obstore.store.from_url` takes for such a URL: ``endpoint``, ``region``,
            ``access_key_id``, ``skip_signature``, ``client_options`` and so on.  What is not
            given is taken from the environment, as obstore does.
        """
        store, path = store_from_url(url, storage_options)
        return cls(store, path, policy=policy)

    def _look(self) -> bytes:
        """Read the first bytes, and learn size and version from the answer."""
        obstore = obstore_module()
        try:
            found = obstore.get(self._store, self.path, options={"range": (0, FIRST_BYTES)})
            meta, attributes, first = found.meta, found.attributes, bytes(found.bytes())
        except Exception as error:
            if _status(str(error)) != 416:
                raise
            meta, attributes, first = obstore.head(self._store, self.path), {}, b""
        if len(first) != min(FIRST_BYTES, meta["size"]):
            raise EOFError(f"a short answer of {len(first)} bytes")
        self.size = meta["size"]
        self._attributes = dict(attributes)
        self._opened(meta)
        return first

    def _opened(self, meta: Any) -> None:
        """Read, and replace, this version from now on."""
        etag = meta.get("e_tag")
        if etag is None:
            modified = meta.get("last_modified")
            self._expected = {"last_modified": modified}
            self._condition = {"if_unmodified_since": modified}
        else:
            self._expected = {"e_tag": etag}
            self._condition = {} if etag.startswith("W/") else {"if_match": etag}
        self.version = str(*self._expected.values())
        version = meta.get("version")
        self._generation = {} if version is None else {"version": version}

    def _why_readonly(self) -> str:
        kind = type(self._store).__name__
        if kind not in _LARGEST:
            return "what is behind HTTP cannot be replaced"
        if self.size > _LARGEST[kind]:
            return f"it has more than the {_LARGEST[kind]} bytes that can be replaced at one stroke"
        if "if_match" not in self._condition:
            return "it has no ETag by which another change could be seen"
        return ""

    def fetch(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes from `offset` on, or raise `StoreError`."""
        check_range(self, offset, length, "read")
        changes = self._changes
        if changes is not None:
            return changes.fetch(offset, length)
        first = self._first
        if offset + length <= len(first):
            return memoryview(first)[offset : offset + length]
        return self._fetch(offset, length, self._ask)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Keep changed bytes until `flush`, or raise `StoreError`."""
        check_range(self, offset, len(buffer), "write")
        if self.readonly:
            raise StoreError(f"{self.name}: cannot be changed: {self.readonly}", permanent=True)
        with self._making:
            if self._changes is None:
                self._changes = Replacing(
                    self.name,
                    self.size,
                    lambda offset, length: self._fetch(offset, length, self._ask),
                    lambda offset, length: self._fetch(offset, length, self._ask_patiently),
                    self._replace,
                    parallel=self.parallel,
                    piece=self.read_bytes,
                )
                self._first = b""
        self._changes.write_from(offset, buffer)

    def flush(self) -> None:
        """Put a new object in the place of the one that was opened, if anything has changed.

        Raises
        ------
        StoreError
            All changes are kept.  Permanent: the object has been changed by somebody else.
        """
        if self._changes is not None:
            self._changes.flush()

    def close(self) -> None:
        """Forget changes that were not flushed."""
        changes, self._changes = self._changes, None
        if changes is not None:
            changes.close()

    def _replace(self, whole: memoryview) -> None:
        obstore = obstore_module()
        store = self._recipe.make(self.policy.timeout + len(whole) / LEAST_RATE)

        def put() -> Any:
            mark = uuid.uuid4().hex
            self._marks.add(mark)
            return obstore.put(
                store,
                self.path,
                whole,
                mode={**self._expected, **self._generation},
                attributes={**self._attributes, MARK: mark},
                use_multipart=False,
            )

        def put_again() -> Any:
            try:
                return put()
            except obstore.exceptions.PreconditionError:
                found = obstore.get(self._store, self.path, options={"head": True})
                if found.attributes.get(MARK) not in self._marks:
                    raise
                self._opened(found.meta)
                return put()

        self._opened(self._told(put_again, f"replace it with {len(whole)} changed bytes"))

    def get_range(self, start: int, end: int) -> Any:
        options = {"range": (start, end), **self._condition}
        found = obstore_module().get(self._store, self.path, options=options)
        if any(found.meta.get(key) != value for key, value in self._expected.items()):
            raise Refused(CHANGED)
        return found.bytes()

    def _make_locks(self) -> None:
        super()._make_locks()
        self._making = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        if self._changes is not None:
            raise UsageError(f"{self.name}: has changes that are not flushed; flush it first")
        state = super().__getstate__()
        del state["_making"], state["_store"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._store = self._recipe.make(self.policy.timeout)

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


def _status(text: str) -> int | None:
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def object_name(store: Any, path: str) -> str:
    """How messages name an object."""
    kind = type(store).__name__
    if kind == "HTTPStore":
        return public(store.url).rstrip("/") + "/" + path
    config = getattr(store, "config", None) or {}
    place = config.get("bucket") or config.get("container_name") or config.get("container") or kind
    scheme = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}.get(kind, "object")
    return "/".join(filter(None, [f"{scheme}://{place}", str(store.prefix or "").strip("/"), path]))

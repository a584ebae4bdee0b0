"""Where checkpoints are kept: from a URL to Icechunk's storage."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from refault.errors import UsageError

if TYPE_CHECKING:
    from icechunk import Storage

__all__ = ["Location", "locate"]


class Location(NamedTuple):
    """A place for checkpoints.

    Attributes
    ----------
    name
        How messages call it.
    storage
        What Icechunk calls it.
    folder
        Its path, if it is a local folder.
    """

    name: str
    storage: Storage
    folder: str | None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One commit at a time: an object store sees to that itself, a folder does not."""
        if self.folder is None:
            yield
            return
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def locate(
    url: str | os.PathLike[str], storage: Storage | None, options: dict[str, Any], *, create: bool
) -> Location:
    """Say where `url` is.

    Parameters
    ----------
    url
        A path, ``file://``, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
    storage
        Icechunk's own, if it is given: then `url` is its name only.
    create
        Whether a folder may be made.
    options
        Passed to `icechunk.s3_storage` or `icechunk.gcs_storage`.

    Raises
    ------
    UsageError
        That is no place we know.
    """
    import icechunk

    name = os.fspath(url)
    if storage is not None:
        _no_options(options, "storage has them all")
        return Location(name, storage, None)
    parts = urlsplit(name)
    if not parts.scheme or parts.scheme == "file":
        _no_options(options, "a folder has none")
        folder = os.path.abspath(unquote(parts.path) if parts.scheme else name)
        if create:
            os.makedirs(folder, exist_ok=True)
        elif not os.path.isdir(folder):
            raise UsageError(f"{name}: there is no such folder; see where it was saved to")
        return Location(name, icechunk.local_filesystem_storage(folder), folder)
    prefix = parts.path.strip("/")
    if parts.scheme not in ("s3", "gs") or not parts.netloc:
        raise UsageError(
            f"{name} is no place for checkpoints; give a folder, s3://bucket/prefix or"
            " gs://bucket/prefix, or any storage of Icechunk as storage="
        )
    make: Any = icechunk.s3_storage if parts.scheme == "s3" else icechunk.gcs_storage
    if parts.scheme == "s3" and not {"access_key_id", "anonymous", "get_credentials"} & set(
        options
    ):
        options = {"from_env": True, **options}
    try:
        return Location(name, make(bucket=parts.netloc, prefix=prefix or None, **options), None)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name}: {error}; see icechunk.{make.__name__} for the options"
        ) from error


def _no_options(options: dict[str, Any], reason: str) -> None:
    if options:
        raise UsageError(
            f"options {', '.join(options)} have no meaning here: {reason}; leave them out"
        )

"""Files that fsspec reaches: Hugging Face, SFTP, members of archives, and what else it speaks.

Some facts about fsspec
-----------------------
* Its caches are never used.  Some of them (``mmap``, and with it ``blockcache::``) answer zeros
  after a read that failed: they note a block as read before they read it.
* ``cat_file`` may answer short, and a filesystem may hang without any limit.  Both are seen to
  here.
* There is no request for a range *of one version*.  So after the bytes were read, the filesystem
  is asked whether the file is still the one that was opened: if it is, it was when they were read.
* What it says about a file may come from a listing it has kept.  So listings are not kept, and
  forgotten before each question.
* ``memory://`` is memory of one process; the pager is another one.
"""

from __future__ import annotations

from typing import Any, Self

from refault.errors import StoreError, UsageError

from .remote import CHANGED, PERMANENT_STATUS, Policy, Refused, RemoteStore, public

__all__ = ["Fsspec", "open_file"]

_VERSION = (
    "ETag",
    "etag",
    "e_tag",
    "version_id",
    "generation",
    "commit_hash",
    "sha",
    "sha256",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "updated",
    "date_time",
    "CRC",
    "size",
)
"""What filesystems call that by which one version of a file can be told from the next one.

Not all that they know: the time of the last read changes, and the file does not.
"""


class Fsspec(RemoteStore):
    """A file of an fsspec filesystem, for reading.

    Parameters
    ----------
    fs
        An `fsspec.AbstractFileSystem`.
    path
        Of the file, in it.
    policy
        How it is asked.
    check_version
        Whether the filesystem is asked after each read if the file is still the one that was
        opened.  It costs one more request; False is right for a file that never changes.

    Raises
    ------
    StoreError
        The file cannot be read.
    UsageError
        The filesystem cannot be used from another process, or is a cache.
    """

    def __init__(
        self, fs: Any, path: str, *, policy: Policy | None = None, check_version: bool = True
    ) -> None:
        _check(fs)
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        name = path if "://" in path else f"{protocol}://{path}"
        super().__init__(public(name), policy or Policy())
        self.path = path
        self.check_version = check_version
        self._fs = fs
        info = self._ask_patiently(self._info, "open it")
        size = info.get("size")
        if info.get("type") == "directory" or not isinstance(size, int):
            raise StoreError(
                f"{self.name}: cannot open it: it is a folder, or its size is not known; give"
                " a file, and download what has no size",
                permanent=True,
            )
        self.size = size
        self.version = _version(info)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        policy: Policy | None = None,
        check_version: bool = True,
        **storage_options: Any,
    ) -> Self:
        """Open the file at `url`.

        Parameters
        ----------
        url
            What fsspec takes; several may be joined, as in ``zip://x.npy::/data/all.zip``.
        policy, check_version
            As for the class.
        **storage_options
            What the filesystem takes.
        """
        try:
            import fsspec  # type: ignore[import-untyped]
        except ImportError as error:
            raise UsageError(
                f"{_scheme(url)}:// needs fsspec; pip install 'refault[fsspec]'"
            ) from error
        try:
            fs, path = fsspec.core.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **storage_options
            )
        except ImportError as error:
            raise UsageError(f"{_scheme(url)}://: {error}") from error
        except OSError as error:
            text = public(str(error))
            raise StoreError(
                f"{_scheme(url)}://: cannot be opened: {type(error).__name__}: {text}",
                permanent=isinstance(error, FileNotFoundError | PermissionError),
            ) from error
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{_scheme(url)}://: fsspec does not take this URL with these storage_options:"
                f" {public(str(error))}"
            ) from error
        return cls(fs, path, policy=policy, check_version=check_version)

    def _info(self) -> dict[str, Any]:
        self._fs.invalidate_cache()
        found: dict[str, Any] = self._fs.info(self.path)
        return found

    def get_range(self, start: int, end: int) -> Any:
        answer = self._fs.cat_file(self.path, start=start, end=end)
        if self.check_version and _version(self._info()) != self.version:
            raise Refused(CHANGED)
        return answer

    def _describe(self, error: BaseException) -> tuple[str, bool]:
        if isinstance(error, TimeoutError):
            return str(error) or "no answer in time", False
        status = getattr(error, "status", None)
        permanent = status in PERMANENT_STATUS or isinstance(
            error, FileNotFoundError | PermissionError | IsADirectoryError | NotImplementedError
        )
        if isinstance(status, int):
            return f"HTTP {status}", permanent
        return f"{type(error).__name__}: {public(str(error))}", permanent


def open_file(url: str, storage_options: dict[str, Any]) -> Fsspec:
    """Open the file at `url`, see `refault.client.urls`."""
    return Fsspec.from_url(url, **storage_options)


def _check(fs: Any) -> None:
    step = "; give the filesystem that it reads from, and refault keeps what is used in memory"
    for cls in type(fs).__mro__:
        if cls.__name__ == "CachingFileSystem":
            raise UsageError(f"{type(fs).__name__} is a cache of fsspec, which is not used{step}")
        if cls.__name__ == "MemoryFileSystem":
            raise UsageError(
                "memory:// is memory of this process alone, and cannot be read by the pager, which"
                " is another one; use the bytes themselves (fs.cat_file, numpy.frombuffer)"
            )
    if not callable(getattr(fs, "cat_file", None)):
        raise UsageError(f"{fs!r} is no fsspec filesystem; give fsspec.filesystem(...)")


def _version(info: dict[str, Any]) -> str:
    return ", ".join(f"{key}={info[key]}" for key in _VERSION if info.get(key) is not None)


def _scheme(url: str) -> str:
    return url.partition("://")[0]

"""`Checkpoints`: versions of a program's arrays, in a folder or a bucket."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from refault._version import __version__
from refault.client.connection import pager_ahead
from refault.errors import UsageError
from refault.sizes import Size, parse_size

from .atexit import close_at_exit
from .comparing import compare
from .exporting import export_arrays
from .extra import require
from .failures import failures
from .instant import Instant
from .layout import Layout, arrays_in, check_name, describe, summarize
from .loading import load_arrays, open_stores
from .location import locate
from .records import ArrayDiff, Checkpoint, Collected, Exported, StoredArray
from .repository import checkpoint_of, open_repository, resolve
from .saves import Save
from .store import CheckpointStore
from .tip import Tip
from .verifying import Verified, verify_arrays
from .writer import Writer

if TYPE_CHECKING:
    from icechunk import Storage

__all__ = ["Checkpoints"]

When = datetime.datetime | datetime.timedelta


class Checkpoints:
    """Checkpoints of arrays: incremental, transactional, and plain Zarr.

    They are kept by Icechunk, as commits on branches.  Each has all arrays; what did not
    change since the one before is not written again.

    Parameters
    ----------
    url
        A local folder, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
    storage
        Any storage of Icechunk; then `url` is its name in messages.
    chunk_size
        About how many bytes of an array make one chunk, which is what is written or not.  It
        holds for arrays that are stored for the first time.
    compression
        Level of zstd for such arrays; negative ones are fast; None: no compression.
    create
        Whether a place without checkpoints is made one for them.
    **options
        Of `icechunk.s3_storage` or `icechunk.gcs_storage`: ``endpoint_url``, ``region`` and so
        on.  Credentials come from the environment unless they are given.

    Raises
    ------
    UsageError
        The extra is not installed, or `url` is no such place.
    StoreError
        The place cannot be reached, or refuses.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        storage: Storage | None = None,
        chunk_size: Size = "64KiB",
        compression: int | None = -1,
        create: bool = True,
        **options: Any,
    ) -> None:
        require()
        self._chunk_bytes = parse_size(chunk_size, name="chunk_size")
        if self._chunk_bytes == 0:
            raise UsageError("chunk_size=0 leaves nothing to write; give '64KiB' or more")
        self._level = compression
        self._location = locate(url, storage, options, create=create)
        self._repository = open_repository(self._location, create=create)
        self._tips: dict[str, Tip] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="refault-checkpoints")
        close_at_exit(self)

    def save(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        *,
        message: str = "",
        branch: str = "main",
        metadata: Mapping[str, Any] | None = None,
    ) -> Save:
        """Make a checkpoint of one instant; it is written while the program goes on.

        Arrays of refault are taken by `refault.snapshot`, all at one instant; plain numpy
        arrays are copied right after that instant, before this returns.  Saves that overlap are
        written one after the other.

        Parameters
        ----------
        arrays
            By name; a name may be a path: ``"model/weights"``.  What is not in it is not in
            the checkpoint.
        message
            To be found in `history`.
        branch
            Where the checkpoint comes behind the newest one.
        metadata
            Anything that JSON has, to be kept with it.

        Returns
        -------
        Save
            Its ``result()`` waits for the commit.

        Raises
        ------
        UsageError
            A name or an array cannot be stored, or there is no such branch.
        """
        self._check_usable()
        described = _check_metadata(metadata)
        taken = {check_name(name): np.asanyarray(array) for name, array in arrays.items()}
        _check_paths(taken)
        layouts = {
            name: Layout.of(array, name, self._chunk_bytes, compressed=self._level is not None)
            for name, array in taken.items()
        }
        save = Save()
        # The order of the instants is that of the checkpoints.
        with self._lock:
            instant = Instant(taken)
            write = functools.partial(
                self._write, save, instant, layouts, branch, message, described
            )
            save._begin(self._saver.submit(write))
        return save

    def load(
        self,
        ref: str | Checkpoint = "main",
        mode: Literal["r", "c"] = "r",
        *,
        resident: Size | None = None,
        page_size: Size | None = None,
        deadline: float | None = 60.0,
    ) -> dict[str, npt.NDArray[Any]]:
        """Open the arrays of a checkpoint; their pages come when they are touched.

        Parameters
        ----------
        ref
            A tag, a branch (its newest checkpoint), the id of a checkpoint, or a `Checkpoint`.
        mode
            "r": read only.  "c": writable, and what is written stays in this process; if the
            arrays are then saved under their names to the branch that was given here, only what
            was changed is written.
        resident, page_size, deadline
            As in `refault.open`, for each array.

        Returns
        -------
        dict
            The arrays, by name.

        Raises
        ------
        UsageError
            There is no such checkpoint, or another program's arrays are in it.
        StoreError
            The place cannot be reached, or refuses.
        """
        self._check_usable()
        if mode not in ("r", "c"):
            raise UsageError(
                f"mode={mode!r}: a checkpoint never changes; open it with 'r', or with 'c' to"
                " write to your own copy"
            )
        options: dict[str, Any] = {
            "resident": resident,
            "page_size": page_size,
            "deadline": deadline,
        }
        with failures(self._location.name, "load"), pager_ahead():
            found = resolve(self._repository, ref)
            arrays, known = load_arrays(self._stores(found.id), mode, options)
            if found.branch is not None and mode == "c":
                self._remember(found.branch, Tip(found.id, known))
        return arrays

    def history(self, ref: str | Checkpoint = "main") -> list[Checkpoint]:
        """Return a checkpoint and all before it, the newest first.

        Parameters
        ----------
        ref
            As in `load`.
        """
        with failures(self._location.name, "list checkpoints"):
            id = resolve(self._repository, ref).id
            ancestry = self._repository.ancestry(snapshot_id=id)
            return [checkpoint_of(info) for info in ancestry if info.parent_id is not None]

    def checkpoint(self, ref: str | Checkpoint = "main") -> Checkpoint:
        """Return what is known of one checkpoint.

        Parameters
        ----------
        ref
            As in `load`.
        """
        with failures(self._location.name, "find a checkpoint"):
            return checkpoint_of(
                self._repository.lookup_snapshot(resolve(self._repository, ref).id)
            )

    def arrays(self, ref: str | Checkpoint = "main") -> list[StoredArray]:
        """Return what arrays a checkpoint has, without opening them.

        Parameters
        ----------
        ref
            As in `load`.
        """
        with failures(self._location.name, "list arrays"):
            id = resolve(self._repository, ref).id
            session = self._repository.readonly_session(snapshot_id=id)
            return [describe(name, array) for name, array in arrays_in(session.store)]

    def diff(self, a: str | Checkpoint, b: str | Checkpoint) -> list[ArrayDiff]:
        """Say which arrays of two checkpoints differ, and by how many bytes.

        Counted are the chunks that were written for one and not for the other; a chunk that was
        changed and changed back counts.

        Parameters
        ----------
        a, b
            As in `load`.
        """
        with failures(self._location.name, "compare checkpoints"):
            first, second = (resolve(self._repository, ref).id for ref in (a, b))
            return compare(self._repository, first, second)

    def verify(self, ref: str | Checkpoint = "main") -> Verified:
        """Read every chunk of a checkpoint, and compare it with its checksum.

        Parameters
        ----------
        ref
            As in `load`.
        """
        with failures(self._location.name, "verify"):
            id = resolve(self._repository, ref).id
            session = self._repository.readonly_session(snapshot_id=id)
            return verify_arrays(session, self._repository.lookup_snapshot(id))

    def export(self, folder: str | os.PathLike[str], ref: str | Checkpoint = "main") -> Exported:
        """Copy a checkpoint to a folder of plain Zarr, which any reader of Zarr v3 opens.

        Chunks are copied as they are stored, and each is compared with its checksum.

        Parameters
        ----------
        folder
            A new one; it is there when all is copied, or not at all.
        ref
            As in `load`.

        Raises
        ------
        StoreError
            A chunk is damaged, the place cannot be reached, or the folder's disk is full.
        UsageError
            The folder is there already.
        """
        with failures(self._location.name, f"export to {os.fspath(folder)}"):
            id = resolve(self._repository, ref).id
            session = self._repository.readonly_session(snapshot_id=id)
            return export_arrays(session, self._repository.lookup_snapshot(id), folder)

    def tag(self, name: str, ref: str | Checkpoint = "main") -> None:
        """Give a checkpoint a name, for ever.

        Parameters
        ----------
        name
            Of the tag.  Icechunk lets it be used once, even if it is deleted.
        ref
            As in `load`.
        """
        with failures(self._location.name, f"make the tag {name}"):
            self._repository.create_tag(name, resolve(self._repository, ref).id)

    def branch(self, name: str, ref: str | Checkpoint = "main") -> None:
        """Make a branch that begins with a checkpoint.

        Parameters
        ----------
        name
            Of the branch.
        ref
            As in `load`.
        """
        with failures(self._location.name, f"make the branch {name}"):
            self._repository.create_branch(name, resolve(self._repository, ref).id)

    def tags(self) -> dict[str, str]:
        """Return the id of each tag's checkpoint."""
        with failures(self._location.name, "list tags"):
            names = sorted(self._repository.list_tags())
            return {name: self._repository.lookup_tag(name) for name in names}

    def branches(self) -> dict[str, str]:
        """Return the id of each branch's newest checkpoint."""
        with failures(self._location.name, "list branches"):
            names = sorted(self._repository.list_branches())
            return {name: self._repository.lookup_branch(name) for name in names}

    def delete(self, *, tag: str | None = None, branch: str | None = None) -> None:
        """Delete a tag or a branch; `garbage_collect` then removes what nothing leads to.

        Parameters
        ----------
        tag, branch
            One of them.
        """
        if (tag is None) == (branch is None):
            raise UsageError("delete either a tag or a branch: delete(tag='v1')")
        if tag is not None:
            with failures(self._location.name, f"delete the tag {tag}"):
                self._repository.delete_tag(tag)
        elif branch is not None:
            with failures(self._location.name, f"delete the branch {branch}"):
                self._repository.delete_branch(branch)

    def expire(self, older_than: When) -> set[str]:
        """Take checkpoints that are older out of the history of those that are kept.

        What a branch or a tag leads to is kept.

        Parameters
        ----------
        older_than
            A time, or how long ago.

        Returns
        -------
        set of str
            Ids of checkpoints that were taken out; `garbage_collect` then removes their data.
        """
        with failures(self._location.name, "expire checkpoints"):
            gone = set(self._alone(self._repository.expire_snapshots, _instant(older_than)))
        return gone - {*self.branches().values(), *self.tags().values()}

    def garbage_collect(self, older_than: When = datetime.timedelta(days=1)) -> Collected:
        """Remove data that no checkpoint has any more, or ever had: failed saves leave some.

        Parameters
        ----------
        older_than
            Only what was written earlier than this is removed: a time, or how long ago.  It
            must be longer than any save of another process takes: what a save has written
            and not yet committed looks like garbage.
        """
        with failures(self._location.name, "collect garbage"):
            done = self._alone(self._repository.garbage_collect, _instant(older_than))
        objects = (
            done.chunks_deleted
            + done.manifests_deleted
            + done.snapshots_deleted
            + done.attributes_deleted
            + done.transaction_logs_deleted
        )
        return Collected(done.bytes_deleted, objects)

    def close(self) -> None:
        """Wait for saves that are under way, and give everything back."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        self._saver.shutdown(wait=True)
        for tip in self._tips.values():
            tip.close()
        self._tips.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<refault.Checkpoints {self._location.name}>"

    def _stores(self, id: str) -> list[tuple[str, Layout, CheckpointStore]]:
        session = self._repository.readonly_session(snapshot_id=id)
        return open_stores(session, self._repository.lookup_snapshot(id), self._location.name)

    def _check_usable(self) -> None:
        if self._closed:
            raise UsageError(f"{self!r} is closed; make it again")
        if self._pid != os.getpid():
            raise UsageError(f"{self!r} was made before the process forked; make one here")

    def _alone(self, call: Any, *args: Any) -> Any:
        """Run something when no save of ours is under way."""
        self._check_usable()
        waiting: Future[Any] = self._saver.submit(call, *args)
        return waiting.result()

    def _remember(self, branch: str, tip: Tip) -> None:
        before = self._tips.get(branch)
        self._tips[branch] = tip
        if before is not None:
            before.close()

    def _write(
        self,
        save: Save,
        instant: Instant,
        layouts: dict[str, Layout],
        branch: str,
        message: str,
        metadata: dict[str, Any],
    ) -> Checkpoint:
        """In the saver's thread: write an instant and commit it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(instant)
            stack.enter_context(failures(self._location.name, "save"))
            session = self._repository.writable_session(branch)
            # A new branch begins with a checkpoint that may be the tip of another one.
            tips = (tip for tip in self._tips.values() if tip.id == session.snapshot_id)
            writer = Writer(
                instant,
                layouts,
                next(tips, None),
                self._level,
                save._report,
            )
            stack.callback(writer.close)
            ours: dict[str, Any] = {
                "version": __version__,
                "saved": datetime.datetime.now(datetime.UTC).isoformat(),
            }
            writer.write(session.store, {"refault": ours})
            stored = {name: known.layout for name, known in writer.arrays.items()}
            ours |= {
                "nbytes": sum(layout.grid.nbytes for layout in stored.values()),
                "written": writer.written,
                "checksum": summarize(message, metadata, stored),
            }
            with self._location.alone():
                id = session.commit(message, {"refault": ours, "user": metadata})
            self._remember(branch, Tip(id, writer.arrays))
            writer.arrays = {}
            return checkpoint_of(self._repository.lookup_snapshot(id))


def _check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    found = dict(metadata or {})
    try:
        json.dumps(found)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"metadata cannot be kept: {error}; give what JSON has: text, numbers, lists and"
            " dicts with text for keys"
        ) from error
    return found


def _check_paths(names: Mapping[str, object]) -> None:
    for name in names:
        parts = name.split("/")
        for length in range(1, len(parts)):
            above = "/".join(parts[:length])
            if above in names:
                raise UsageError(
                    f"the array {above!r} cannot have {name!r} below it; give one another name"
                )


def _instant(when: When) -> datetime.datetime:
    if isinstance(when, datetime.timedelta):
        return datetime.datetime.now(datetime.UTC) - when
    return when if when.tzinfo is not None else when.astimezone()

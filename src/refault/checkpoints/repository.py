"""Icechunk's repository, and how one finds a checkpoint in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from refault.errors import UsageError

from .failures import failures
from .location import Location
from .records import Checkpoint

if TYPE_CHECKING:
    from icechunk import Repository, SnapshotInfo

__all__ = ["Resolved", "checkpoint_of", "open_repository", "resolve"]

MANIFEST_CHUNKS = 8192
"""Chunks along each axis whose places are kept in one object, of 20 bytes each: it is written
anew if one of them changes, and read before one of them is."""


class Resolved(NamedTuple):
    """What a name stands for.

    Attributes
    ----------
    id
        Of the checkpoint.
    branch
        Whose newest it is, if a branch was named.
    """

    id: str
    branch: str | None


def open_repository(location: Location, *, create: bool) -> Repository:
    """Open what is there, or make it if that is wanted.

    Raises
    ------
    UsageError
        Nothing is there.
    """
    from icechunk import (
        IcechunkError,
        ManifestConfig,
        ManifestSplitCondition,
        ManifestSplitDimCondition,
        ManifestSplittingConfig,
        Repository,
        RepositoryConfig,
    )

    with failures(location.name, "open"), location.alone():
        try:
            return Repository.open(location.storage)
        except IcechunkError as error:
            if "doesn't exist" not in str(error):
                raise
            if not create:
                raise UsageError(
                    f"{location.name}: there are no checkpoints; see where they were saved to"
                ) from None
        config = RepositoryConfig.default()
        config.manifest = ManifestConfig(
            splitting=ManifestSplittingConfig.from_dict(
                {
                    ManifestSplitCondition.AnyArray(): {
                        ManifestSplitDimCondition.Any(): MANIFEST_CHUNKS
                    }
                }
            )
        )
        made = Repository.create(location.storage, config)
        made.save_config()
        return made


def resolve(repository: Repository, ref: str | Checkpoint) -> Resolved:
    """Find a checkpoint by tag, branch or id.

    Raises
    ------
    UsageError
        There is none, or none yet.
    """
    name = ref.id if isinstance(ref, Checkpoint) else ref
    branch = None
    if not isinstance(ref, Checkpoint) and name in repository.list_tags():
        id = repository.lookup_tag(name)
    elif not isinstance(ref, Checkpoint) and name in repository.list_branches():
        id = repository.lookup_branch(name)
        branch = name
    else:
        id = name
    if repository.lookup_snapshot(id).parent_id is None:
        raise UsageError(f"{name}: there is no checkpoint yet; save one first")
    return Resolved(id, branch)


def checkpoint_of(info: SnapshotInfo) -> Checkpoint:
    """Return what Icechunk knows of a checkpoint."""
    ours: dict[str, Any] = info.metadata.get("refault", {})
    user = info.metadata.get("user", {}) if ours else info.metadata
    return Checkpoint(
        id=info.id,
        message=info.message,
        time=info.written_at,
        parent=info.parent_id,
        metadata=dict(user),
        nbytes=int(ours.get("nbytes", 0)),
        written=int(ours.get("written", 0)),
    )

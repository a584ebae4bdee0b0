"""The index of a model in several files: which tensor is in which."""

from __future__ import annotations

from refault.errors import UsageError

from .header import parse_json

__all__ = ["INDEX_SUFFIX", "parse_index", "shard_path"]

INDEX_SUFFIX = ".safetensors.index.json"


def parse_index(text: bytes, name: str) -> dict[str, str]:
    """The file of each tensor.

    Raises
    ------
    UsageError
        It is no index, or names a file elsewhere.
    """

    def refuse(reason: str) -> UsageError:
        return UsageError(f"{name} {reason}; give the index of a model, or one of its files")

    shards = parse_json(text, refuse).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
        raise refuse("has no weight_map from tensors to files")
    for file in set(shards.values()):
        if not file.endswith(".safetensors") or "/" in file or "\\" in file or "\0" in file:
            raise refuse(f"names {file!r}, which is not a .safetensors file beside it")
    return shards


def shard_path(index: str, file: str) -> str:
    """Where a file of a model is, whose index is at `index`: a path, or a URL."""
    folder, slash, _ = index.rpartition("/")
    return f"{folder}{slash}{file}"

"""Look at checkpoints: which there are, what is in one, how two differ, whether one is whole.

  refault checkpoints list runs/17
  refault checkpoints show s3://bucket/run v1
  refault checkpoints diff runs/17 v1 main
  refault checkpoints verify runs/17
  refault checkpoints export runs/17 runs/17.zarr v1

`export` copies one to a folder of plain Zarr, for readers that do not know Icechunk.

REF is a tag, a branch or the id of a checkpoint; "main" if it is left out.  Credentials for a
bucket come from the environment.

Exit status 1 if `verify` finds damage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refault.checkpoints.checkpoints import Checkpoints

__all__ = ["prepare_parser", "run"]


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, help, refs, action in (
        ("list", "the checkpoints of a branch, the newest first", "?", _list),
        ("show", "the arrays of one checkpoint", "?", _show),
        ("diff", "which arrays of two checkpoints differ", 2, _diff),
        ("verify", "read all of a checkpoint and compare it with its checksums", "?", _verify),
        ("export", "copy a checkpoint to a new folder of plain Zarr", "?", _export),
    ):
        one = actions.add_parser(name, help=help, description=help)
        one.add_argument("url", metavar="URL", help="a folder, s3://bucket/prefix or gs://...")
        if action is _export:
            one.add_argument("folder", metavar="FOLDER", help="a new one")
        default = "main" if refs == "?" else None
        one.add_argument("ref", metavar="REF", nargs=refs, default=default, help="see above")
        one.add_argument("--endpoint-url", help="of an S3 that is not Amazon's: http://host:9000")
        one.add_argument("--json", action="store_true", help="print one JSON object")
        one.set_defaults(action=action)


def run(args: argparse.Namespace) -> int:
    """Do what is asked for."""
    from refault.checkpoints.checkpoints import Checkpoints

    options: dict[str, Any] = {}
    if args.endpoint_url is not None:
        options = {
            "endpoint_url": args.endpoint_url,
            "allow_http": args.endpoint_url.startswith("http:"),
            "force_path_style": True,
        }
    action: Callable[[Checkpoints, argparse.Namespace], int] = args.action
    with Checkpoints(args.url, create=False, **options) as ck:
        return action(ck, args)


def _list(ck: Checkpoints, args: argparse.Namespace) -> int:
    names: dict[str, list[str]] = {}
    for name, id in [*ck.branches().items(), *ck.tags().items()]:
        names.setdefault(id, []).append(name)
    found = [(one, names.get(one.id, [])) for one in ck.history(args.ref)]
    if args.json:
        _print_json([_as_dict(one) | {"names": more} for one, more in found])
        return 0
    _print(
        ["id", "time", "size", "written", "names", "message"],
        [
            [
                one.id,
                _time(one),
                _size(one.nbytes),
                _size(one.written),
                ", ".join(more),
                one.message,
            ]
            for one, more in found
        ],
        ["size", "written"],
    )
    return 0


def _show(ck: Checkpoints, args: argparse.Namespace) -> int:
    one = ck.checkpoint(args.ref)
    arrays = ck.arrays(args.ref)
    if args.json:
        _print_json(_as_dict(one) | {"arrays": [array._asdict() for array in arrays]})
        return 0
    print(f"{one.id}  {_time(one)}  {one.message}")
    if one.metadata:
        print(json.dumps(one.metadata))
    print()
    _print(
        ["array", "dtype", "shape", "order", "size", "chunks", "of shape"],
        [
            [
                array.name,
                array.dtype,
                _shape(array.shape),
                array.order,
                _size(array.nbytes),
                f"{array.chunks:,}",
                _shape(array.chunk_shape),
            ]
            for array in arrays
        ],
        ["size", "chunks"],
    )
    return 0


def _diff(ck: Checkpoints, args: argparse.Namespace) -> int:
    found = ck.diff(*args.ref)
    if args.json:
        _print_json([one._asdict() for one in found])
    elif found:
        _print(
            ["array", "", "chunks", "size"],
            [[one.name, one.what, f"{one.chunks:,}", _size(one.nbytes)] for one in found],
            ["chunks", "size"],
        )
    else:
        print("no array differs")
    return 0


def _verify(ck: Checkpoints, args: argparse.Namespace) -> int:
    found = ck.verify(args.ref)
    if args.json:
        damage = [one._asdict() for one in found.damage]
        _print_json(found._asdict() | {"damage": damage, "ok": not found.damage})
        return 1 if found.damage else 0
    for damaged in found.damage:
        print(f"DAMAGED: {damaged.key}: {damaged.problem}")
    for name in found.unchecked:
        print(f"not checked: {name} was stored by another program, without a checksum that we know")
    read = f"{found.chunks:,} chunks of {found.arrays} arrays, {_size(found.nbytes)}"
    if found.damage:
        print(f"{len(found.damage):,} damaged; read: {read}")
        return 1
    print(f"all is well: {read}")
    return 0


def _export(ck: Checkpoints, args: argparse.Namespace) -> int:
    done = ck.export(args.folder, args.ref)
    if args.json:
        _print_json(done._asdict())
        return 0
    copied = f"{done.chunks:,} chunks of {done.arrays} arrays, {_size(done.nbytes)}"
    print(f"{args.folder}: {copied}")
    return 0


def _print(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from .table import print_table

    print_table(titles, rows, right)


def _print_json(what: object) -> None:
    print(json.dumps(what))


def _as_dict(one: Any) -> dict[str, Any]:
    return {**one._asdict(), "time": one.time.isoformat()}


def _time(one: Any) -> str:
    return str(one.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"))


def _size(nbytes: int) -> str:
    from refault.sizes import format_size

    return format_size(nbytes)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one value"

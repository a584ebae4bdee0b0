"""A save of what has changed, and the first element of what was saved: `refault.Checkpoints`.

*save*: an array of 4 GiB was saved before; then a hundredth of its pieces of 64 KiB, at random
places, is written to, and it is saved again.  `np.save` saves all of it.  Nobody writes meanwhile;
what a save does to who writes is in `snapshots`.  "call" is when the program may go on, "seconds"
when it is committed, "on_disk" when all files that it made are on the disk as well; "first" how
long the first checkpoint of everything took.  "ratio" is what was written by what was changed.

*load*: from the call of `load` to an element in the middle, the pager's start included; "open" is
what comes before, with all imports.  Files are not in the page cache.

Files that a round has made are emptied, and deleted when all is over: ext4 without a journal looks
at all that was deleted in the last minutes before it makes a file, which is no part of a save.

The same for both: the disk; content that no compression makes smaller; memory that was written to
before.  Pieces of the checkpoint, changed or not, are loaded and compared.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

from benchmarks.checkpointing import load, make_checkpoint, save_again
from benchmarks.child import call, contender
from benchmarks.files import drop, npy_file
from benchmarks.model import Comparison, Goal, Measure, Settings
from benchmarks.saving import first_element

__all__ = ["comparisons"]

MIB, GIB = 1 << 20, 1 << 30


def comparisons(settings: Settings) -> Iterator[Comparison]:
    size = settings.size(4 * GIB, 4 * MIB)
    shown = f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
    folder = str(settings.data)
    yield Comparison(
        f"checkpoints: save after 1 % of {shown} has changed",
        [
            contender(way, save_again, way=way, size=size, share=0.01, folder=folder)
            for way in ("checkpoints", "np.save")
        ],
        [
            Measure("seconds", "s", 3),
            Measure("on_disk", "s", 3),
            Measure("call", "ms"),
            Measure("written", "MiB", 1),
            Measure("changed", "MiB", 1),
            Measure("ratio", "written / changed", 3),
            Measure("first", "s"),
        ],
        [
            Goal("np.save", "seconds", "checkpoints", at_least=30),
            Goal("checkpoints", "ratio", at_most=1.2),
        ],
        baseline="np.save",
    )

    saved, path = settings.data / "checkpoints", npy_file(settings.data, size)

    def cold() -> None:
        if not saved.exists():
            call(make_checkpoint, {"size": size, "path": str(saved)})
        _drop(saved)

    yield Comparison(
        f"checkpoints: load of {shown}",
        [
            contender("checkpoints", load, before=cold, path=str(saved)),
            contender(
                "np.load", first_element, before=lambda: drop(path), way="np.load", path=str(path)
            ),
        ],
        [Measure("ms", "ms to the first element", 1), Measure("open", "ms", 1)],
        [Goal("checkpoints", "ms", at_most=200)],
        baseline="np.load",
    )
    shutil.rmtree(saved, ignore_errors=True)
    path.unlink()


def _drop(folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            drop(path)

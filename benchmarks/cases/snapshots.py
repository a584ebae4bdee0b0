"""An instant of an array that is being written to: how long do writers stop, what does it need?

*by size* and *by share*: a thread dirties 200 MB/s, in pieces of 64 KiB at random places, and every
piece is timed.  "quiet" is the slowest piece of two seconds in which nothing else happens: what
the machine is good for.  "stop" is the slowest one while the instant is taken; "after" that of the
two seconds afterwards, with the instant still held and not saved (what stops the program until all
is saved has no "after").  "call" is how long taking it took; "pause" what is said of it: by
`Snapshot.pause`, or how long `fork`, `np.save` and `async_save` took.  Dirty, where that makes a
difference, is what was written since the snapshot before; "the first one" has none before it, and
so everything is.

*save*: the same, and it is saved to a file, of which the page cache is enough: nobody waits for the
disk.  The writer goes on until that is done.  "refault" saves everything, as the others do;
"refault, changes" what was written since the snapshot before, one range after the other.  Extra
memory is what program and pager have more than before, at most; of a fork what parent and child
have together at the end, pages that they share counted once.  The goal of extra memory is 64
MiB, and 2 % of what the writer dirtied meanwhile.

*slowdown*: bytes per second of a writer that never rests, before and until everything is saved.

*first write*: a thread writes to each unit of an array once while a snapshot is held, and each time
waits until the unit's content is copied.  All copies fit into half of the memory that they may
take, so none is on its way to the disk.  *plain Python* is the same with REFAULT_NATIVE=0.

*load*: from the call to the first element, of a file that is not in the page cache.

The same for all: the writer, which is compiled and never waits for the GIL (``touch.c``); memory
that was written to before; nothing pinned, nothing evicted.  A fork's memory is private, in pages
of 4 KiB.  What was saved is checked: each piece must be the one that was written last before
the newest that was saved.

Not the same: `np.zeros` has huge pages where the kernel gives them; torch has a tensor of its own.
What needs the memory twice is not measured at more than 4 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.child import contender
from benchmarks.files import drop, npy_file
from benchmarks.model import Comparison, Contender, Goal, Measure, Settings
from benchmarks.pagers import PLAIN_PYTHON
from benchmarks.saving import first_element, first_writes, save, slow_down, stop

__all__ = ["comparisons"]

MIB, GIB = 1 << 20, 1 << 30


def comparisons(settings: Settings) -> Iterator[Comparison]:
    seconds = 0.05 if settings.quick else 2.0
    folder = str(settings.data)
    times = [
        Measure("stop", "ms", label="longest stop of a writer, ms"),
        Measure("after", "ms"),
        Measure("quiet", "ms"),
        Measure("call", "ms"),
        Measure("pause", "ms"),
    ]

    def ours(name: str, function: Callable[..., dict[str, float]], **arguments: Any) -> Contender:
        # What snapshots have to put on a disk goes to the one that is saved to.
        temporary = {"TMPDIR": folder}
        return contender(name, function, environment=temporary, folder=folder, **arguments)

    def stopping(name: str, way: str, size: int, share: float) -> Contender:
        return ours(name, stop, way=way, size=size, share=share, seconds=seconds)

    sizes = [2 * MIB, 4 * MIB]
    if not settings.quick:
        sizes = [256 * MIB << power for power in range(6)]
    *_, medium, large = (_size(size) for size in sizes)
    names = {
        f"{way}, {_size(size)}": (way, size)
        for way in ("refault", "fork", "np.save", "torch")
        for size in sizes
    }
    yield Comparison(
        "snapshots: by size, 1 % dirty",
        [stopping(name, way, size, 0.01) for name, (way, size) in names.items()],
        times,
        [
            Goal(f"refault, {medium}", "stop", at_most=5),
            Goal(f"refault, {large}", "stop", f"fork, {large}", at_most=0.2),
        ],
        series={name: size / GIB for name, (_, size) in names.items()},
        lines={name: way for name, (way, _) in names.items()},
        x_label="size of the array, GiB",
    )

    size = sizes[-2]
    shares = [1.0] if settings.quick else [0.001, 0.01, 0.1, 0.3, 1.0]
    both = {f"{way}, {share:.1%}": (way, share) for way in ("refault", "fork") for share in shares}
    # Nothing is protected before the first one.
    first = "refault, the first one"
    both[first] = "refault, first", 1.0
    yield Comparison(
        f"snapshots: by what is dirty, {medium}",
        [stopping(name, way, size, share) for name, (way, share) in both.items()],
        times,
        [Goal(name, "stop", at_most=5) for name, (way, _) in both.items() if way != "fork"],
        series={name: 100 * share for name, (_, share) in both.items()},
        lines={name: way for name, (way, _) in both.items()},
        x_label="dirty when the instant is taken, %",
        plotted=("stop", "call"),
    )

    ways = ("refault", "refault, changes", "fork", "np.save", "torch")
    yield Comparison(
        f"snapshots: save of {medium}, 1 % dirty, 200 MB/s written meanwhile",
        [ours(way, save, way=way, size=size, share=0.01) for way in ways],
        [
            Measure("longest", "ms", label="longest stop of a writer, ms"),
            Measure("seconds", "s"),
            Measure("saved", "MiB", 1),
            Measure("dirtied", "MiB", 0),
            Measure("extra", "MiB", 1),
            Measure("extra_share", "of allowed"),
        ],
        [Goal(way, "extra_share", at_most=1) for way in ways[:2]],
        baseline="np.save",
        plotted=("longest", "seconds", "extra"),
    )

    size = settings.size(GIB, 2 * MIB)
    yield Comparison(
        f"snapshots: slowdown of a writer that never rests, {_size(size)}",
        [ours(way, slow_down, way=way, size=size, seconds=seconds) for way in ways],
        [
            Measure("slowdown", "times"),
            Measure("alone", "MB/s", 0),
            Measure("meanwhile", "MB/s", 0),
            Measure("longest", "ms"),
            Measure("seconds", "s"),
        ],
        baseline="np.save",
    )

    for unit in (64 << 10,) if settings.quick else (4 << 10, 64 << 10):
        units = settings.size(8 * MIB, MIB) // unit
        yield Comparison(
            f"snapshots: first write of a unit of {unit >> 10} KiB while one is held",
            [
                contender(
                    name,
                    first_writes,
                    environment=environment,
                    unit=unit,
                    units=units,
                    snapshots=settings.size(20, 2),
                )
                for name, environment in (("refault", {}), ("plain Python", PLAIN_PYTHON))
            ],
            [Measure("us", "us per first write"), Measure("p50", "us"), Measure("p99", "us")],
            baseline="plain Python",
        )

    path = npy_file(settings.data, sizes[-2])
    yield Comparison(
        f"snapshots: load of {medium}",
        [
            contender(name, first_element, before=lambda: drop(path), way=name, path=str(path))
            for name in ("refault", "np.load")
        ],
        [Measure("ms", "ms to the first element", 1)],
        [Goal("refault", "ms", at_most=200)],
        baseline="np.load",
    )
    path.unlink()


def _size(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"

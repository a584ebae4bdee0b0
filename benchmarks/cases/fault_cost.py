"""What one page fault costs: one thread, file in the page cache, shuffled reads.

Compared with the bare C loop of ``limit.c``, which reads the same file with ``pread`` for every
page and runs the same loop of touches.  Each unit is touched once, so every touch is a fault.

Placement: "pinned" is the yardstick.  The C loop's handler is bound to the faulting CPU.  Of
refault only the faulting thread is bound, after the pager has started, and the pager is left
to follow it, as it does for a user.  "free" binds nothing.

Fair: the C loop *fill* makes the system calls that refault makes (pread, pwrite, CONTINUE): what is
left between the two is the price of Python.  The C loop *copy* saves one of them, and needs no
shared memory, which refault does; the goals are set against it.  *share* is UFFDIO_COPY to shared
memory.  *copy, no file* and *continue* show how much of it is the fault alone.
Neither evicts; `resident` is larger than what is touched.

*plain Python* is the same run with REFAULT_NATIVE=0, if there is native code to be left unused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping

from benchmarks.child import contender
from benchmarks.files import numbers_file, warm
from benchmarks.limit import limit
from benchmarks.machine import pin, processor_of, warm_memory
from benchmarks.model import Comparison, Contender, Goal, Measure, Missing, Sample, Settings
from benchmarks.pagers import PLAIN_PYTHON, native, pager_pid
from benchmarks.stats import latencies
from benchmarks.touch import Toucher, spread_offsets

__all__ = ["comparisons", "fault"]

MEASURES = [Measure("us", "us per fault"), Measure("p50", "us"), Measure("p99", "us")]
CASES = [(4 << 10, 1.5, 16384, 1024), (64 << 10, 1.2, 8192, 512), (1 << 20, None, 768, 48)]


def comparisons(settings: Settings) -> Iterator[Comparison]:
    for unit, goal, full, quick in CASES:
        yield _comparison(settings, unit, goal, settings.size(full, quick))


def _comparison(settings: Settings, unit: int, goal: float | None, touches: int) -> Comparison:
    before = touches // 8
    units = touches + before
    path = numbers_file(settings.data, unit * units)
    warm(path)

    def bare(
        name: str, mode: str, cpu: int | None, handler: str = "process", *, file: bool = True
    ) -> Contender:
        return limit(
            name,
            mode,
            unit=unit,
            units=units,
            touches=touches,
            warm=before,
            path=path if file else None,
            handler=handler,
            cpu=cpu,
        )

    def ours(name: str, cpu: int | None, environment: Mapping[str, str] | None = None) -> Contender:
        return contender(
            name,
            fault,
            environment=environment,
            path=str(path),
            unit=unit,
            touches=touches,
            warm_touches=before,
            cpu=cpu,
        )

    pinned = "C copy, pinned"
    return Comparison(
        f"fault cost, units of {unit >> 10} KiB",
        [
            ours("refault, pinned", settings.cpu),
            _plain(ours("refault, plain Python, pinned", settings.cpu, PLAIN_PYTHON)),
            bare(pinned, "copy", settings.cpu),
            bare("C fill, pinned", "fill", settings.cpu),
            bare("C share, pinned", "share", settings.cpu),
            bare("C copy, pinned, thread", "copy", settings.cpu, "thread"),
            bare("C copy, no file, pinned", "copy", settings.cpu, file=False),
            bare("C continue, pinned", "continue", settings.cpu, file=False),
            ours("refault, free", None),
            bare("C copy, free", "copy", None),
        ],
        [*MEASURES, Measure("same_cpu", "", 0)],
        [Goal("refault, pinned", "us", pinned, at_most=goal)] if goal is not None else [],
        baseline=pinned,
    )


def _plain(contender: Contender) -> Contender:
    """One without native code: not measured where nothing else is."""

    def run() -> Sample:
        if not native():
            raise Missing("not measured: there is no native code, refault is plain Python")
        return contender.run()

    return dataclasses.replace(contender, run=run)


def fault(
    path: str, unit: int, touches: int, warm_touches: int, cpu: int | None
) -> dict[str, float]:
    """Touch units of a region that is new."""
    import refault

    units = touches + warm_touches
    warm_memory(2 * unit * units)
    array = refault.open(path, dtype="u8", page_size=unit)
    pin(cpu)
    toucher = Toucher(array)
    offsets = spread_offsets(units, unit, units)
    toucher.touch(offsets[:warm_touches])
    done = toucher.touch(offsets[warm_touches:])
    same = processor_of(pager_pid()) == processor_of(os.getpid())
    found = {"us": done.ns / 1000 / touches, "same_cpu": float(same)}
    faults = refault.region(array).statistics().faults
    # Neighbours may follow each other by chance, and then a few units are read ahead.
    if faults < 0.9 * units:
        raise RuntimeError(f"{faults} faults for {units} touches: too few")
    return found | (latencies(done.latencies) if done.latencies is not None else {})

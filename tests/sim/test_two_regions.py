"""One instant of two regions: every order of a writer's steps and the snapshot's.

The `World` of the explorer has one region.  Here are two, and a thread that writes to both in turn:
a number to A, then the same to B.  No snapshot may have B newer than A, or A newer by two.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import combinations
from typing import Any

import pytest

from helpers.fake_machine import START, World
from refault.fault.snapshots import copy_before_write, instant, prepare
from refault.memory.mapping import Mapping
from refault.memory.protection import Images
from refault.memory.vma import Vma
from refault.memory.wait import Task
from refault.pager.tasks import PagerTask

PAGES = 2
WRITES = 6
FAR = START + (1 << 30)


class Pair:
    """Two regions, a writer, and a snapshot of both."""

    def __init__(self, dirty: tuple[int, ...]) -> None:
        self.world = World(pages=PAGES)
        other = self.world.add_mapping(PAGES, None)
        self.vmas = [self.world.vma, self.world.add_vma(other, FAR)]
        self.images: dict[Mapping, Images] = {}
        self.world.machine.answers = dict.fromkeys(range(PAGES), True)
        for place in dirty:
            self.write(self.vmas[place], 1, -1)

    def write(self, vma: Vma, index: int, value: int) -> None:
        """A store of the thread; it faults as often as it must."""
        machine = self.world.machine
        for _ in range(4):
            if machine.tables.get((vma, index)):
                machine.memory[vma.mapping, index] = value
                return
            there = (vma, index) in machine.tables
            address = vma.start + index * 4096
            run = self.world.fault(index, write=True, protected=there, address=address)
            self.world.settle()
            assert run.finished
        raise AssertionError("it faults and faults")

    def writer(self) -> Generator[None, None, None]:
        for number in range(1, WRITES // 2 + 1):
            for vma in self.vmas:
                self.write(vma, 0, number)
                yield

    def snapshot(self) -> Generator[None, None, None]:
        mappings = [vma.mapping for vma in self.vmas]
        preparing = prepare(self.world.machine, mappings, Task(), few=0, step=1)
        while True:
            try:
                next(preparing)
            except StopIteration:
                break
            yield
        found = instant(self.world.machine, mappings, images=True)
        self.images = dict(zip(mappings, found, strict=True))
        for mapping in mappings:
            protection = mapping.protection
            assert protection is not None
            monitor = PagerTask(self.world.scheduler, "monitor")
            work = copy_before_write(self.world.machine, mapping, protection, monitor)
            self.world.scheduler.spawn(monitor, work)

    def then(self, vma: Vma) -> Any:
        """What the snapshot has of the page that is written."""
        mapping = vma.mapping
        image = self.images[mapping].units.get(0)
        return self.world.machine.memory.get((mapping, 0), 0) if image is None else image.content


def steps_of(dirty: tuple[int, ...]) -> int:
    return sum(1 for _ in Pair(dirty).snapshot()) + 4


@pytest.mark.parametrize("dirty", [(), (0,), (1,), (0, 1)])
def test_no_newer_write_without_the_older_one(dirty: tuple[int, ...]) -> None:
    seen = set()
    slots = steps_of(dirty) + WRITES
    for when in combinations(range(slots), WRITES):
        pair = Pair(dirty)
        writer, snapshot = pair.writer(), pair.snapshot()
        writes = set(when)
        for slot in range(slots):
            next(writer if slot in writes else snapshot, None)
        for _ in snapshot:
            pass
        first, second = (pair.then(vma) for vma in pair.vmas)
        assert first - second in (0, 1), (when, first, second)
        seen.add((first, second))
    assert len(seen) == WRITES + 1, "at some order the snapshot falls between any two writes"

"""Snapshots and marks: who holds an instant, who copies for it, where its pages come from."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from refault.errors import StoreError, UsageError
from refault.fault.reclaim import runs
from refault.fault.snapshots import copy_before_write, end_snapshot, instant, prepare
from refault.machine.linux import LinuxMapping
from refault.memory.page import PG_SWAPPED, PG_UPTODATE
from refault.memory.protection import Images
from refault.memory.wait import Task, TaskState, Wait, WaitQueue, WaitReason, Waits
from refault.stores.swapspace import load_part

from .tasks import PagerTask

if TYPE_CHECKING:
    from .service import Pager

__all__ = ["Mark", "Snapshot", "SnapshotStore", "Snapshots", "snapshot_of"]


class Snapshot:
    """One instant of some mappings.

    Attributes
    ----------
    users
        Whoever holds it, and the stores that read from it.
    pause
        Seconds that the last round took: no fault was served meanwhile.
    """

    def __init__(self, number: int, images: dict[LinuxMapping, Images], pause: float) -> None:
        self.number = number
        self.images = images
        self.pause = pause
        self.users = 1


class Mark:
    """An instant of one mapping, for who wants to know what was written since."""

    def __init__(self, number: int, mapping: LinuxMapping, instant: int) -> None:
        self.number = number
        self.mapping = mapping
        self.instant = instant


class Snapshots:
    """All that a pager has.

    Parameters
    ----------
    pager
        Whose.
    """

    def __init__(self, pager: Pager) -> None:
        self.pager = pager
        self.snapshots: dict[int, Snapshot] = {}
        self.marks: dict[int, Mark] = {}
        self._taking = False
        self._taken = WaitQueue()

    def take(self, mappings: Iterable[LinuxMapping], task: Task) -> Waits[Snapshot]:
        """Take a snapshot; the caller has one use of it, see `release`.

        Raises
        ------
        StoreError
            A signal came first.
        """
        found, pause = yield from self._instant(list(dict.fromkeys(mappings)), task, images=True)
        snapshot = Snapshot(next(self.pager.numbers), found, pause)
        self.snapshots[snapshot.number] = snapshot
        for mapping in found:
            protection = mapping.protection
            assert protection is not None
            if len(protection.snapshots) == 1:
                monitor = PagerTask(self.pager.loop.scheduler, f"monitor of {mapping.name}")
                work = copy_before_write(self.pager.machine, mapping, protection, monitor)
                self.pager.loop.scheduler.spawn(monitor, work)
        return snapshot

    def release(self, snapshot: Snapshot) -> None:
        """Undo one use; the last one ends it."""
        snapshot.users -= 1
        if snapshot.users:
            return
        del self.snapshots[snapshot.number]
        for mapping, images in snapshot.images.items():
            end_snapshot(self.pager.machine, mapping, images)
            self._let_go(mapping, images.instant)

    def mark(self, mapping: LinuxMapping, snapshot: Snapshot | None, task: Task) -> Waits[Mark]:
        """Mark the instant of a snapshot, or a new one; `unmark` ends it."""
        if snapshot is not None:
            at = snapshot.images[mapping].instant
            assert mapping.written is not None
            mapping.written.hold(at)
            mapping.held += 1
        else:
            found, _ = yield from self._instant([mapping], task, images=False)
            at = found[mapping].instant
        mark = Mark(next(self.pager.numbers), mapping, at)
        self.marks[mark.number] = mark
        return mark

    def unmark(self, mark: Mark) -> None:
        """A mark ends."""
        del self.marks[mark.number]
        self._let_go(mark.mapping, mark.instant)

    def changed(
        self, mark: Mark, snapshot: Snapshot | None, first: int, last: int, most: int
    ) -> array[int]:
        """Units of ``[first, last)`` that were written since a mark, and before a snapshot or now.

        Returns
        -------
        array of int
            At most so many runs: first and last of each.
        """
        written = mark.mapping.written
        assert written is not None
        until = None if snapshot is None else snapshot.images[mark.mapping].instant
        units = (unit for unit in written.since(mark.instant, until) if first <= unit < last)
        found: array[int] = array("q")
        for run in runs(sorted(units)):
            if len(found) == 2 * most:
                break
            found.extend(run)
        return found

    def _let_go(self, mapping: LinuxMapping, instant: int) -> None:
        assert mapping.written is not None
        mapping.written.release(instant)
        mapping.untrack()
        self._unhold(mapping)

    def _unhold(self, mapping: LinuxMapping) -> None:
        mapping.held -= 1
        self.pager.free_if_unused(mapping)

    def _instant(
        self, mappings: Sequence[LinuxMapping], task: Task, *, images: bool
    ) -> Waits[tuple[dict[LinuxMapping, Images], float]]:
        for mapping in mappings:
            mapping.held += 1
        try:
            while self._taking and not task.signal_pending():
                yield Wait(self._taken, TaskState.INTERRUPTIBLE, WaitReason.WRITE_PROTECT)
            if task.signal_pending():
                raise StoreError("no snapshot was taken: it was cancelled")
            self._taking = True
            try:
                if not (yield from prepare(self.pager.machine, mappings, task)):
                    raise StoreError("no snapshot was taken: it was cancelled")
                before = time.monotonic()
                found = instant(self.pager.machine, mappings, images=images)
                pause = time.monotonic() - before
            finally:
                self._taking = False
                self._taken.wake_all()
        except BaseException:
            for mapping in mappings:
                self._unhold(mapping)
            raise
        return dict(zip(mappings, found, strict=True)), pause


class SnapshotStore:
    """The bytes of a mapping at the instant of a snapshot; read only.

    What was written since is in a copy.  All else is where the mapping has it now: in memory, in
    swap, or in its store.  Memory is read in the loop, where nothing can change meanwhile.  Swap
    and stores are read in a thread; if there is a copy afterwards, the copy counts.

    Parameters
    ----------
    snapshots
        Of the pager.
    snapshot, mapping
        What is read; the store uses the snapshot until it is closed.
    """

    def __init__(self, snapshots: Snapshots, snapshot: Snapshot, mapping: LinuxMapping) -> None:
        self.name = f"{mapping.name} (a snapshot)"
        self.size = mapping.size
        self._snapshots = snapshots
        self._snapshot = snapshot
        self._mapping = mapping
        self._images = snapshot.images[mapping]
        self._copies = snapshots.pager.machine.copies
        self._closed = False
        snapshot.users += 1

    def close(self) -> None:
        """Use the snapshot no longer."""
        if not self._closed:
            self._closed = True
            self._snapshots.release(self._snapshot)

    def read_nowait(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer`, if that needs no waiting; called in the loop."""
        return all(self._read_now(*part) for part in self._parts(offset, buffer))

    def read_start(self, offset: int, buffer: memoryview) -> int:
        """Fill what needs no waiting, from the beginning on; called in the loop.

        Returns
        -------
        int
            Bytes that were filled: up to the first unit that has to be waited for.
        """
        mapping, images = self._mapping, self._images.units
        done = plain = 0
        for index, low, part in self._parts(offset, buffer):
            if mapping.flags[index] & PG_UPTODATE and index not in images:
                plain += len(part)
                continue
            if not self._read_plain(offset + done, buffer[done : done + plain]):
                return done
            done, plain = done + plain, 0
            if not self._read_now(index, low, part):
                return done
            done += len(part)
        if self._read_plain(offset + done, buffer[done : done + plain]):
            done += plain
        return done

    def unit_end(self, offset: int) -> int:
        """Where the unit that holds a byte ends."""
        size = self._mapping.page_size
        return offset - offset % size + size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; called in threads."""
        for index, low, part in self._parts(offset, buffer):
            while not self._in_loop(index, low, part):
                image = self._images.units.get(index)
                if image is not None:
                    start, end = self._mapping.index_bytes(index)
                    self._copies.load(image, end - start, low, part)
                    break
                try:
                    self._read_away(index, low, part)
                except Exception:
                    if index not in self._images.units:
                        raise
                if index not in self._images.units:
                    break

    def _parts(self, offset: int, buffer: memoryview) -> Iterable[tuple[int, int, memoryview]]:
        """Each unit, where in it to begin, and what to fill."""
        size, at = self._mapping.page_size, 0
        while at < len(buffer):
            index, low = divmod(offset + at, size)
            length = min(size - low, len(buffer) - at)
            yield index, low, buffer[at : at + length]
            at += length

    def _read_plain(self, offset: int, part: memoryview) -> bool:
        """Read what is in memory, and has not been written to since."""
        self._check_open()
        return not part or os.preadv(self._mapping.memfd, [part], offset) == len(part)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.name}: was closed", permanent=True)

    def _read_now(self, index: int, low: int, part: memoryview) -> bool:
        self._check_open()
        image = self._images.units.get(index)
        if image is not None:
            return self._copies.load_nowait(image, low, part)
        mapping = self._mapping
        if not mapping.flags[index] & PG_UPTODATE:
            return False
        start, _ = mapping.index_bytes(index)
        return self._read_plain(start + low, part)

    def _read_away(self, index: int, low: int, part: memoryview) -> None:
        """Read a unit that was not in memory a moment ago."""
        mapping = self._mapping
        start, end = mapping.index_bytes(index)
        if not mapping.flags[index] & PG_SWAPPED:
            mapping.store.read_into(start + low, part)
            return
        load_part(mapping.swap, (mapping.number, index), end - start, low, part)

    def _in_loop(self, index: int, low: int, part: memoryview) -> bool:
        over = threading.Event()
        answer: list[bool | BaseException] = []

        def look() -> None:
            try:
                answer.append(self._read_now(index, low, part))
            except BaseException as error:
                answer.append(error)
            over.set()

        self._snapshots.pager.loop.workers.call(look)
        over.wait()
        if isinstance(answer[0], BaseException):
            raise answer[0]
        return answer[0]


def snapshot_of(snapshots: Snapshots, number: int, mapping: LinuxMapping) -> Snapshot:
    """Find a snapshot by its number.

    Raises
    ------
    UsageError
        It has ended, or the mapping is not part of it.
    """
    found = snapshots.snapshots.get(number)
    if found is None:
        raise UsageError("the snapshot is closed; take another one")
    if mapping not in found.images:
        raise UsageError(
            f"{mapping.name} is not part of the snapshot; give its array to refault.snapshot"
        )
    return found

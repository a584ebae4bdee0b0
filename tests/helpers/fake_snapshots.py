"""Snapshots without userfaultfd: memory is copied, and two copies are compared.

What `refault.checkpoints` needs of regions and snapshots, for tests of what it does with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from refault.client.copying import SharedBuffer
from refault.errors import UsageError

__all__ = ["UNIT", "FakeMemory"]

UNIT = 4096
"""Bytes that count as changed together."""


class FakeMemory:
    """Makes arrays that lie in regions, as far as `refault.checkpoints` sees.

    Attributes
    ----------
    snapshots, marks
        That are open.
    read_ranges
        Parts of snapshots that were read: bytes of an array.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from refault.checkpoints import instant

        self.regions: list[FakeRegion] = []
        self.snapshots: set[FakeSnapshot] = set()
        self.marks: set[FakeMark] = set()
        self.read_ranges: list[tuple[int, int]] = []
        monkeypatch.setattr(instant, "snapshot", self.snapshot)
        monkeypatch.setattr(instant, "region", self.region)
        monkeypatch.setattr(instant, "read_snapshot", self.read)

    def array(self, content: npt.ArrayLike) -> npt.NDArray[Any]:
        """An array in a region of its own."""
        region = FakeRegion(np.array(content, order="K"))
        self.regions.append(region)
        return region.array

    def region(self, array: npt.NDArray[Any]) -> FakeRegion:
        for region in self.regions:
            if np.may_share_memory(array, region.array):
                return region
        raise UsageError("the array lies in no region")

    def read(
        self,
        snapshot: FakeSnapshot,
        array: npt.NDArray[Any],
        ranges: Sequence[tuple[int, int]],
        buffer: SharedBuffer,
    ) -> None:
        content, at = _bytes(snapshot[array]), 0
        for start, end in ranges:
            buffer.data[at : at + end - start] = content[start:end].data
            at += end - start
        self.read_ranges += ranges

    def snapshot(self, *arrays: npt.NDArray[Any]) -> FakeSnapshot:
        return FakeSnapshot(self, arrays)


class FakeRegion:
    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array


class FakeSnapshot:
    def __init__(self, memory: FakeMemory, arrays: tuple[npt.NDArray[Any], ...]) -> None:
        self._memory = memory
        self._copies = {id(array): FakeRegion(array.copy(order="K")) for array in arrays}
        memory.regions += self._copies.values()
        memory.snapshots.add(self)

    def __getitem__(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        view = self._copies[id(array)].array.view()
        view.flags.writeable = False
        return view

    def mark(self, array: npt.NDArray[Any]) -> FakeMark:
        return FakeMark(self._memory, _bytes(self[array]).copy())

    def changed(self, array: npt.NDArray[Any], since: FakeMark) -> list[tuple[int, int]]:
        assert since in self._memory.marks
        now = _bytes(self[array])
        return [
            (start, min(start + UNIT, len(now)))
            for start in range(0, len(now), UNIT)
            if not np.array_equal(now[start : start + UNIT], since.content[start : start + UNIT])
        ]

    def close(self) -> None:
        self._memory.snapshots.discard(self)


class FakeMark:
    def __init__(self, memory: FakeMemory, content: npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self.content = content
        memory.marks.add(self)

    def close(self) -> None:
        self._memory.marks.discard(self)


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    flat = array if array.flags.c_contiguous else array.T
    return flat.reshape(-1).view(np.uint8)

"""So many at a time, and none is left behind."""

from __future__ import annotations

import asyncio

import pytest

from refault.checkpoints.uploads import Uploads


class Place:
    """Something to upload to; the upload with the number `broken` fails."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        self.started = self.ended = self.most = 0

    async def put(self) -> None:
        self.started += 1
        number = self.started
        self.most = max(self.most, self.started - self.ended)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.ended += 1
        if number == self.broken:
            raise OSError("full")


def test_so_many_at_a_time() -> None:
    place = Place()

    async def run() -> None:
        async with Uploads(3) as uploads:
            for _ in range(20):
                await uploads.add(place.put)

    asyncio.run(run())
    assert (place.started, place.ended, place.most) == (20, 20, 3)


@pytest.mark.parametrize("broken", [1, 19, 20])
def test_a_failure_ends_it_and_nothing_is_left(broken: int) -> None:
    place = Place(broken)

    async def run() -> None:
        async with Uploads(3) as uploads:
            for _ in range(20):
                await uploads.add(place.put)

    with pytest.raises(OSError, match="full"):
        asyncio.run(run())
    assert place.started == place.ended <= broken + 3


def test_what_is_on_its_way_ends_before_an_error_goes_on() -> None:
    place = Place()

    async def run() -> None:
        async with Uploads(3) as uploads:
            await uploads.add(place.put)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(run())
    assert place.started == place.ended == 1

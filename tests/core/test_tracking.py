"""Who wrote what since which instant."""

from __future__ import annotations

import random

import pytest

from refault.memory.protection import Image, Images, Protection
from refault.memory.tracking import Written


def instant(written: Written) -> int:
    written.writable.clear()
    return written.advance()


def test_sets_of_units_since_an_instant() -> None:
    written = Written()
    written.wrote(9)
    first = instant(written)
    written.wrote(1)
    second = instant(written)
    written.wrote(2)
    written.wrote(1)
    assert written.since(first) == {1, 2}
    assert written.since(first, second) == {1}
    assert written.since(second) == {1, 2}


def test_an_instant_needs_everything_protected() -> None:
    written = Written()
    written.wrote(1)
    with pytest.raises(AssertionError):
        written.advance()


def test_what_nobody_can_ask_for_is_forgotten() -> None:
    written = Written()
    first = instant(written)
    written.wrote(1)
    second = instant(written)
    written.wrote(2)
    written.release(first)
    assert written.used
    assert len(written._sets) == 1
    written.release(second)
    assert not written.used
    assert not written._sets


@pytest.mark.parametrize("seed", range(20))
def test_against_a_plain_list(seed: int) -> None:
    """Whatever instants are held and released, `since` is what was written after them."""
    rng = random.Random(seed)
    written = Written()
    log: list[int] = []
    held: dict[int, tuple[int, int]] = {}  # instant: where in the log, how many holders
    for _ in range(300):
        what = rng.random()
        if what < 0.5 or not held:
            if what < 0.1 or not held:
                held[instant(written)] = (len(log), 1)
                continue
            unit = rng.randrange(20)
            written.wrote(unit)
            log.append(unit)
            continue
        number = rng.choice(list(held))
        at, count = held[number]
        if what < 0.6:
            written.hold(number)
            held[number] = (at, count + 1)
        elif what < 0.8:
            written.release(number)
            held[number] = (at, count - 1)
            if count == 1:
                del held[number]
        else:
            until = rng.choice([None, *(n for n in held if n >= number)])
            end = len(log) if until is None else held[until][0]
            assert written.since(number, until) == set(log[at:end])
        assert len(written._sets) == len(held)


def test_copies_are_shared_by_all_snapshots_that_lack_one() -> None:
    protection = Protection()
    first, second, third = Images(1), Images(2), Images(3)
    one, two = Image("one"), Image("two")
    protection.begin(first)
    protection.save(5, one)
    assert not protection.holds(5)
    protection.begin(second)
    protection.begin(third)
    assert protection.holds(5)
    protection.save(5, two)
    assert [images.units[5] for images in protection.snapshots] == [one, two, two]
    assert protection.end(second) == []
    assert protection.end(first) == [one]
    assert protection.end(third) == [two]
    assert not protection.holds(5)


def test_end_of_the_newest_lets_those_go_who_waited_for_it_alone() -> None:
    protection = Protection()
    old, new = Images(1), Images(2)
    protection.begin(old)
    protection.save(5, Image(None))
    protection.begin(new)
    protection.ask(5)
    protection.ask(6)
    protection.end(new)
    assert protection.asked == {6}

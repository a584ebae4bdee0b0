"""`Budget`: a bound that holds, here and above."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refault.fault.reclaim import BATCH_BYTES
from refault.memory.budget import Budget
from refault.memory.wait import Task


class Sleeper(Task):
    __slots__ = ("woken",)

    def __init__(self) -> None:
        super().__init__("sleeper")
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def sleep_on(budget: Budget) -> Sleeper:
    sleeper = Sleeper()
    budget.freed.tasks.append(sleeper)
    return sleeper


def test_full_to_the_last_byte() -> None:
    budget = Budget(100)
    assert budget.try_charge(60) is None
    assert budget.try_charge(41) is budget
    assert budget.usage == 60
    assert budget.try_charge(40) is None
    budget.uncharge(100)
    assert (budget.usage, budget.peak) == (0, 100)


def test_no_bound() -> None:
    budget = Budget(None)
    assert budget.try_charge(1 << 60) is None
    assert not budget.pressed(1)


def test_the_one_that_is_full_is_named() -> None:
    total = Budget(100)
    one, other = Budget(80, total), Budget(None, total)
    assert one.try_charge(70) is None
    assert one.try_charge(20) is one
    assert other.try_charge(40) is total
    assert (total.usage, one.usage, other.usage) == (70, 70, 0)
    # Both are full: the one above is named, since room below would not help.
    assert one.try_charge(40) is total


def test_more_cannot_come_back_than_went_out() -> None:
    budget = Budget(10)
    budget.try_charge(5)
    with pytest.raises(AssertionError):
        budget.uncharge(6)


def test_room_wakes_who_waits_here_and_above() -> None:
    total = Budget(10)
    one, other = Budget(10, total), Budget(10, total)
    one.try_charge(10)
    here, above, elsewhere = sleep_on(one), sleep_on(total), sleep_on(other)
    one.uncharge(1)
    assert (here.woken, above.woken, elsewhere.woken) == (1, 1, 0)
    here, above = sleep_on(one), sleep_on(total)
    one.wake_waiters()
    assert (here.woken, above.woken) == (1, 1)


def test_larger_limit_wakes_who_waits() -> None:
    budget = Budget(10)
    sleeper = sleep_on(budget)
    budget.set_limit(20)
    assert sleeper.woken == 1
    assert budget.limit == 20


def test_smaller_limit_takes_nothing_away_by_itself() -> None:
    budget = Budget(1000)
    budget.try_charge(900)
    budget.set_limit(640)
    assert (budget.usage, budget.low_free) == (900, 10)
    assert budget.pressed(1)
    assert budget.try_charge(1) is budget


def test_pressed_below_the_low_mark() -> None:
    budget = Budget(6400)
    assert budget.low_free == 100
    budget.try_charge(6300)
    assert not budget.pressed(100)
    budget.try_charge(1)
    assert budget.pressed(100)


def test_large_budget_keeps_no_more_free_than_two_batches() -> None:
    assert Budget(1 << 40).low_free == 2 * BATCH_BYTES


def test_small_budget_keeps_nothing_free() -> None:
    """The low mark is less than one unit: nobody takes a whole one ahead of need."""
    budget = Budget(6300)
    budget.try_charge(6300)
    assert not budget.pressed(100)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.one_of(st.none(), st.integers(0, 30))] * 3),
    st.lists(st.tuples(st.sampled_from(["charge", "uncharge"]), st.booleans(), st.integers(1, 9))),
)
def test_model(limits: tuple[int | None, ...], steps: list[tuple[str, bool, int]]) -> None:
    total = Budget(limits[0])
    parts = [Budget(limit, total) for limit in limits[1:]]
    model = [0, 0]
    peaks = [0, 0, 0]
    for what, which, size in steps:
        part = parts[which]
        if what == "charge":
            fits = (part.limit is None or model[which] + size <= part.limit) and (
                total.limit is None or sum(model) + size <= total.limit
            )
            full = part.try_charge(size)
            assert (full is None) == fits
            if fits:
                model[which] += size
            elif full is total:
                assert total.limit is not None
                assert sum(model) + size > total.limit
            else:
                assert full is part
        elif model[which] >= size:
            part.uncharge(size)
            model[which] -= size
        peaks = [max(peak, now) for peak, now in zip(peaks, [sum(model), *model], strict=True)]
        assert [total.usage, parts[0].usage, parts[1].usage] == [sum(model), *model]
        assert [total.peak, parts[0].peak, parts[1].peak] == peaks

"""`WorkingSet` against a model of plain lists."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from refault.memory.workingset import WorkingSet


def everything(index: int) -> bool:
    return True


def filled(count: int, ghosts: int = 100) -> WorkingSet:
    units = WorkingSet(ghosts)
    for index in range(count):
        assert not units.add(index)
    return units


def evict(units: WorkingSet, *indexes: int) -> None:
    for index in indexes:
        units.remove(index, ghost=True)


def test_oldest_first() -> None:
    assert filled(5).victims(3, everything) == [0, 1, 2]


def test_unit_that_comes_back_is_active() -> None:
    units = filled(4)
    evict(units, 0, 1)
    assert units.add(0)
    assert not units.add(7)
    assert list(units.active) == [0]
    assert list(units.inactive) == [2, 3, 7]
    # It came back once; the ghost is used up.
    units.remove(0, ghost=False)
    assert not units.add(0)


def test_what_was_asked_for_leaves_no_ghost() -> None:
    units = filled(1)
    units.remove(0, ghost=False)
    assert not units.add(0)


def test_no_more_ghosts_than_fit_the_budget() -> None:
    units = filled(5, ghosts=2)
    evict(units, 0, 1, 2, 3)
    assert list(units.ghosts) == [2, 3]
    assert not units.add(0)
    assert units.add(3)


def test_active_units_give_way_above_three_quarters() -> None:
    units = filled(8)
    evict(units, *range(8))
    for index in range(8):
        assert units.add(index)
    assert len(units.active) == 8
    assert units.victims(1, everything) == [0]
    assert (len(units.inactive), len(units.active)) == (2, 6)


def test_what_is_passed_over_goes_to_the_young_end() -> None:
    units = filled(200)
    assert units.victims(1, lambda index: index >= 100) == []
    assert units.victims(1, lambda index: index >= 100) == [100]


def test_nothing_is_moved_if_something_is_found() -> None:
    units = filled(10)
    assert units.victims(1, lambda index: index == 5) == [5]
    assert list(units.inactive) == list(range(10))


def test_no_more_are_looked_at_than_said() -> None:
    looked = []
    units = filled(1000)
    units.victims(10, lambda index: looked.append(index) or len(looked) > 20, look_at=50)
    assert len(looked) <= 60


def test_search_of_everything_finds_the_one() -> None:
    """A thousand pinned units and one that is not, anywhere, also among the active ones."""
    units = filled(1000)
    evict(units, 0)
    assert units.add(0)
    for the_one in (0, 1, 500, 999):
        assert units.victims(1, lambda index, it=the_one: index == it, look_at=None) == [the_one]
    assert units.victims(1, lambda index: False, look_at=None) == []
    assert list(units.inactive) == list(range(1, 1000))


class Model:
    """What the docstring of the module says, with lists."""

    def __init__(self, max_ghosts: int) -> None:
        self.inactive: list[int] = []
        self.active: list[int] = []
        self.ghosts: list[int] = []
        self.max_ghosts = max_ghosts

    def add(self, index: int) -> bool:
        if index in self.ghosts:
            self.ghosts.remove(index)
            self.active.append(index)
            return True
        self.inactive.append(index)
        return False

    def remove(self, index: int, ghost: bool) -> None:
        (self.inactive if index in self.inactive else self.active).remove(index)
        if ghost:
            self.ghosts = [*self.ghosts, index]
            if len(self.ghosts) > self.max_ghosts:
                self.ghosts.pop(0)

    def victims(self, count: int, usable: set[int], look_at: int | None) -> list[int]:
        while self.active and 4 * len(self.inactive) < len(self.inactive) + len(self.active):
            self.inactive.append(self.active.pop(0))
        if look_at is None:
            return [i for i in self.inactive + self.active if i in usable][:count]
        found: list[int] = []
        passed: list[int] = []
        for index in self.inactive:
            if len(found) == count or len(passed) == look_at:
                break
            (found if index in usable else passed).append(index)
        if not found:
            self.inactive = [i for i in self.inactive if i not in passed] + passed
        return found


UNITS = st.integers(0, 11)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 6),
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), UNITS),
            st.tuples(st.sampled_from(["evict", "drop"]), UNITS),
            st.tuples(
                st.just("victims"),
                st.integers(1, 4),
                st.sets(UNITS),
                st.one_of(st.none(), st.integers(1, 4)),
            ),
        ),
        max_size=60,
    ),
)
def test_model(max_ghosts: int, steps: list[tuple]) -> None:
    units, model = WorkingSet(max_ghosts), Model(max_ghosts)
    for what, *rest in steps:
        if what == "add" and rest[0] not in units:
            assert units.add(rest[0]) == model.add(rest[0])
        elif what in ("evict", "drop") and rest[0] in units:
            units.remove(rest[0], ghost=what == "evict")
            model.remove(rest[0], ghost=what == "evict")
        elif what == "victims":
            count, usable, look_at = rest
            assert units.victims(count, usable.__contains__, look_at=look_at) == model.victims(
                count, usable, look_at
            )
        assert list(units.inactive) == model.inactive
        assert list(units.active) == model.active
        assert list(units.ghosts) == model.ghosts
        assert list(units) == model.inactive + model.active
        assert len(units) == len(list(units))
        assert len(units.ghosts) <= max_ghosts
        assert not set(units.ghosts) & set(units)

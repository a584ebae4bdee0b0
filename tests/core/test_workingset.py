"""`WorkingSet` against a model of plain lists, with both kinds of `UnitLists`."""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refault.machine.unitlists import NativeUnitLists
from refault.memory import workingset
from refault.memory.unitlists import GHOSTS, LEVELS, NODE, UnitLists
from refault.memory.workingset import GHOST_SHARE, HIGH, SHARE, WEIGHT, WorkingSet
from refault.native import available

SPARSE = workingset.FEW + 1
"""Units of a mapping whose places are in no array, if few of them fit."""


class _Now:
    """What the lists of the units are made of."""

    lists: type[UnitLists] = UnitLists


@pytest.fixture(params=[UnitLists, NativeUnitLists], autouse=True, scope="module")
def lists(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param is NativeUnitLists and not available():
        pytest.skip("there is no native library, or it is not wanted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refault.machine.unitlists.FEW", 0)
        patch.setattr(_Now, "lists", request.param)
        yield


def working_set(pages: int, room: int | None = None) -> WorkingSet:
    return WorkingSet(pages, room, lists=_Now.lists)


def everything(index: int) -> bool:
    return True


def filled(count: int, room: int = 100, pages: int = 2000) -> WorkingSet:
    units = working_set(pages, room)
    assert not units.add_many(range(count))
    return units


def levels(units: WorkingSet) -> list[list[int]]:
    return [list(units.lists.units(level)) for level in range(LEVELS)]


def ghosts(units: WorkingSet) -> list[int]:
    return list(units.lists.units(GHOSTS))


def come_back(units: WorkingSet, indexes: Iterable[int]) -> None:
    """Evict units and bring them in again."""
    indexes = list(indexes)
    units.remove_many(indexes, ghost=True)
    assert units.add_many(indexes) == len(indexes)


# -- the rule ------------------------------------------------------------------------------


def test_oldest_first() -> None:
    assert filled(5).victims(3, everything) == [0, 1, 2]


def test_unit_that_comes_back_comes_in_one_level_higher() -> None:
    units = filled(4)
    for level in (1, 2, 3, 3):
        come_back(units, [0])
        assert levels(units)[level] == [0]
        assert levels(units)[0] == [1, 2, 3]


def test_ghost_is_used_up() -> None:
    units = filled(1)
    come_back(units, [0])
    units.remove(0, ghost=False)
    assert not units.add(0)
    assert levels(units)[0] == [0]


def test_what_was_asked_for_leaves_no_ghost() -> None:
    units = filled(1)
    units.remove(0, ghost=False)
    assert not units.add(0)


def test_three_quarters_as_many_ghosts_as_units_fit() -> None:
    units = filled(8, room=4)
    units.remove_many([5, 0, 1, 2, 3], ghost=True)
    assert ghosts(units) == [1, 2, 3]
    assert not units.add(5)
    assert not units.add(0)
    assert units.add(3)


def test_less_room_means_fewer_ghosts() -> None:
    units = filled(8, room=8)
    units.remove_many(range(8), ghost=True)
    assert ghosts(units) == [2, 3, 4, 5, 6, 7]
    units.set_room(2)
    assert ghosts(units) == [6, 7]
    units.set_room(0)
    assert not ghosts(units)
    assert not units.add(7)


def test_upper_levels_give_way() -> None:
    units = filled(16)
    come_back(units, range(16))
    assert [len(level) for level in levels(units)] == [0, 16, 0, 0]
    units.wanted = 0
    assert units.victims(1, everything) == [0]
    assert [len(level) for level in levels(units)] == [1, 15, 0, 0]
    come_back(units, range(16))
    units.wanted = 0
    units.victims(1, everything)
    # 15/16 of 16 above the lowest.
    assert [len(level) for level in levels(units)] == [1, 0, 15, 0]
    come_back(units, range(8))
    units.wanted, units.high = 0, 5
    units.victims(1, everything)
    assert [len(level) for level in levels(units)] == [1, 10, 0, 5]


def test_what_came_in_high_and_is_used_no_more_makes_room() -> None:
    units = filled(8, room=8)
    for _ in range(HIGH):
        come_back(units, range(4))
    assert units.high == 7
    units.remove_many(range(8), ghost=True)
    # Six ghosts are remembered, and the two that are not had come in high.
    assert ghosts(units) == [2, 3, 4, 5, 6, 7]
    assert units.high == 5
    units.add_many([4, 5])  # they had not
    assert units.high == 5
    units.add_many([2])
    assert units.high == 6
    units.add_many([3])
    come_back(units, [2])
    assert units.high == 7, "never more than the upper levels may have"
    # Another room: nothing is known yet of what fits there.
    units.high = 0
    units.set_room(16)
    assert units.high == 15


def test_unit_that_goes_down_remembers_where_it_came_in() -> None:
    units = filled(3)
    come_back(units, range(3))
    units.wanted = 100
    units.victims(1, everything)
    assert levels(units)[0] == [0, 1, 2]
    come_back(units, [0])
    assert levels(units)[2] == [0]


def test_lowest_level_grows_and_shrinks() -> None:
    units = filled(8)
    come_back(units, range(8))
    assert units.wanted == 8
    come_back(units, [0, 1])
    assert units.wanted == 8 - 2 * WEIGHT
    come_back(units, range(8))
    assert units.wanted == 0


def test_lowest_level_never_wants_more_than_all() -> None:
    units = filled(64, room=16)
    for first in range(0, 64, 8):
        come_back(units, range(first, first + 8))
    assert units.wanted == 15
    units.set_room(8)
    assert units.wanted == 7


def test_lowest_level_grows_if_what_is_read_ahead_has_no_time() -> None:
    units = filled(64, room=64)
    come_back(units, range(32))
    come_back(units, range(32, 64))
    units.wanted = 0
    units.wasted(5)
    units.victims(1, everything)
    assert [len(level) for level in levels(units)] == [4 + 5, 60 - 5, 0, 0]
    units.wasted(100)
    assert units.wanted == 60


# -- what cannot be evicted ----------------------------------------------------------------


def test_what_is_passed_over_goes_to_the_young_end() -> None:
    units = filled(200, room=300)
    assert units.victims(1, lambda index: index >= 100) == []
    assert units.victims(1, lambda index: index >= 100) == [100]


def test_nothing_is_moved_if_something_is_found() -> None:
    units = filled(10)
    assert units.victims(1, lambda index: index == 5) == [5]
    assert levels(units)[0] == list(range(10))


def test_no_more_are_looked_at_than_said() -> None:
    looked: list[int] = []
    units = filled(1000, room=1000)
    units.victims(10, lambda index: looked.append(index) or len(looked) > 20, look_at=50)
    assert len(looked) <= 60


def test_search_goes_on_in_the_next_level() -> None:
    units = filled(8)
    come_back(units, [3, 5])
    assert units.victims(2, lambda index: index == 3) == [3]


def test_search_of_everything_finds_the_one() -> None:
    """A thousand pinned units and one that is not, anywhere, also in an upper level."""
    units = filled(1000, room=1000)
    come_back(units, [0])
    for the_one in (0, 1, 500, 999):
        assert units.victims(1, lambda index, it=the_one: index == it, look_at=None) == [the_one]
    assert units.victims(1, lambda index: False, look_at=None) == []
    assert levels(units)[0] == list(range(1, 1000))


@pytest.mark.parametrize("ghost", [False, True])
def test_memory_is_bounded_however_often_units_come_and_go(ghost: bool) -> None:
    units = filled(100, pages=SPARSE)
    for turn in range(3000):
        units.remove(turn % 100, ghost=ghost)
        units.add(turn % 100)
    for index in range(1000, 5000):
        units.add(index)
        units.remove(index, ghost=ghost)
    lists = units.lists
    assert len(lists.nodes) < 300 * NODE
    if isinstance(lists.places, dict):
        assert len(lists.places) <= len(units) + len(ghosts(units))


# -- shapes --------------------------------------------------------------------------------


def test_places_are_in_no_array_if_few_units_fit() -> None:
    assert not isinstance(working_set(1 << 32, 1000).lists.places, array)
    assert not isinstance(working_set(SPARSE).lists.places, array)
    assert isinstance(working_set(SPARSE, SPARSE // 4).lists.places, array)


@pytest.mark.parametrize(("pages", "more"), [(10, 20), (SPARSE, 1 << 33)])
def test_mapping_that_grows(pages: int, more: int) -> None:
    units = working_set(pages, 5)
    units.add_many([1, 2])
    units.remove(1, ghost=True)
    units.grow(more)
    assert more - 1 not in units
    assert not units.add(more - 1)
    assert units.add(1)
    assert list(units) == [2, more - 1, 1]


# -- a model -------------------------------------------------------------------------------


class Model:
    """What the docstring of the module says, with lists."""

    def __init__(self, room: int) -> None:
        self.most = self.high = room * SHARE[0] // SHARE[1]
        self.levels: list[list[int]] = [[] for _ in range(LEVELS)]
        self.came_in: dict[int, int] = {}
        self.ghosts: list[int] = []
        self.room = room
        self.max_ghosts = -(-room * GHOST_SHARE[0] // GHOST_SHARE[1])
        self.wanted = 0
        self.newest = -1

    def add(self, indexes: list[int]) -> int:
        had = []
        for index in indexes:
            self.newest = index
            refault = index in self.ghosts
            if refault:
                self.ghosts.remove(index)
                had.append(self.came_in[index])
            level = min(self.came_in[index] + 1, LEVELS - 1) if refault else 0
            self.came_in[index] = level
            self.levels[level].append(index)
        self.wanted += sum(-WEIGHT if before else 1 for before in had)
        self.wanted = min(max(0, self.wanted), self.most)
        self.high = min(self.high + sum(before >= HIGH for before in had), self.most)
        return len(had)

    def remove(self, index: int, ghost: bool) -> None:
        for level in self.levels:
            if index in level:
                level.remove(index)
                if ghost:
                    self.ghosts.append(index)
        while len(self.ghosts) > self.max_ghosts:
            self.high = max(0, self.high - (self.came_in[self.ghosts.pop(0)] >= HIGH))

    def victims(self, count: int, usable: set[int], look_at: int | None) -> list[int]:
        if look_at is not None:
            usable = usable - {self.newest}
        total = sum(map(len, self.levels))
        upper = max(0, total * SHARE[0] // SHARE[1] - self.wanted)
        limits = [upper if n < HIGH else min(upper, self.high) for n in range(1, LEVELS)]
        for number in range(LEVELS - 1, 0, -1):
            while sum(map(len, self.levels[number:])) > limits[number - 1] and self.levels[number]:
                self.levels[number - 1].append(self.levels[number].pop(0))
        order = [index for level in self.levels for index in level]
        looked = order if look_at is None else order[: count + look_at]
        found = [index for index in looked if index in usable][:count]
        if not found and look_at is not None:
            self.levels = [
                [i for i in level if i not in looked] + [i for i in level if i in looked]
                for level in self.levels
            ]
        return found


UNITS = st.integers(0, 11)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(UNITS, max_size=5)),
        st.tuples(st.sampled_from(["evict", "drop"]), st.lists(UNITS, max_size=5)),
        st.tuples(
            st.sampled_from(["victims", "evict victims"]),
            st.integers(1, 4),
            st.sets(UNITS),
            st.one_of(st.none(), st.integers(1, 4)),
        ),
    ),
    max_size=60,
)


@pytest.mark.parametrize("pages", [12, SPARSE])
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8), STEPS, st.booleans())
def test_model(pages: int, room: int, steps: list[tuple], many: bool) -> None:
    play(working_set(pages, room), Model(room), steps, many)


def play(units: WorkingSet, model: Model, steps: list[tuple], many: bool) -> None:
    def remove(indexes: list[int], ghost: bool) -> None:
        if many:
            units.remove_many(indexes, ghost=ghost)
        else:
            for index in indexes:
                units.remove(index, ghost=ghost)
        for index in indexes:
            model.remove(index, ghost)

    for what, *rest in steps:
        if what == "add":
            new = [index for index in dict.fromkeys(rest[0]) if index not in units]
            if many:
                assert units.add_many(rest[0]) == model.add(new)
            else:
                assert [units.add(index) for index in new] == [model.add([i]) for i in new]
        elif what in ("evict", "drop"):
            remove(rest[0], what == "evict")
        else:
            count, usable, look_at = rest
            chosen = units.victims(count, usable.__contains__, look_at=look_at)
            assert chosen == model.victims(count, usable, look_at)
            assert len(chosen) <= count
            assert all(index in units and index in usable for index in chosen)
            assert chosen or look_at is not None or not usable & set(units)
            if what == "evict victims":
                remove(chosen[::-1], True)
        assert levels(units) == model.levels
        assert ghosts(units) == model.ghosts
        assert (units.wanted, units.high) == (model.wanted, model.high)
        inside = [index for level in model.levels for index in level]
        assert list(units) == inside
        assert len(units) == len(inside) == len(set(inside))
        assert [index for index in range(12) if index in units] == sorted(inside)
        assert len(ghosts(units)) <= model.max_ghosts


def rebuilt(units: WorkingSet, room: int) -> WorkingSet:
    """The same state in other memory."""
    other, lists = working_set(12, room), units.lists
    other.wanted, other.high = units.wanted, units.high
    for number in (*range(LEVELS), GHOSTS):
        for index in lists.units(number):
            other.lists.enter([index])
            other.lists.put(index, number, lists.came_in(index))
    other.lists.newest = lists.newest
    return other


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8), STEPS, STEPS)
def test_equal_states_go_on_equally(room: int, before: list[tuple], after: list[tuple]) -> None:
    """What is not in `state` decides nothing: the explorer relies on it."""
    units, model = working_set(12, room), Model(room)
    play(units, model, before, True)
    other = rebuilt(units, room)
    assert other.state() == units.state()
    play(units, copy.deepcopy(model), after, True)
    play(other, model, after, True)
    assert other.state() == units.state()


# -- getting on ----------------------------------------------------------------------------


@pytest.mark.parametrize("room", range(2, 20))
def test_two_units_can_be_there_at_once(room: int) -> None:
    """An access that needs both gets on, whatever the others are worth."""
    present = working_set(1000, room)

    def need(index: int) -> None:
        if index in present:
            return
        if len(present) >= room:
            # Some are dirty: they are written first, and go only if no other one can.
            found = present.victims(1, lambda index: index >= 500)
            (victim,) = found or present.victims(1, lambda _: True)
            present.remove(victim, ghost=True)
        present.add(index)

    dice = random.Random(room)
    for _ in range(300):
        # Some are worth a lot.
        for _ in range(4):
            need(dice.randrange(room))
        pair = (500 + dice.randrange(50), 700 + dice.randrange(50))
        for _ in range(5):
            for index in pair:
                need(index)
            if all(index in present for index in pair):
                break
        else:
            pytest.fail(f"{pair} take each other's place")

"""The scenarios: the small ones in every order, the large ones as far as there is time."""

from __future__ import annotations

import faulthandler
import functools
import os
import random
import re

import pytest

from refault.testing import SCENARIOS, Exploration, explore, explore_random, mixed, replay
from refault.testing.page_states import TRANSITIONS
from refault.testing.scenarios import LARGE
from refault.testing.world import World
from sim.exhausted import PAGE

SMALL = [name for name in SCENARIOS if name not in LARGE]


@functools.cache
def explored(name: str) -> Exploration:
    return explore(SCENARIOS[name])


# On a busy machine the largest ones take minutes; they compute, and wait for nobody.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALL)
def test_every_order_keeps_every_promise(name: str) -> None:
    faulthandler.cancel_dump_traceback_later()  # ends the run after the time of all other tests
    found = explored(name)
    print(f"{name}: {found.states} states, {found.schedules} schedules, {found.seconds:.2f} s")
    assert not found.violation, found.report()
    assert found.complete


@pytest.mark.parametrize("name", sorted(LARGE))
def test_large_one_as_far_as_it_goes(name: str) -> None:
    found = explore(SCENARIOS[name], max_states=2000)
    assert not found.violation, found.report()
    assert not found.complete


def test_every_transition_of_a_page_is_shown() -> None:
    seen = set().union(*(explored(name).transitions for name in SMALL))
    assert [row for row in TRANSITIONS if row not in seen] == []


def test_table_lists_them_all() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == list(SCENARIOS), "run: PYTHONPATH=tests python -m sim.exhausted"


def test_third_retry_takes_three_tries() -> None:
    assert max(explored("third-retry").attempts) == 3


def test_mixed_in_random_orders() -> None:
    """Other schedules at every run; the seed is in the output, and in the report."""
    seed = int(os.environ.get("REFAULT_SEED") or random.SystemRandom().randrange(1 << 40))
    found = explore_random(mixed, 3000, seed=seed)
    print(f"mixed: 3000 schedules from seed {seed}, {found.seconds:.1f} s, tries {found.attempts}")
    assert not found.violation, found.report()


def test_mixed_with_priorities() -> None:
    found = explore_random(mixed, 200, seed=7, priorities=True)
    assert not found.violation, found.report()


def test_a_seed_repeats_a_run() -> None:
    one, two = (explore_random(mixed, 20, seed=5) for _ in range(2))
    assert (one.steps, one.attempts, one.ends) == (two.steps, two.attempts, two.ends)


def test_a_schedule_is_told_again() -> None:
    found = explored("third-retry")
    lines, violation = replay(found.scenario, found.longest)
    assert not violation
    assert any("ends after 3 tries: done" in line for line in lines)
    assert any("WRITE|ALLOW_RETRY|KILLABLE|TRIED|USER|INTERRUPTIBLE; lock held" in x for x in lines)
    assert any("returns MAJOR|RETRY; lock given up" in line for line in lines)


@pytest.mark.parametrize("seed", range(3))
def test_draw_takes_one_of_the_steps(seed: int) -> None:
    rng = random.Random(seed)
    world = World(mixed(seed))
    while (step := world.draw(rng.random)) is not None:
        assert step in world.steps()
        world.perform(step)
    assert not world.steps()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scaled(name: str, threads: int, pages: int) -> None:
    scaled = SCENARIOS[name].scaled(threads, pages)
    assert (len(scaled.threads), scaled.pages) == (threads, pages)
    found = explore(scaled, max_states=60)
    assert not found.violation, found.report()

"""The scenarios that refault itself is proven with; ``refault explore NAME`` runs one."""

from __future__ import annotations

from typing import Final

from .scenario import Scenario, load, pin, populate, prefetch, store

__all__ = ["SCENARIOS", "mixed"]

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="third-retry",
            threads=((store(0),),),
            pages=1,
            private=True,
            swapped=frozenset({0}),
            protections=1,
        ),
        Scenario(
            name="three-threads",
            threads=((store(0), load(1)), (load(0),), (store(1),)),
            pages=2,
            budget=1,
            signals=((0, "interrupt"),),
            evictions=((0,),),
            protections=1,
        ),
        Scenario(
            name="unmap",
            threads=((store(0), load(1)), (load(0),)),
            pages=2,
            budget=1,
            vmas=2,
            unmaps=(0,),
        ),
        Scenario(
            name="unmap-shared",
            threads=((store(0),), (load(0),)),
            pages=1,
            unmaps=(0,),
            evictions=((0,),),
        ),
        Scenario(
            name="nowait-reader",
            threads=((prefetch(0, 2), load(0)), (load(1), store(0))),
            pages=2,
            budget=1,
        ),
        Scenario(
            name="gup-release",
            threads=((populate(0, 2, write=True), load(0)), (store(1),)),
            pages=2,
            dirty=frozenset({0, 1}),
            protections=1,
            releases=True,
            signals=((0, "kill"),),
        ),
        Scenario(
            name="pin-pressure",
            threads=((pin(0, 1), store(0)), (store(1), load(2))),
            pages=3,
            budget=2,
            evictions=((0, 1),),
        ),
        Scenario(
            name="failing-store",
            threads=((load(0), store(0)), (load(0),)),
            pages=1,
            read_failures={0: ("error", "error")},
            signals=((1, "interrupt"),),
        ),
        Scenario(
            name="permanent-failure",
            threads=((load(0),), (load(0), load(1))),
            pages=2,
            read_failures={0: ("permanent",)},
            allowed=frozenset({"SIGBUS"}),
        ),
        Scenario(
            name="failing-writeback",
            threads=((store(0), load(1), load(0)),),
            pages=2,
            budget=1,
            write_failures=1,
        ),
        Scenario(
            name="swap",
            threads=((store(0), store(1), load(0)), (load(1),)),
            pages=2,
            budget=1,
            private=True,
        ),
        Scenario(
            name="dirty-tracking",
            threads=((store(0), store(0)), (load(0), store(0))),
            pages=1,
            evictions=((0,), (0,)),
        ),
        Scenario(
            name="two-ranges",
            threads=((store(0), load(0)), (load(0), store(0))),
            pages=1,
            vmas=2,
            evictions=((0,),),
            cached=frozenset({0}),
        ),
        Scenario(
            name="killed",
            threads=((store(0),), (store(0),)),
            pages=1,
            dirty=frozenset({0}),
            evictions=((0,),),
            signals=((0, "kill"), (1, "interrupt")),
        ),
    )
}
"""By name."""


def mixed(seed: int) -> Scenario:
    """A large random scenario: 8 threads, 64 pages, room for 16, everything going on at once.

    Parameters
    ----------
    seed
        Decides what the threads do.
    """
    import random

    rng = random.Random(seed)
    threads = []
    for _ in range(8):
        ops = []
        for _ in range(3):
            page = rng.randrange(64) if rng.random() < 0.5 else rng.randrange(6)
            kind = rng.random()
            if kind < 0.4:
                ops.append(load(page))
            elif kind < 0.8:
                ops.append(store(page))
            elif kind < 0.9:
                ops.append(prefetch(page, min(page + 4, 64)))
            else:
                ops.append(populate(page, min(page + 3, 64), write=rng.random() < 0.5))
        threads.append(tuple(ops))
    return Scenario(
        name=f"mixed-{seed}",
        threads=tuple(threads),
        pages=64,
        budget=16,
        vmas=2,
        private=rng.random() < 0.5,
        dirty=frozenset(rng.sample(range(64), 14)),
        cached=frozenset(rng.sample(range(64), 16)),
        read_failures={rng.randrange(6): ("error",) * rng.randrange(1, 3)},
        write_failures=rng.randrange(2),
        evictions=((rng.randrange(6), rng.randrange(6)),),
        protections=rng.randrange(2),
        unmaps=(1,) if rng.random() < 0.3 else (),
        signals=((rng.randrange(8), "interrupt"), (rng.randrange(8), "kill")),
    )

"""The scenarios that refault itself is proven with; ``refault explore NAME`` runs one."""

from __future__ import annotations

import random
from typing import Final

from refault.fault.callers import RetryPolicy

from .scenario import Scenario, load, pin, populate, prefetch, store

__all__ = ["LARGE", "SCENARIOS", "mixed"]

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="third-retry",
            about="a write to a page that is in swap and write-protected: three tries",
            threads=((store(0),),),
            pages=1,
            private=True,
            swapped=frozenset({0}),
            snapshots=1,
        ),
        Scenario(
            name="three-threads",
            about="3 threads, 2 pages, a signal, an eviction and a write-protect round",
            threads=((store(0),), (load(0),), (load(1),)),
            pages=2,
            signals=((0, "interrupt"),),
            evictions=((0,),),
            snapshots=1,
        ),
        Scenario(
            name="three-threads-writing",
            about="the same with two of them writing",
            threads=((store(0),), (load(0),), (store(1),)),
            pages=2,
            signals=((0, "interrupt"),),
            evictions=((0,),),
            snapshots=1,
        ),
        Scenario(
            name="unmap",
            about="2 faults and an unmap, with room for one page",
            threads=((store(0), load(1)), (load(0),)),
            pages=2,
            budget=1,
            vmas=2,
            unmaps=(0,),
        ),
        Scenario(
            name="unmap-shared",
            about="2 faults in one range that is unmapped, and an eviction",
            threads=((store(0),), (load(0),)),
            pages=1,
            unmaps=(0,),
            evictions=((0,),),
        ),
        Scenario(
            name="nowait-reader",
            about="prefetch with RETRY_NOWAIT against a reader, with room for one page",
            threads=((prefetch(0, 2), load(0)), (load(1),)),
            pages=2,
            budget=1,
        ),
        Scenario(
            name="nowait-writer",
            about="the same with a reader that writes too",
            threads=((prefetch(0, 2), load(0)), (load(1), store(0))),
            pages=2,
            budget=1,
        ),
        Scenario(
            name="nowait-unmap",
            about="prefetch with RETRY_NOWAIT against a fault and an unmap",
            threads=((prefetch(0, 2), load(0)), (load(1),)),
            pages=2,
            unmaps=(0,),
        ),
        Scenario(
            name="gup-release",
            about="populate against a snapshot that copies, or ends before",
            threads=((populate(0, 2, write=True), load(0)), (store(1),)),
            pages=2,
            dirty=frozenset({0, 1}),
            snapshots=1,
            signals=((0, "kill"),),
        ),
        Scenario(
            name="gup-third-retry",
            about="the three tries of third-retry, made by pin",
            threads=((pin(0, 1, write=True),),),
            pages=1,
            private=True,
            swapped=frozenset({0}),
            snapshots=1,
        ),
        Scenario(
            name="gup-unmap",
            about="populate of two pages whose range is unmapped meanwhile",
            threads=((populate(0, 2), load(0)), (load(1),)),
            pages=2,
            unmaps=(0,),
            signals=((0, "interrupt"),),
        ),
        Scenario(
            name="pin-pressure",
            about="a page is pinned while others need its room",
            threads=((pin(0, 1),), (store(1), load(2))),
            pages=3,
            budget=2,
            evictions=((0, 1),),
        ),
        Scenario(
            name="pin-pressure-writing",
            about="the same, and the page is written afterwards",
            threads=((pin(0, 1), store(0)), (store(1), load(2))),
            pages=3,
            budget=2,
            evictions=((0, 1),),
        ),
        Scenario(
            name="failing-store",
            about="a store that fails twice, and a signal",
            threads=((load(0), store(0)), (load(0),)),
            pages=1,
            read_failures={0: ("error", "error")},
            signals=((1, "interrupt"),),
        ),
        Scenario(
            name="permanent-failure",
            about="a store that will never answer",
            threads=((load(0),), (load(0), load(1))),
            pages=2,
            read_failures={0: ("permanent",)},
            allowed=frozenset({"SIGBUS"}),
        ),
        Scenario(
            name="failing-writeback",
            about="room for one page, and a write that fails",
            threads=((store(0), load(1), load(0)),),
            pages=2,
            budget=1,
            write_failures=1,
        ),
        Scenario(
            name="swap",
            about="two writers with room for one page",
            threads=((store(0), store(1), load(0)), (load(1),)),
            pages=2,
            budget=1,
            private=True,
        ),
        Scenario(
            name="snapshot",
            about="a snapshot of a page in swap, one that is dirty and one that is evicted",
            threads=((store(0), store(2)), (store(1),)),
            pages=3,
            private=True,
            swapped=frozenset({0}),
            dirty=frozenset({1}),
            evictions=((1,),),
            snapshots=1,
        ),
        Scenario(
            name="two-snapshots",
            about="two snapshots while two pages are written, with room for one copy",
            threads=((store(0), store(1)), (store(1),)),
            pages=2,
            dirty=frozenset({1}),
            snapshots=2,
            copies=1,
        ),
        Scenario(
            name="snapshot-pressure",
            about="a snapshot while two pages are written, with room for one page and one copy",
            threads=((store(0), store(1), load(0)),),
            pages=2,
            budget=1,
            private=True,
            snapshots=1,
            copies=1,
        ),
        Scenario(
            name="dirty-tracking",
            about="two writers of one page that is evicted twice",
            threads=((store(0), store(0)), (load(0), store(0))),
            pages=1,
            evictions=((0,), (0,)),
        ),
        Scenario(
            name="flush",
            about="a flush and an eviction, a writer and a reader, and a write that fails",
            threads=((store(0),), (load(0),)),
            pages=1,
            evictions=((0,),),
            flushes=1,
            write_failures=1,
        ),
        Scenario(
            name="flush-writing",
            about="the same with two writers",
            threads=((store(0),), (store(0),)),
            pages=1,
            evictions=((0,),),
            flushes=1,
            write_failures=1,
        ),
        Scenario(
            name="flush-twice",
            about="two flushes at the same time, while a thread writes",
            threads=((store(0), store(0)),),
            pages=1,
            flushes=2,
        ),
        Scenario(
            name="two-ranges",
            about="one page mapped twice, from a store that answers at once",
            threads=((store(0), load(0)), (load(0), store(0))),
            pages=1,
            vmas=2,
            evictions=((0,),),
            cached=frozenset({0}),
        ),
        Scenario(
            name="killed",
            about="a thread is killed and one interrupted while their page is evicted",
            threads=((store(0),), (store(0),)),
            pages=1,
            dirty=frozenset({0}),
            evictions=((0,),),
            signals=((0, "kill"), (1, "interrupt")),
        ),
    )
}
"""By name."""

LARGE: Final = frozenset(
    {"flush-writing", "nowait-writer", "pin-pressure-writing", "three-threads-writing"}
)
"""Those that take more than a few seconds to exhaust."""


def mixed(
    seed: int,
    *,
    threads: int = 8,
    pages: int = 64,
    policy: RetryPolicy = RetryPolicy.MULTIPLE,
) -> Scenario:
    """A large random scenario: everything going on at once.

    Parameters
    ----------
    seed
        Decides what the threads do.
    threads
        How many.
    pages
        How many; a quarter of them fit the budget.
    policy
        As in `Scenario`.

    Returns
    -------
    Scenario
    """
    rng = random.Random(seed)
    number, below = rng.random, rng.randrange
    hot = min(6, pages)
    budget = max(1, pages // 4)
    program = []
    for _ in range(threads):
        ops = []
        for _ in range(3):
            page = int(number() * pages) if number() < 0.5 else int(number() * hot)
            kind = number()
            if kind < 0.4:
                ops.append(load(page))
            elif kind < 0.8:
                ops.append(store(page))
            elif kind < 0.9:
                ops.append(prefetch(page, min(page + 4, pages)))
            elif kind < 0.95:
                ops.append(pin(page, page + 1, write=number() < 0.5))
            else:
                ops.append(populate(page, min(page + 3, pages), write=number() < 0.5))
        program.append(tuple(ops))
    return Scenario(
        name=f"mixed-{seed}",
        threads=tuple(program),
        pages=pages,
        budget=budget,
        vmas=2,
        private=number() < 0.5,
        dirty=frozenset(rng.sample(range(pages), budget // 2)),
        cached=frozenset(rng.sample(range(pages), pages // 4)),
        read_failures={below(hot): ("error",) * below(1, 3)},
        write_failures=below(2),
        evictions=((below(hot), below(hot)),),
        flushes=below(2),
        snapshots=below(3),
        unmaps=(1,) if number() < 0.3 else (),
        signals=((below(threads), "interrupt"), (below(threads), "kill")),
        policy=policy,
    )

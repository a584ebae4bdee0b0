"""For tests: the simulated machine, its explorer, and what goes wrong with stores.

Public.  Write a `Scenario`, give it to `explore`: every order of its steps is run
through the fault path that serves real faults.  Inherit from `StoreTests` to see that
a store of your own keeps what stores promise.
"""

from typing import TYPE_CHECKING

from refault.machine.simulated import SimulatedMachine as SimulatedMachine
from refault.machine.simulated import Violation as Violation

from .exploration import Exploration as Exploration
from .exploration import replay as replay
from .explorer import explore as explore
from .faulty import FlakyStore as FlakyStore
from .faulty import SlowStore as SlowStore
from .faulty import TornStore as TornStore
from .randomly import explore_random as explore_random
from .randomly import explore_random_parallel as explore_random_parallel
from .scenario import Op as Op
from .scenario import Scenario as Scenario
from .scenario import load as load
from .scenario import pin as pin
from .scenario import populate as populate
from .scenario import prefetch as prefetch
from .scenario import store as store
from .scenarios import SCENARIOS as SCENARIOS
from .scenarios import mixed as mixed
from .storetests import StoreTests as StoreTests
from .storetests import WritableStoreTests as WritableStoreTests
from .world import World as World

if TYPE_CHECKING:
    from .storemachine import StoreStateMachine as StoreStateMachine
    from .storemachine import run_store_machine as run_store_machine

__all__ = [
    "SCENARIOS",
    "Exploration",
    "FlakyStore",
    "Op",
    "Scenario",
    "SimulatedMachine",
    "SlowStore",
    "StoreStateMachine",
    "StoreTests",
    "TornStore",
    "Violation",
    "World",
    "WritableStoreTests",
    "explore",
    "explore_random",
    "explore_random_parallel",
    "load",
    "mixed",
    "pin",
    "populate",
    "prefetch",
    "replay",
    "run_store_machine",
    "store",
]


def __getattr__(name: str) -> object:
    # Needs hypothesis, which the explorer does not.
    if name in ("StoreStateMachine", "run_store_machine"):
        from . import storemachine

        return getattr(storemachine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""For tests: the simulated machine, its explorer, and what goes wrong with stores.

Public.  Write a `Scenario`, give it to `explore`: every order of its steps is run
through the fault path that serves real faults.
"""

from refault.machine.simulated import SimulatedMachine as SimulatedMachine
from refault.machine.simulated import Violation as Violation

from .exploration import Exploration as Exploration
from .exploration import replay as replay
from .explorer import explore as explore
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
from .world import World as World

__all__ = [
    "SCENARIOS",
    "Exploration",
    "Op",
    "Scenario",
    "SimulatedMachine",
    "Violation",
    "World",
    "explore",
    "explore_random",
    "explore_random_parallel",
    "load",
    "mixed",
    "pin",
    "populate",
    "prefetch",
    "replay",
    "store",
]

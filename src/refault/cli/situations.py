"""What the fault path does in each situation, found out by letting it do it.

Nothing here says what should happen: for each situation a small world is made in
memory, the real `handle_mm_fault` makes one attempt in it, and what it did is written
down.  What it waits for comes at once; a signal that is pending ends the waits that it
ends in the pager.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from refault.fault.flags import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_INTERRUPTIBLE,
    FAULT_FLAG_USER,
)
from refault.fault.handlers import handle_mm_fault, sanitize_fault
from refault.fault.machine import Runs
from refault.fault.results import (
    VM_FAULT_COMPLETED,
    VM_FAULT_ERROR,
    VM_FAULT_RETRY,
)
from refault.fault.signals import fault_signal_pending
from refault.fault.vmf import Fault
from refault.memory.address_space import AddressSpace
from refault.memory.budget import Budget
from refault.memory.mapping import Mapping, PageError
from refault.memory.protection import Image, Images, Protection
from refault.memory.vma import Vma
from refault.memory.wait import Signal, Task, TaskState, WaitQueue

__all__ = [
    "SITUATIONS",
    "Attempt",
    "Situation",
    "Waited",
    "broken_rule",
    "make_attempt",
]

PAGE: Final = 4096
OTHER: Final = 0
INDEX: Final = 1
NEWEST: Final = 2


class World:
    """A mapping of three units in one vma, and a machine that writes down what it is asked for.

    Parameters
    ----------
    flags
        `FaultFlag` bits of the attempt, which is for unit `INDEX`.
    """

    def __init__(self, flags: int) -> None:
        self.did: list[str] = []
        self.fast = False
        self.budget = Budget(None)
        self.mapping = Mapping(
            1, "store", 3 * PAGE, PAGE, self.budget, private=False, writable=True
        )
        self.vma = Vma(AddressSpace(self.budget), PAGE, 3 * PAGE, self.mapping, 0, writable=True)
        self.task = Task("fault")
        self.vmf = Fault(self, self.task, self.vma, INDEX, flags)

    # -- the machine --------------------------------------------------------------

    def map_units(
        self, vma: Vma, first: int, last: int, *, writable: bool, protected: bool | None
    ) -> None:
        """See `refault.fault.machine.Machine`; so are all the others."""
        self.did.append("maps it writable" if writable else "maps it write-protected")

    def write_protect(self, mapping: Mapping, runs: Runs) -> None:
        self.did.append("protects it")

    def punch(self, mapping: Mapping, indexes: Sequence[int]) -> None:
        self.did.append("evicts another page")

    def read_now(self, mapping: Mapping, index: int) -> bool:
        if self.fast:
            self.did.append("reads it at once")
        return self.fast

    def submit_read(self, mapping: Mapping, index: int) -> None:
        self.did.append("begins the read")

    def demand_read(self, mapping: Mapping, index: int) -> None:
        pass

    def submit_write(self, mapping: Mapping, first: int, last: int) -> None:
        self.did.append("begins a write")

    def read_failed(self, mapping: Mapping, index: int) -> None:
        self.did.append("reports the failure")

    def write_failed(self, mapping: Mapping, error: BaseException) -> PageError:
        raise error

    def wake_reclaim(self, budget: Budget) -> None:
        self.did.append("starts reclaim")

    def copy_unit(self, mapping: Mapping, index: int) -> Image | WaitQueue:
        self.did.append("copies it")
        return Image(None)

    def free_image(self, image: Image) -> None:
        self.did.append("frees a copy")

    # -- states a unit can be in ----------------------------------------------------

    def charge(self, index: int) -> None:
        """Lock a unit and charge it."""
        self.mapping.trylock_page(index)
        self.budget.try_charge(PAGE)

    def fill(self, index: int) -> None:
        """Make a unit resident."""
        self.charge(index)
        self.mapping.set_uptodate(index)
        self.mapping.unlock_page(index)

    def fail(self, *, permanent: bool) -> None:
        """Let a read of the unit fail."""
        self.charge(INDEX)
        self.mapping.begin_read(INDEX)
        self.mapping.end_read(INDEX, OSError("no answer"), permanent=permanent)


def nothing(world: World) -> None:
    """Leave everything as it is."""


def end_read(world: World) -> None:
    """The store answers."""
    world.mapping.end_read(INDEX, None)


def fast(world: World) -> None:
    """The store needs no waiting."""
    world.fast = True


def present(world: World) -> None:
    """The page is there."""
    world.fill(INDEX)


def protected(world: World) -> None:
    """A thread met an entry that is write-protected."""
    world.fill(INDEX)
    world.vmf.protected = True


def read_only(world: World) -> None:
    """The vma may not be written."""
    world.fill(INDEX)
    world.vma.writable = False


def snapshot(world: World) -> None:
    """A monitor wants to copy the page before it is written."""
    protected(world)
    world.mapping.track()
    world.mapping.protection = Protection()
    world.mapping.protection.begin(Images(1))


def copied(world: World) -> None:
    """The monitor has copied it."""
    assert world.mapping.protection is not None
    world.mapping.protection.save(INDEX, Image(None))


def evicted(world: World) -> None:
    """Somebody evicts the page."""
    world.fill(INDEX)
    world.mapping.trylock_page(INDEX)


def unlock(world: World) -> None:
    """The eviction ends."""
    world.mapping.unlock_page(INDEX)


def being_read(world: World) -> None:
    """Somebody else has begun the read."""
    world.charge(INDEX)
    world.mapping.begin_read(INDEX)


def cooling(world: World) -> None:
    """The store has failed a moment ago."""
    world.fail(permanent=False)


def cooled(world: World) -> None:
    """The pause is over, and the store well again."""
    world.fast = True
    world.mapping.errors[INDEX].cooled()


def failed_for_good(world: World) -> None:
    """The store has said that asking again is of no use."""
    world.fail(permanent=True)


def clean_victim(world: World) -> None:
    """The budget is full, and another page can be dropped."""
    world.fill(OTHER)
    world.fill(NEWEST)
    world.budget.set_limit(2 * PAGE)
    world.fast = True


def no_memory(world: World) -> None:
    """The budget is full, and all pages in it are dirty."""
    clean_victim(world)
    world.mapping.set_dirty(OTHER)
    world.mapping.set_dirty(NEWEST)


def writeback(world: World) -> None:
    """Reclaim has written a page back and dropped it."""
    world.mapping.begin_writeback([OTHER])
    world.mapping.end_writeback([OTHER], None)
    world.mapping.drop([OTHER], ghost=True)


def interrupted(prepare: Callable[[World], None], signal: Signal) -> Callable[[World], None]:
    """The same with a signal pending."""

    def both(world: World) -> None:
        prepare(world)
        world.task.send_signal(signal)

    return both


@dataclass(frozen=True)
class Situation:
    """What a fault can meet.

    Attributes
    ----------
    name
        In words.
    prepare
        Makes it so.
    resolve
        What it waits for comes.
    source
        Where the kernel decides this, and where we do.
    """

    name: str
    prepare: Callable[[World], None]
    resolve: Callable[[World], None]
    source: str


_LOCK: Final = "__folio_lock_or_retry (mm/filemap.c); refault.fault.locks.lock_page_or_retry"
_READ: Final = "filemap_fault, handle_userfault; refault.fault.handlers.handle_mm_fault"
_FILL: Final = "filemap_fault (mm/filemap.c); refault.fault.handlers.fill_page"
_ERROR: Final = "handle_userfault; refault.fault.handlers.fill_page"
_ROOM: Final = "try_charge_memcg (mm/memcontrol.c); refault.fault.handlers.charge_page"
_MONITOR: Final = "handle_userfault; refault.fault.userfault.handle_userfault"
_PROTECTED: Final = "do_wp_page (mm/memory.c); refault.fault.handlers.finish_fault"
_SIGNAL: Final = "userfaultfd_get_blocking_state; refault.fault.vmf.Fault.wait_state"
_CHECK: Final = "sanitize_fault_flags (mm/memory.c); refault.fault.handlers.sanitize_fault"

SITUATIONS: Final = (
    Situation("the page is present", present, nothing, _PROTECTED),
    Situation("the page is write-protected", protected, nothing, _PROTECTED),
    Situation("a snapshot has not copied the page yet", snapshot, copied, _MONITOR),
    Situation("the vma is read-only", read_only, nothing, _CHECK),
    Situation("the page is locked (being evicted)", evicted, unlock, _LOCK),
    Situation("... and Ctrl-C is pending", interrupted(evicted, Signal.INTERRUPT), unlock, _LOCK),
    Situation(
        "... and a fatal signal is pending", interrupted(evicted, Signal.KILL), unlock, _LOCK
    ),
    Situation("the page is missing, the store fast", fast, nothing, _FILL),
    Situation("the page is missing, the store slow", nothing, end_read, _READ),
    Situation(
        "... and Ctrl-C is pending", interrupted(nothing, Signal.INTERRUPT), end_read, _SIGNAL
    ),
    Situation(
        "... and a fatal signal is pending", interrupted(nothing, Signal.KILL), end_read, _SIGNAL
    ),
    Situation("somebody else reads the page", being_read, end_read, _READ),
    Situation("the store failed a moment ago", cooling, cooled, _ERROR),
    Situation("the store failed for good", failed_for_good, nothing, _ERROR),
    Situation("no memory, a clean page to evict", clean_victim, end_read, _ROOM),
    Situation("no memory, only dirty pages", no_memory, writeback, _ROOM),
)
"""What section 2 of the protocol tells apart, and what the budget adds."""


@dataclass(frozen=True)
class Waited:
    """One wait of an attempt.

    Attributes
    ----------
    reason, state
        What it waited for and how deeply it slept.
    lock_kept
        Whether it slept with the fault lock held.
    interrupted
        Whether the signal that is pending ended it.
    """

    reason: str
    state: str
    lock_kept: bool
    interrupted: bool


@dataclass(frozen=True)
class Attempt:
    """What one attempt did.

    Attributes
    ----------
    waits
        Its waits, in order.
    did
        What it asked of the machine.
    result
        `VmFault` bits.
    lock_kept
        Whether the fault lock is held afterwards.
    then
        What its caller does next: "done", "fail", "stop", "retry" or "go on".
    """

    waits: tuple[Waited, ...]
    did: tuple[str, ...]
    result: int
    lock_kept: bool
    then: str


def broken_rule(flags: int) -> str | None:
    """Say which of I1..I6 `flags` break wherever they are used, or None.

    Parameters
    ----------
    flags
        `FaultFlag` bits.

    Returns
    -------
    str or None
    """
    return sanitize_fault(World(flags).vmf)


def make_attempt(flags: int, situation: Situation) -> Attempt:
    """Let the fault path make one attempt.

    Parameters
    ----------
    flags
        `FaultFlag` bits of the attempt.
    situation
        What it meets.

    Returns
    -------
    Attempt

    Raises
    ------
    AssertionError
        The fault path broke one of its own rules (V1, V3).
    """
    world = World(flags)
    situation.prepare(world)
    world.did.clear()
    vmf, task = world.vmf, world.task
    world.vma.lock.down_read_trylock()
    handler = handle_mm_fault(vmf)
    waits: list[Waited] = []
    while True:
        try:
            wait = handler.send(None)
        except StopIteration as stop:
            result: int = stop.value
            break
        ended = task.interrupted(wait.state)
        waits.append(Waited(wait.reason.value, wait.state.name, vmf.locked, ended))
        if not ended:
            situation.resolve(world)
    if world.vma.lock.readers != vmf.locked:
        raise AssertionError("V1: the lock and what is thought of it differ")
    return Attempt(
        tuple(waits), tuple(world.did), result, vmf.locked, _then(flags, result, vmf.locked, task)
    )


def _then(flags: int, result: int, lock_kept: bool, task: Task) -> str:
    """What `user_fault` (with USER) or `fault_in` (without) do with a result."""
    if result & VM_FAULT_RETRY:
        if flags & FAULT_FLAG_USER:
            stops = fault_signal_pending(result, task, user=True)
        else:
            interruptible = flags & FAULT_FLAG_INTERRUPTIBLE
            stops = task.interrupted(
                TaskState.INTERRUPTIBLE if interruptible else TaskState.KILLABLE
            )
        if stops or not flags & FAULT_FLAG_ALLOW_RETRY:
            return "stop"
        return "go on" if lock_kept else "retry"
    if result & VM_FAULT_ERROR:
        return "fail"
    assert lock_kept or result & VM_FAULT_COMPLETED
    return "done"

"""Known bugs, put back into the fault path one at a time.

A mutant is a replacement in the source text of one function.  It is compiled, and its code put in
the place of the function's own while the mutant is alive; so everybody who has imported
the function runs it.  If the text to replace is not there exactly once, because the function has
changed, the mutant fails loudly.  The fault path itself knows nothing of all this.

``PYTHONPATH=tests python -m sim.mutants`` writes the table of docs/mutants.md; with ``--search`` it
looks for the scenario that catches each fastest.
"""

from __future__ import annotations
import __future__

import inspect
import linecache
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

from refault.fault import callers, gup, handlers, locks, reclaim, snapshots, userfault, vmf
from refault.memory import budget, mapping, protection, rwsem
from refault.testing import SCENARIOS, Exploration, explore
from refault.testing.pictures import drawn

ROOT = pathlib.Path(__file__).parents[2]
TABLE = ROOT / "docs" / "mutants.md"


@dataclass(frozen=True)
class Mutant:
    """One bug: what it is, where, and which scenario shows it."""

    name: str
    what: str
    rule: str
    function: Callable[..., Any]
    old: str
    new: str
    scenario: str


@contextmanager
def alive(mutant: Mutant) -> Iterator[None]:
    """The function is the mutant's while inside."""
    function: Any = inspect.unwrap(mutant.function)
    before = function.__code__
    function.__code__ = mutated_code(mutant)
    try:
        yield
    finally:
        function.__code__ = before


def mutated_code(mutant: Mutant) -> CodeType:
    """The code of the function with its text replaced."""
    function: Any = mutant.function
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutant.old) != 1:
        raise AssertionError(
            f"mutant {mutant.name}: {function.__qualname__} has changed and does not hold, once, "
            f"the text that is to be replaced; write the mutant anew:\n{mutant.old}"
        )
    text = source.replace(mutant.old, mutant.new)
    filename = f"<mutant {mutant.name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = compile(text, filename, "exec", __future__.annotations.compiler_flag, True)
    code = next(const for const in module.co_consts if isinstance(const, CodeType))
    if code.co_freevars != function.__code__.co_freevars:
        raise AssertionError(f"mutant {mutant.name} needs other outer variables")
    return code


def hunt(mutant: Mutant, scenario: str = "", max_states: int = 30_000) -> Exploration:
    """Explore the mutant's scenario, or another one, while it is alive."""
    with alive(mutant):
        return explore(SCENARIOS[scenario or mutant.scenario], max_states=max_states)


MUTANTS = (
    # -- the rules of the mail -------------------------------------------------------------
    Mutant(
        "retry-with-lock-held",
        "RETRY is returned and the lock is still held (CVE-2026-90342)",
        "V1, B1",
        handlers.wait_for,
        "    if vmf.task.interrupted(state):\n        release_fault_lock(vmf)\n",
        "    if vmf.task.interrupted(state):\n",
        "failing-store",
    ),
    Mutant(
        "lock-given-up-twice",
        "the caller gives the lock up after a RETRY that has done so",
        "V1, B15",
        callers.user_fault,
        "            flags = flags_after_retry(flags, policy)\n",
        "            vma.lock.up_read()\n            flags = flags_after_retry(flags, policy)\n",
        "third-retry",
    ),
    Mutant(
        "released-twice-by-handler",
        "the handler gives the lock up after the wait as well",
        "V1, B15",
        locks.lock_page_or_retry,
        "        yield Wait(mapping.page_queue(index), rule.waits, WaitReason.PAGE_LOCK)\n"
        "        return VM_FAULT_RETRY\n",
        "        yield Wait(mapping.page_queue(index), rule.waits, WaitReason.PAGE_LOCK)\n"
        "        vmf.vma.lock.up_read()\n"
        "        return VM_FAULT_RETRY\n",
        "killed",
    ),
    Mutant(
        "tried-without-allow-retry",
        "the forbidden combination after the first retry",
        "V2, I1",
        callers.flags_after_retry,
        "    return flags | FAULT_FLAG_TRIED",
        "    return flags & ~FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED",
        "third-retry",
    ),
    Mutant(
        "no-signal-check",
        "no look at the signals before a retry",
        "V5, B3",
        callers.user_fault,
        "if fault_signal_pending(result, task, user=True):",
        "if False:",
        "failing-store",
    ),
    Mutant(
        "signal-check-too-late",
        "the signals are looked at only after the next try",
        "V5",
        callers.user_fault,
        "if fault_signal_pending(result, task, user=True):",
        "if attempts > 1 and fault_signal_pending(result, task, user=True):",
        "failing-store",
    ),
    Mutant(
        "gup-no-signal-check",
        "populate does not look at the signals before a retry",
        "V5, B3",
        gup.fault_in,
        "if task.interrupted(state):",
        "if False:",
        "gup-release",
    ),
    Mutant(
        "nowait-drops-lock",
        "RETRY_NOWAIT gives the lock up",
        "V1, V4",
        handlers.wait_for,
        "    if vmf.flags & FAULT_FLAG_RETRY_NOWAIT:\n",
        "    if vmf.flags & FAULT_FLAG_RETRY_NOWAIT:\n        release_fault_lock(vmf)\n",
        "nowait-unmap",
    ),
    Mutant(
        "nowait-waits",
        "RETRY_NOWAIT sleeps",
        "V6",
        handlers.wait_for,
        "    if vmf.flags & FAULT_FLAG_RETRY_NOWAIT:\n        return VM_FAULT_RETRY\n",
        "",
        "nowait-unmap",
    ),
    Mutant(
        "first-try-keeps-lock",
        "the first try sleeps with the lock held",
        "V6",
        handlers.wait_for,
        "        release_fault_lock(vmf)\n        yield Wait(queue, state, reason)\n",
        "        yield Wait(queue, state, reason)\n        release_fault_lock(vmf)\n",
        "third-retry",
    ),
    Mutant(
        "first-try-keeps-lock-for-page",
        "the same where the page is locked",
        "V6",
        locks.lock_page_or_retry,
        "        release_fault_lock(vmf)\n"
        "        yield Wait(mapping.page_queue(index), rule.waits, WaitReason.PAGE_LOCK)\n",
        "        yield Wait(mapping.page_queue(index), rule.waits, WaitReason.PAGE_LOCK)\n"
        "        release_fault_lock(vmf)\n",
        "killed",
    ),
    Mutant(
        "later-tries-drop-lock",
        "no try is stubborn: later ones give the lock up too",
        "V6",
        handlers.wait_for,
        "if not in_place or fault_flag_allow_retry_first(vmf.flags):",
        "if True:",
        "failing-store",
    ),
    Mutant(
        "later-tries-drop-lock-for-page",
        "the same where the page is locked",
        "V6",
        locks.lock_page_or_retry,
        "    if rule.drops_lock:",
        "    if rule.waits is not None:",
        "dirty-tracking",
    ),
    Mutant(
        "old-vma-after-retry",
        "a retry goes on with the vma of the try before",
        "V3, V9, B5, B8",
        callers.user_fault,
        "        vma = mm.find(address)\n",
        "        vma = mm.find(address) if not attempts else vma\n",
        "unmap-shared",
    ),
    Mutant(
        "detached-vma",
        "whoever got the lock late does not look whether the range is still mapped",
        "V9, B22",
        callers.lock_vma,
        "if not vma.detached:",
        "if True:",
        "unmap-shared",
    ),
    Mutant(
        "lock-of-detached-vma-kept",
        "the lock of a range that is gone is not given up",
        "V1, B15",
        callers.lock_vma,
        "        vma.lock.up_read()\n",
        "",
        "unmap-shared",
    ),
    Mutant(
        "retry-without-wait",
        "RETRY is returned at once, without having waited",
        "V4, B2",
        handlers.wait_for,
        "        release_fault_lock(vmf)\n        yield Wait(queue, state, reason)\n",
        "        release_fault_lock(vmf)\n",
        "third-retry",
    ),
    Mutant(
        "monitor-not-waited-for",
        "a protected page asks for a retry at once: a spin until the monitor ends",
        "V4, B2",
        userfault.handle_userfault,
        "    yield Wait(queue, vmf.wait_state(), WaitReason.WRITE_PROTECT)\n",
        "    yield from ()\n",
        "third-retry",
    ),
    Mutant(
        "retry-only-once",
        "a second RETRY is taken for the end (fixup_user_fault)",
        "B7",
        callers.user_fault,
        "        if result & VM_FAULT_RETRY:\n            flags =",
        "        if result & VM_FAULT_RETRY:\n"
        "            if attempts == 2:\n"
        "                return FaultOutcome(0, attempts, False, vma)\n"
        "            flags =",
        "third-retry",
    ),
    Mutant(
        "gup-retries-only-once",
        "a second RETRY of a page is taken for its end (GUP pre-fault)",
        "B6",
        gup.fault_in,
        "                tried = FAULT_FLAG_TRIED\n            continue\n        if result",
        "                if tried:\n"
        "                    address = vma.unit_range(vmf.index, vmf.index + 1)[1]\n"
        "                tried = FAULT_FLAG_TRIED\n"
        "            continue\n"
        "        if result",
        "gup-third-retry",
    ),
    Mutant(
        "gup-never-goes-on",
        "prefetch does the same page again and again, and rests in between",
        "trap, B2",
        gup.fault_in,
        "        tried = 0\n        address = vma.unit_range(vmf.index, vmf.index + 1)[1]\n",
        "        tried = 0\n",
        "nowait-reader",
    ),
    Mutant(
        "permission-lost",
        "ALLOW_RETRY is taken away after the first retry: before the mail",
        "B9",
        callers.flags_after_retry,
        "    if policy is RetryPolicy.SINGLE:",
        "    if True:",
        "third-retry",
    ),
    Mutant(
        "deaf-sleep",
        "the wait for a store or a monitor ends for no signal",
        "V5, B4",
        vmf.Fault.wait_state,
        "    if self.flags & FAULT_FLAG_INTERRUPTIBLE:\n",
        "    if self.flags:\n        return TaskState.UNINTERRUPTIBLE\n"
        "    if self.flags & FAULT_FLAG_INTERRUPTIBLE:\n",
        "failing-store",
    ),
    # -- wakes ------------------------------------------------------------------------------
    Mutant(
        "check-before-enqueue",
        "others run between the look at the page lock and going to sleep",
        "lost wake",
        locks.lock_page_or_retry,
        "        release_fault_lock(vmf)\n        yield Wait",
        "        release_fault_lock(vmf)\n"
        "        from refault.memory.wait import RESCHEDULE\n"
        "        yield RESCHEDULE\n"
        "        yield Wait",
        "killed",
    ),
    Mutant(
        "ask-after-release",
        "the monitor is asked after the lock was given up and others have run",
        "lost wake",
        userfault.handle_userfault,
        "    queue = protection.ask(vmf.index)\n    release_fault_lock(vmf)\n",
        "    release_fault_lock(vmf)\n"
        "    from refault.memory.wait import RESCHEDULE\n"
        "    yield RESCHEDULE\n"
        "    queue = protection.ask(vmf.index)\n",
        "third-retry",
    ),
    Mutant(
        "wrong-wait",
        "a page that is only locked is waited for as if it were being read",
        "B10",
        handlers.handle_mm_fault,
        "        if flags[index] & PG_READING:",
        "        if flags[index] & (PG_READING | PG_LOCKED):",
        "killed",
    ),
    Mutant(
        "unlock-without-wake",
        "nobody is woken when a page is unlocked",
        "lost wake",
        mapping.Mapping.unlock_page,
        "    self.wake_page(index)\n",
        "",
        "third-retry",
    ),
    Mutant(
        "memory-without-wake",
        "nobody is woken when memory comes back",
        "lost wake",
        budget.Budget.uncharge,
        "    self.freed.wake_all()\n",
        "",
        "failing-writeback",
    ),
    Mutant(
        "pause-without-wake",
        "nobody is woken when the pause after an error is over",
        "lost wake",
        mapping.PageError.cooled,
        "    self.over.wake_all()\n",
        "",
        "failing-store",
    ),
    Mutant(
        "written-without-wake",
        "nobody is woken when a page was written back",
        "lost wake",
        mapping.Mapping.end_writeback,
        "            self.wake_page(index)\n",
        "            pass\n",
        "failing-writeback",
    ),
    Mutant(
        "end-leaves-sleepers",
        "the last snapshot ends, and those who wait for a copy sleep on",
        "V7, B19",
        protection.Protection.end,
        "        self.answer(index)\n",
        "        self.asked.discard(index)\n",
        "third-retry",
    ),
    Mutant(
        "writer-never-let-in",
        "giving the lock up lets nobody in",
        "V7",
        rwsem.RwSemaphore.up_read,
        "    self._grant()\n",
        "",
        "unmap",
    ),
    Mutant(
        "reader-overtakes-writer",
        "a reader takes the lock although a writer waits",
        "V7",
        rwsem.RwSemaphore.down_read_trylock,
        "if self.writer or self.waiters:",
        "if self.writer:",
        "unmap-shared",
    ),
    # -- contents ----------------------------------------------------------------------------
    Mutant(
        "shown-before-complete",
        "a page can be mapped while it is read",
        "half a page",
        mapping.Mapping.begin_read,
        "    self.flags[index] |= PG_READING\n",
        "    self.flags[index] |= PG_READING | PG_UPTODATE\n",
        "third-retry",
    ),
    Mutant(
        "evicted-before-mapped",
        "others run between the look at the page and mapping it",
        "V9",
        handlers.handle_mm_fault,
        "        result = finish_fault(vmf)\n        vmf.mapping.unlock_page(index)\n",
        "        vmf.mapping.unlock_page(index)\n"
        "        from refault.memory.wait import RESCHEDULE\n"
        "        yield RESCHEDULE\n"
        "        result = finish_fault(vmf)\n",
        "two-ranges",
    ),
    Mutant(
        "dirty-bit-lost",
        "a write fault maps the page and does not make it dirty",
        "lost write, B21",
        handlers.finish_fault,
        "        mapping.wrote(index)\n",
        "        pass\n",
        "third-retry",
    ),
    Mutant(
        "dirty-bit-lost-on-error",
        "a page that could not be written back counts as clean",
        "lost write",
        mapping.Mapping.end_writeback,
        "            self.set_dirty(index)\n",
        "",
        "failing-writeback",
    ),
    Mutant(
        "written-unprotected",
        "a page is written back while threads can still change it",
        "lost write",
        reclaim.write_units,
        "    machine.write_protect(mapping, found)\n",
        "",
        "failing-writeback",
    ),
    Mutant(
        "clean-page-writable",
        "a read fault maps a clean page writable",
        "lost write, B21",
        handlers.finish_fault,
        "    writable = bool(write or (vma.writable and mapping.may_write(index)))\n",
        "    writable = bool(vma.writable)\n",
        "failing-store",
    ),
    Mutant(
        "dirty-page-dropped",
        "a dirty page is dropped as if it were clean",
        "lost write",
        mapping.Mapping.droppable,
        "state & (PG_LOCKED | PG_WRITEBACK | PG_DIRTY)",
        "state & (PG_LOCKED | PG_WRITEBACK)",
        "pin-pressure",
    ),
    Mutant(
        "pinned-page-dropped",
        "a pinned page is dropped",
        "pin",
        mapping.Mapping.droppable,
        " and index not in self.pins",
        "",
        "pin-pressure",
    ),
    Mutant(
        "pinned-page-evicted",
        "a pinned page is evicted",
        "pin",
        mapping.Mapping.evictable,
        " and index not in self.pins",
        "",
        "pin-pressure",
    ),
    Mutant(
        "error-as-zeros",
        "a read that failed counts as done",
        "zeros",
        mapping.Mapping.end_read,
        "    if error is None:",
        "    if True:",
        "failing-store",
    ),
    Mutant(
        "swap-forgotten",
        "a page that went to swap is read from the store again",
        "lost write",
        mapping.Mapping.end_writeback,
        "    stored = PG_SWAPPED if self.private and error is None else 0\n",
        "    stored = 0\n",
        "swap",
    ),
    Mutant(
        "flush-too-early",
        "a flush does not wait for a write that is under way",
        "lost write",
        reclaim._sync_units,
        "        yield from wait_on_writeback(mapping, part)\n",
        "",
        "flush-twice",
    ),
    # -- charges, locks of pages, protection ---------------------------------------------------
    Mutant(
        "charge-leaked",
        "the charge of a page that could not be read stays",
        "budget, B11",
        mapping.Mapping.end_read,
        "        self.budget.uncharge(self.page_size)\n",
        "",
        "failing-store",
    ),
    Mutant(
        "budget-ignored",
        "a page is charged although there is no room",
        "budget",
        budget.Budget.try_charge,
        "self.limit is not None and self.usage + size > self.limit",
        "False",
        "failing-writeback",
    ),
    Mutant(
        "page-lock-leaked",
        "a page whose store failed for good stays locked",
        "page lock",
        handlers.fill_page,
        "        if error.permanent:\n            mapping.unlock_page(index)\n",
        "        if error.permanent:\n",
        "permanent-failure",
    ),
    Mutant(
        "page-lock-kept-for-monitor",
        "the page stays locked while the monitor is asked",
        "page lock",
        handlers.handle_mm_fault,
        "            vmf.mapping.unlock_page(index)\n            return major",
        "            return major",
        "snapshot",
    ),
    Mutant(
        "protection-lost-with-eviction",
        "a page that was absent comes back unprotected",
        "snapshot, B16",
        handlers.handle_mm_fault,
        "        protection = write_protection(vmf)\n        if protection is not None:\n"
        "            vmf.mapping.unlock_page(index)\n",
        "        protection = None\n        if protection is not None:\n"
        "            vmf.mapping.unlock_page(index)\n",
        "snapshot",
    ),
    Mutant(
        "read-maps-protected-writable",
        "a read fault maps a dirty page writable that is to be copied first",
        "snapshot, B16",
        mapping.Mapping.may_write,
        "    return self.written is None or index in self.written.writable\n",
        "    return True\n",
        "three-threads",
    ),
    Mutant(
        "last-round-left-out",
        "what is written while the others are protected is not protected for the instant",
        "snapshot",
        snapshots.instant,
        "        protect_units(machine, mapping, sorted(_written(mapping).writable))\n",
        "        _written(mapping).writable.clear()\n",
        "snapshot",
    ),
    Mutant(
        "dirty-before-the-first-snapshot",
        "what was dirty before anybody asked stays writable",
        "snapshot",
        snapshots.prepare,
        "                yield from _protect(machine, mapping, found, step)\n",
        "",
        "snapshot",
    ),
    Mutant(
        "writer-not-noted",
        "nobody notes who writes",
        "dirty tracking",
        mapping.Mapping.wrote,
        "        self.written.wrote(index)\n",
        "        pass\n",
        "two-snapshots",
    ),
    Mutant(
        "copy-for-the-newest-only",
        "a copy is given to one of two snapshots that lack it",
        "snapshot",
        protection.Protection.save,
        "        image.users += 1\n",
        "        image.users += 1\n        break\n",
        "two-snapshots",
    ),
    Mutant(
        "copy-freed-with-the-first",
        "a copy is freed when the first of its snapshots ends",
        "snapshot",
        protection.Protection.end,
        "        if not image.users:\n",
        "        if True:\n",
        "two-snapshots",
    ),
    Mutant(
        "evicted-page-copied",
        "a page is copied that was evicted since its writer asked",
        "snapshot",
        snapshots.copy_before_write,
        " or not mapping.flags[index] & PG_UPTODATE",
        "",
        "three-threads",
    ),
    Mutant(
        "stale-hint-after-retry",
        "a retry believes what the message said of the page table",
        "V9",
        callers.user_fault,
        "            protected = None\n",
        "",
        "dirty-tracking",
    ),
)


def by_name(name: str) -> Mutant:
    """A mutant."""
    return next(mutant for mutant in MUTANTS if mutant.name == name)


def table() -> list[str]:
    """The table of the documentation, from a run of all."""
    rows = [
        "| mutant | what is wrong | rule, bug | scenario | schedules | caught as |",
        "|---|---|---|---|---|---|",
    ]
    for mutant in MUTANTS:
        found = hunt(mutant)
        if not found.violation:
            raise AssertionError(f"{mutant.name} survives {mutant.scenario}")
        rows.append(
            f"| {mutant.name} | {mutant.what} | {mutant.rule} | {mutant.scenario} "
            f"| {found.schedules} | {found.violation.replace('|', '/')} |"
        )
    return rows


def search(names: list[str]) -> None:
    """For every mutant, or some, the scenario that catches it with the fewest states."""
    order = sorted(SCENARIOS, key=lambda name: name.startswith(("three", "nowait-w", "pin-")))
    for mutant in [by_name(name) for name in names] or MUTANTS:
        caught: list[tuple[int, str, Exploration]] = []
        for name in order:
            limit = min([3000, *(states for states, _, _ in caught)])
            try:
                found = hunt(mutant, name, max_states=limit)
            except AssertionError as error:
                print(error)
                break
            if found.violation:
                caught.append((found.states, name, found))
        if not caught:
            print(f"SURVIVES {mutant.name}", flush=True)
            continue
        states, name, found = min(caught, key=lambda each: each[0])
        mark = "" if name == mutant.scenario else f" (given: {mutant.scenario})"
        print(
            f"{mutant.name}: {name}{mark}, {states} states, {found.schedules} schedules, "
            f"{found.seconds:.2f} s: {found.violation}",
            flush=True,
        )


def main() -> None:
    if "--search" in sys.argv:
        search(sys.argv[2:])
        return
    TABLE.write_text(drawn(TABLE.read_text(), {"mutants": table}))


if __name__ == "__main__":
    main()

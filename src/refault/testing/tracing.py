"""A run in words: steps, attempts with their flags, locks and pages.

The attempts are watched from outside, as a debugger would do it: while a schedule is told, the
interpreter reports every call, and calls of `handle_mm_fault` are written down.  The fault path
itself has no part in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from refault.fault.callers import RetryPolicy
from refault.fault.flags import FAULT_FLAG_ALLOW_RETRY, FaultFlag
from refault.fault.handlers import handle_mm_fault
from refault.fault.results import VM_FAULT_RETRY, VM_FAULT_SIGBUS, VmFault
from refault.fault.vmf import Fault
from refault.memory.page import page_flag_names

from .world import Step, World

__all__ = ["describe", "flag_names", "label", "result_names", "traced"]


def flag_names(flags: int) -> str:
    """``WRITE|ALLOW_RETRY|TRIED``."""
    return "|".join(str(flag.name) for flag in FaultFlag if flag & flags) or "0"


def result_names(result: int) -> str:
    """``MAJOR|RETRY``; "0" for success."""
    return "|".join(str(bit.name) for bit in VmFault if bit & result) or "0"


def label(world: World, step: Step) -> str:
    """A step in words.

    Parameters
    ----------
    world
        Where it is about to happen.
    step
        One of `World.steps`.
    """
    kind, at = step
    if kind == "op":
        thread = world.threads[at]
        op = thread.ops[thread.pc]
        pages = f"{op.first}" if op.last == op.first + 1 else f"{op.first}..{op.last - 1}"
        return f"thread {at}: {op.kind} {pages}{' for writing' * (op.write and op.kind != 'store')}"
    if kind == "task":
        return f"{world.ready[at].name} goes on"
    if kind.startswith("io"):
        return world.machine.io[at].label + (" fails" if kind == "io fails" else "")
    if kind == "evict":
        return f"somebody evicts pages {world.evictions[at]}"
    if kind == "unmap":
        return f"range {world.unmaps[at]} is unmapped"
    if kind == "signal":
        return f"a signal for thread {world.signals[at][0]}: {world.signals[at][1]}"
    return {
        "cooled": "a pause before the next try is over",
        "flush": "somebody writes back all that is dirty",
        "snapshot": "a snapshot begins",
        "close": "a snapshot is read and closed",
        "move copy": "a copy goes from memory to a file",
    }[kind]


def describe(world: World) -> str:
    """The pages, the page tables and the locks, in one line."""
    pages = " ".join(
        f"[{index}: {page_flag_names(state)}]"
        for index, state in enumerate(world.mapping.flags)
        if state or world.mapping.pages <= 8
    )
    tables = []
    for number, vma in enumerate(world.vmas):
        entries = sorted(world.machine.tables[vma].items())
        mapped = " ".join(f"{index}{'w' if writable else 'r'}" for index, writable in entries)
        holders = [task.name for task in world.tasks if task.held is vma.lock]
        lock = f"lock held by {' and '.join(sorted(holders))}" if holders else "lock free"
        if vma.lock.waiters:
            kinds = ", ".join("writer" if t.write else "reader" for t in vma.lock.waiters)
            lock += f", waiting: {kinds}"
        tables.append(f"range {number}: {'unmapped' if vma.detached else mapped or '-'}; {lock}")
    return f"pages {pages} | {' | '.join(tables)}"


@contextmanager
def traced(world: World) -> Iterator[None]:
    """While inside, every attempt of `world` is told to `World.trace`.

    Parameters
    ----------
    world
        Whose `trace` is set.
    """
    watcher = _Watcher(world)
    before = sys.getprofile()
    sys.setprofile(watcher)
    try:
        yield
    finally:
        sys.setprofile(before)


class _Watcher:
    def __init__(self, world: World) -> None:
        self.world = world
        self.code = handle_mm_fault.__code__
        self.begun: dict[FrameType, int] = {}
        self.tries: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        if frame.f_code is not self.code or self.world.trace is None:
            return
        vmf = frame.f_locals.get("vmf")
        # Generators of other worlds that are thrown away meanwhile are reported as well.
        if not isinstance(vmf, Fault) or vmf.task not in self.world.tasks:
            return
        if event == "call" and frame not in self.begun:
            self._begins(frame, vmf)
        elif event == "return" and isinstance(value, int) and frame in self.begun:
            self._ends(frame, vmf, value)

    def _begins(self, frame: FrameType, vmf: Fault) -> None:
        name = vmf.task.name
        number = self.tries[name] = self.tries.get(name, 0) + 1
        self.begun[frame] = number
        self._tell(f"try {number} of {name}: {flag_names(vmf.flags)}; {_lock(vmf)}")

    def _ends(self, frame: FrameType, vmf: Fault, result: int) -> None:
        number = self.begun.pop(frame)
        if not result & VM_FAULT_RETRY:
            del self.tries[vmf.task.name]
        self._tell(f"try {number} of {vmf.task.name} returns {result_names(result)}; {_lock(vmf)}")
        if result & VM_FAULT_SIGBUS and vmf.reason is not None:
            self._tell(self._why(number, vmf))

    def _why(self, number: int, vmf: Fault) -> str:
        text = f"why: try {number} had to wait for {vmf.reason} and asked for a retry"
        if not vmf.flags & FAULT_FLAG_ALLOW_RETRY:
            text = f"why: try {number} has to wait for {vmf.reason}, which takes a retry"
            if self.world.scenario.policy is RetryPolicy.SINGLE and number > 1:
                text += f"; ALLOW_RETRY was taken away after try {number - 1} (policy single)"
            else:
                text += "; it has no ALLOW_RETRY"
        return text

    def _tell(self, text: str) -> None:
        if self.world.trace is not None:
            self.world.trace(text)


def _lock(vmf: Fault) -> str:
    return "lock held" if vmf.locked else "lock given up"

"""Which local variables of a sleeping generator can still matter.

Two states of a program are equal if nothing that happens from now on can tell them apart.
A local variable that is written before it is read again cannot.  Which those are is read from
the byte code, so it stays true when the code changes:

* a variable is *live* behind a yield if some way on from there reads it before writing it;
* a variable whose value lies on the stack during the yield (``a | (yield from b())``) counts
  as live, and so does the one a ``for`` loop sets, because it stands for the iterator, which
  cannot be seen;
* what only an exception handler reads counts as live everywhere;
* an instruction that is not understood counts as a read.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType

__all__ = ["live_locals"]


@functools.cache
def live_locals(code: CodeType, at: int) -> tuple[str, ...]:
    """Name the local variables that matter for code that stands at a yield.

    Parameters
    ----------
    code
        Of the generator.
    at
        Offset of the yield (``frame.f_lasti``).

    Returns
    -------
    tuple of str
        Sorted.
    """
    flow = _flow(code)
    if at not in flow.position:
        return tuple(sorted(code.co_varnames + code.co_cellvars + code.co_freevars))
    position = flow.position[at]
    live = set(flow.always) | flow.on_stack(position)
    for successor in flow.successors[position]:
        live |= flow.live[successor]
    return tuple(sorted(live))


class _Flow:
    """The instructions of a function, where each leads, and what is live before each."""

    def __init__(self, code: CodeType) -> None:
        self.instructions = [
            instruction
            for instruction in dis.get_instructions(code)
            if instruction.opname != "CACHE"
        ]
        self.position = {step.offset: at for at, step in enumerate(self.instructions)}
        self.successors = [list(self._successors(at)) for at in range(len(self.instructions))]
        self.always = set(code.co_cellvars) | set(code.co_freevars)
        reached = self._reached()
        for at, step in enumerate(self.instructions):
            if at not in reached:
                self.always |= _reads(step)
            if step.opname == "FOR_ITER":
                self.always |= self._targets(at + 1)
        self.live: list[set[str]] = [set() for _ in self.instructions]
        self._solve()
        self.depth = self._depths()

    def _successors(self, at: int) -> Iterator[int]:
        step = self.instructions[at]
        name = step.opname
        jump = step.opcode in dis.hasjrel or step.opcode in dis.hasjabs
        if jump:
            yield self.position[int(step.argval)]
        ends = name.startswith("RETURN") and name != "RETURN_GENERATOR"
        ends = ends or name in {"RERAISE", "RAISE_VARARGS"}
        if not ends and not (jump and name.startswith("JUMP")) and at + 1 < len(self.instructions):
            yield at + 1

    def _reached(self) -> set[int]:
        reached: set[int] = set()
        todo = [0]
        while todo:
            at = todo.pop()
            if at not in reached:
                reached.add(at)
                todo.extend(self.successors[at])
        return reached

    def _targets(self, at: int) -> set[str]:
        """What is stored from `at` on, before anything else happens."""
        found: set[str] = set()
        while at < len(self.instructions):
            step = self.instructions[at]
            if step.opname.startswith("STORE_FAST"):
                found |= _writes(step)
            elif step.opname not in {"UNPACK_SEQUENCE", "UNPACK_EX", "NOP", "EXTENDED_ARG"}:
                break
            at += 1
        return found

    def _solve(self) -> None:
        changed = True
        while changed:
            changed = False
            for at in range(len(self.instructions) - 1, -1, -1):
                step = self.instructions[at]
                after: set[str] = set()
                for successor in self.successors[at]:
                    after |= self.live[successor]
                before = (after - _writes(step)) | _reads(step)
                if before != self.live[at]:
                    self.live[at] = before
                    changed = True

    def _depths(self) -> dict[int, int]:
        depth = {0: 0}
        todo = [0]
        while todo:
            at = todo.pop()
            step = self.instructions[at]
            for successor in self.successors[at]:
                jump = successor != at + 1
                argument = step.arg if step.opcode >= dis.HAVE_ARGUMENT else None
                after = depth[at] + dis.stack_effect(step.opcode, argument, jump=jump)
                if successor not in depth:
                    depth[successor] = after
                    todo.append(successor)
        # Some versions do not count what a generator is started with.
        lowest = min(depth.values())
        return {at: here - lowest for at, here in depth.items()}

    def on_stack(self, at: int) -> set[str]:
        """Variables that may have been put on the stack below a yield and lie there still.

        Instructions are looked at backwards.  A value that was put into a slot is gone if the stack
        was lower than that slot afterwards; a value made from it in the same slot counts as it.
        """
        found: set[str] = set()
        lowest = self.depth.get(at, 0)
        for before in range(at - 1, -1, -1):
            here = self.depth.get(before)
            if here is None:
                continue
            if here < lowest:
                found |= _reads(self.instructions[before])
                lowest = here
            if lowest <= 0:
                break
        return found


@functools.cache
def _flow(code: CodeType) -> _Flow:
    return _Flow(code)


def _names(step: dis.Instruction) -> set[str]:
    value = step.argval
    if isinstance(value, str):
        return {value}
    if isinstance(value, tuple):
        return {name for name in value if isinstance(name, str)}
    return set()


def _writes(step: dis.Instruction) -> set[str]:
    if step.opname in {"STORE_FAST", "DELETE_FAST", "STORE_FAST_STORE_FAST"}:
        return _names(step)
    return set()


def _reads(step: dis.Instruction) -> set[str]:
    if "FAST" not in step.opname or _writes(step):
        return set()
    return _names(step)

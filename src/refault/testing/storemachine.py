"""Random calls of a store against bytes in memory, with hypothesis.

`StoreTests` runs it; it can be run by itself as well::

    run_store_machine(lambda: StoreStateMachine(make_store(content), content))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from refault.stores.base import is_writable

from .storecase import StoreCase, fail, random_content

__all__ = ["StoreStateMachine", "run_store_machine"]

LONGEST = 70_000


class StoreStateMachine(RuleBasedStateMachine):
    """Reads, writes, flushes and copies in any order.

    Parameters
    ----------
    store
        Under test; it is closed at the end.
    content
        What it holds.
    copy
        Given a store whose changes are flushed, returns another one of the same place,
        and is asked now and then.
    """

    def __init__(
        self, store: Any, content: bytes, copy: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.case = StoreCase(store, content)
        self.copy = copy

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Any part of it."""
        self.case.check(*self._range(data))

    @rule(data=st.data())
    def read_nowait(self, data: st.DataObject) -> None:
        """Any part of it that needs no waiting."""
        self.case.check_nowait(*self._range(data))

    @rule(missing=st.integers(1, 10_000), data=st.data())
    def read_behind_the_end(self, missing: int, data: st.DataObject) -> None:
        """More than there is."""
        end = len(self.case.model)
        offset = data.draw(st.integers(max(0, end - 10_000), end + 10_000), label="offset")
        self.case.check_behind_the_end(offset, max(0, end - offset) + missing)

    @precondition(lambda self: is_writable(self.case.raw))
    @rule(data=st.data(), seed=st.integers(0, 1000))
    def write(self, data: st.DataObject, seed: int) -> None:
        """Any part of it."""
        offset, length = self._range(data)
        self.case.write(offset, random_content(length, seed))

    @precondition(lambda self: is_writable(self.case.raw))
    @rule()
    def flush(self) -> None:
        """What was written so far."""
        self.case.store.flush()

    @precondition(lambda self: self.copy is not None)
    @rule()
    def go_on_with_a_copy(self) -> None:
        """As the pager does, which unpickles one of its own."""
        assert self.copy is not None
        self.case.store.flush()
        copy = self.copy(self.case.raw)
        self.case.close()
        self.case = StoreCase(copy, self.case.model)

    @invariant()
    def size_stays(self) -> None:
        """A store does not grow or shrink."""
        if self.case.raw.size != len(self.case.model):
            fail(f"{self.case.name}: its size has become {self.case.raw.size}")

    def teardown(self) -> None:
        """Compare all of it."""
        try:
            self.case.check(0, len(self.case.model))
        finally:
            self.case.close()

    def _range(self, data: st.DataObject) -> tuple[int, int]:
        end = len(self.case.model)
        offset = data.draw(st.integers(0, end - 1), label="offset")
        length = data.draw(st.integers(1, min(end - offset, LONGEST)), label="length")
        return offset, length


def run_store_machine(
    machine: Callable[[], StoreStateMachine], *, examples: int = 20, shrink: bool = True
) -> None:
    """Run new machines, each some random steps.

    Parameters
    ----------
    machine
        Makes one.
    examples
        How many.
    shrink
        Whether to look for the shortest order of calls that fails.
    """
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # A factory will do, it is documented.
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )

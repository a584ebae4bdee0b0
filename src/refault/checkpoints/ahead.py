"""Work on chunks, some way ahead of who needs the result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from .grid import Grid

__all__ = ["Ahead"]

T = TypeVar("T")

BATCH = 2 << 20
"""Bytes of chunks that are worked on together."""
AHEAD = 8 << 20
"""Bytes that are worked on before they are needed; an array of a snapshot has 16 MiB of memory."""
MOST = 1024
"""Chunks that are worked on together: so many pieces a system call takes."""
THREADS = 2
"""One waits for pages while the other one works on those that are there."""


class Ahead(Generic[T]):
    """Does something with chunks in threads, and yields the results in order; a context manager.

    Parameters
    ----------
    work
        What to do with some chunks of an array, given its name, its grid and their numbers.
    """

    def __init__(self, work: Callable[[str, Grid, Sequence[int]], T]) -> None:
        self._work = work
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="refault-checkpoints")

    def results(self, name: str, grid: Grid, numbers: Sequence[int]) -> Iterator[T]:
        """Yield the results for chunks of an array, as soon as each is there."""
        begun: deque[tuple[int, Future[T]]] = deque()
        length = 0
        for batch in _batches(grid, numbers):
            begun.append((len(batch), self._threads.submit(self._work, name, grid, batch)))
            length += len(batch) * grid.chunk_bytes
            while length > AHEAD:
                length -= begun[0][0] * grid.chunk_bytes
                yield begun.popleft()[1].result()
        while begun:
            yield begun.popleft()[1].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _batches(grid: Grid, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Chunks in order, together at most `BATCH` bytes, or one."""
    most = max(1, min(MOST, BATCH // grid.chunk_bytes))
    for first in range(0, len(numbers), most):
        yield numbers[first : first + most]

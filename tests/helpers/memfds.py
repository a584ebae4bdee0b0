"""How much memory the regions of a running test take, seen from outside."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from helpers import processes

__all__ = ["Sampler", "refault_memfds", "sampled"]

PREFIX = "/memfd:refault"


def refault_memfds(pid: int) -> dict[int, int]:
    """Bytes that each memfd of refault in process `pid` takes, by inode."""
    found = {}
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            # Descriptors come and go, and a process ends, while we look.
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith(PREFIX):
                    status = os.stat(f"{folder}/{name}")
                    found[status.st_ino] = status.st_blocks * 512
    return found


class Sampler:
    """The most bytes that were seen in all memfds together, and how often one looked."""

    def __init__(self) -> None:
        self.peak = 0
        self.samples = 0
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.wait(0.002):
            for one in processes.descendants():
                found = refault_memfds(one.pid)
                if found:
                    self.samples += 1
                    self.peak = max(self.peak, sum(found.values()))

    def stop(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def sampled() -> Iterator[Sampler]:
    """Look at the memfds of all descendants for as long as the block lasts."""
    sampler = Sampler()
    thread = threading.Thread(target=sampler.run)
    thread.start()
    try:
        yield sampler
    finally:
        sampler.stop()
        thread.join()

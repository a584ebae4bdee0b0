"""The loop runs where the faults come from.

Why, and what native code does besides, is told in ``native/placement.c``: there the loop follows a
thread at once, and stays out of its way.  Without a native library it follows here, now and
then; served by Python on the faulting CPU a fault took 17 us, on another one 110 us.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from refault.native import library

__all__ = ["Bursts", "NativePlacement", "Placement", "placement"]

LOOK_SECONDS = 0.005
CPUS = {"0": 0, "1": 1 << 30}
"""What ``REFAULT_SCHED_IDLE`` says: never be SCHED_IDLE; be it in every burst, however busy the
machine is."""


class Bursts(NamedTuple):
    """Bursts of faults during which the loop was SCHED_IDLE.

    Attributes
    ----------
    served
        How many.
    ended
        How many of them were ended, because the loop did not get a CPU.
    """

    served: int
    ended: int


class Placement:
    """Binds the calling thread to the CPU of a faulting thread."""

    address: int | None = None
    """Of what native code knows of it."""

    def __init__(self) -> None:
        self.cpus = os.sched_getaffinity(0)
        self.cpu = -1
        self.looked = 0.0
        self.enabled = len(self.cpus) > 1
        self.free = 0

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """Let the scheduler choose, while there is much to do that no thread waits for."""
        self.free += 1
        self.free_changed()
        try:
            yield
        finally:
            self.free -= 1
            self.free_changed()

    def free_changed(self) -> None:
        """Be bound to no CPU while `free` is not 0."""
        if self.free and self.cpu != -1:
            os.sched_setaffinity(0, self.cpus)
            self.cpu = -1

    def follow(self, tid: int) -> None:
        """A fault of thread `tid` arrived."""
        if not self.enabled or self.free:
            return
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        try:
            with open(f"/proc/{tid}/task/{tid}/stat", "rb", buffering=0) as stat:
                cpu = int(stat.read(1024).rpartition(b")")[2].split()[36])
            if cpu != self.cpu and cpu in self.cpus:
                os.sched_setaffinity(0, {cpu})
                self.cpu = cpu
        except (OSError, ValueError, IndexError):
            self.enabled = self.cpu != -1

    def bursts(self) -> Bursts:
        """What has come of bursts until now."""
        return Bursts(0, 0)


class NativePlacement(Placement):
    """The same in native code, which sees the faults first.

    Parameters
    ----------
    native
        The library.
    epoll
        Descriptor that the loop waits for.
    """

    def __init__(self, native: ctypes.CDLL, epoll: int) -> None:
        super().__init__()
        native.rf_placement_new.argtypes = (ctypes.c_int, ctypes.c_int)
        native.rf_placement_new.restype = ctypes.c_void_p
        native.rf_placement_anywhere.argtypes = (ctypes.c_void_p, ctypes.c_int)
        native.rf_placement_anywhere.restype = None
        native.rf_placement_counts.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        native.rf_placement_counts.restype = None
        self.native = native
        cpus = CPUS.get(os.environ.get("REFAULT_SCHED_IDLE", ""), os.cpu_count() or 1)
        self.address = native.rf_placement_new(epoll, cpus)
        if self.address is None:
            raise MemoryError("no memory for the pager")

    def free_changed(self) -> None:
        """Be bound to no CPU while `free` is not 0."""
        self.native.rf_placement_anywhere(self.address, self.free)

    def follow(self, tid: int) -> None:
        """Nothing: native code has seen the fault."""

    def bursts(self) -> Bursts:
        """What has come of bursts until now."""
        counts = (ctypes.c_int64 * 2)()
        self.native.rf_placement_counts(self.address, counts)
        return Bursts(*counts)


def placement(epoll: int) -> Placement:
    """A placement for the calling thread, which waits for `epoll`."""
    native = library()
    return Placement() if native is None else NativePlacement(native, epoll)

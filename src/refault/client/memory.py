"""A mapped range: who owns it, what keeps it alive, how it ends."""

# Some facts about the end of a range
# -----------------------------------
#
# numpy keeps the object it got a pointer from as the `base` of the array.  Views of views
# do not make a chain: numpy shortens it, but never beyond the first object that is not an
# array.  That object is an `Export`.  So "some array, view or memoryview still exists" is the
# same as "the export still exists", and nothing has to be counted.
#
# The addresses of a range must not be given to anybody else before the pager knows that
# the range is gone: it would serve, or take away, pages of what comes next.  So the range is
# not unmapped first, but replaced by one with nothing behind it, then the pager is told,
# and only then the addresses are given back.
#
# A forked child does not have the range at all (MADV_DONTFORK).  It could not be used
# there: the registration is not inherited, and a read of a missing page would put a page of
# zeros into the memory that parent and pager share.  What the child does instead is in `fork`.

from __future__ import annotations

import _thread
import contextlib
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refault.client import libc, registry
from refault.client.connection import Connection
from refault.errors import Error, KernelError
from refault.wire import messages

if TYPE_CHECKING:
    from refault.client.region import Region

__all__ = ["Export", "Memory"]

NOWHERE = 4096
"""Address of arrays without elements: aligned, not NULL, and never read."""


class Export:
    """What arrays on a region have for their last `base`.

    Parameters
    ----------
    region
        Kept alive by this object, and so by every array.
    address, length
        The bytes.
    writable
        Whether they may be written to.
    """

    __slots__ = ("__array_interface__", "__weakref__", "region")

    def __init__(self, region: Region, address: int, length: int, *, writable: bool) -> None:
        self.region = region
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (address, not writable),
            "shape": (length,),
            "typestr": "|u1",
        }


class Memory:
    """A region of the pager, mapped into this process.

    Parameters
    ----------
    connection
        Whose region it is.
    request, fds
        What to ask the pager for.
    file
        Device and inode number, if it is a file.

    Attributes
    ----------
    address, length
        The range: whole pages.
    data_address, data_length
        The bytes that were asked for.
    offset
        Where they begin in the object.
    region
        Who holds this object.
    """

    def __init__(
        self,
        connection: Connection,
        request: messages.Map,
        fds: Sequence[int],
        *,
        file: tuple[int, int] | None,
    ) -> None:
        self.file = file
        self.region: weakref.ref[Region] | None = None
        self._writable = request.writable
        # What is private to a process can be read in its forked children, not changed.
        self._writable_in_child = request.writable and not request.private
        mapped, fd = connection.map(request, fds)
        self.length = mapped.map_length
        self._page_size = mapped.page_size
        self._page_size_given = request.page_size is not None
        self.data_length = mapped.data_length
        self.offset = request.offset
        self.address = _install(connection, mapped, fd, writable=self._writable)
        self.data_address = self.address + mapped.data_offset
        self._connection: Connection | None
        self._finalizer: weakref.finalize[..., Memory]
        self._own(connection, mapped.region)
        registry.add(self)

    @property
    def writable(self) -> bool:
        """Whether this process may write to the range."""
        return self._writable

    @property
    def page_size(self) -> int:
        """Bytes that come and go together, now; when it was asked last if it is served no more."""
        if not self._page_size_given and self._connection is not None:
            with contextlib.suppress(Error):
                found = self._connection.call(messages.Statistics(self._number)).value
                if isinstance(found, dict):
                    self._page_size = int(found["page_size"])
        return self._page_size

    @property
    def number(self) -> int:
        """The pager's number of the region."""
        return self._number

    @property
    def connection(self) -> Connection:
        """The connection it is served through.

        Raises
        ------
        KernelError
            It is served no more.
        """
        if self._connection is None:
            raise KernelError(
                "this region did not survive the fork of the process (stderr says why); open the"
                " array in the child"
            )
        return self._connection

    @property
    def attached(self) -> bool:
        """Whether it is served: not after a fork that went wrong."""
        return self._connection is not None

    def release(self) -> None:
        """Unmap the range and have the pager write back what is dirty.

        Raises
        ------
        Error
            That failed; the range is unmapped all the same.
        """
        if self._finalizer.detach() is not None and self._connection is not None:
            _release(self._connection, self._number, self.address, self.length)

    def reserve(self) -> None:
        """In a forked child: keep the addresses, so that a touch fails loudly.

        Raises
        ------
        KernelError
            Something else has them already.
        """
        self._finalizer.detach()
        self._connection = None
        libc.reserve(self.address, self.length, replace=False)
        self._finalizer = weakref.finalize(self, _forget, self.address, self.length)
        self._finalizer.atexit = False

    def attach(self, connection: Connection) -> None:
        """In a forked child: map the parent's region at the addresses that `reserve` kept."""
        mapped, fd = connection.map(messages.Share(self._number))
        if mapped.map_length != self.length:
            os.close(fd)
            raise KernelError(f"its length is now {mapped.map_length}, not {self.length}")
        self._writable = self._writable_in_child
        _install(connection, mapped, fd, writable=self._writable, address=self.address)
        self._finalizer.detach()
        self._own(connection, mapped.region)

    def _own(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._finalizer = weakref.finalize(
            self, _finalize, connection, number, self.address, self.length
        )
        # At exit the pager is told to write everything back, and the memory stays: objects
        # that die later may still look at it.
        self._finalizer.atexit = False


def _install(
    connection: Connection, mapped: messages.Mapped, fd: int, *, writable: bool, address: int = 0
) -> int:
    """Map, register and attach; returns the address.  `fd` is closed."""
    length = mapped.map_length
    fixed = address != 0
    try:
        try:
            address = address or libc.place(length, mapped.map_offset)
            address = libc.map_shared(
                fd, mapped.map_offset, length, writable=writable, address=address
            )
        finally:
            # First of all: requests need descriptors, too, and there may be no more.
            os.close(fd)
        libc.dont_fork(address, length)
        connection.register(address, length)
        connection.call(messages.Attach(mapped.region, address, writable))
    except BaseException:
        if address:
            libc.reserve(address, length, replace=True)
        with contextlib.suppress(Error):
            connection.call(messages.Detach(mapped.region))
        if address and not fixed:
            libc.unmap(address, length)
        raise
    return address


def _release(connection: Connection, number: int, address: int, length: int) -> None:
    registry.remove(address)
    # Under an interrupt the addresses are not given back: the pager may not be done.
    libc.reserve(address, length, replace=True)
    try:
        connection.call(messages.Detach(number))
    except Exception:
        if not connection.usable:
            connection.stop_agent()
        libc.unmap(address, length)
        raise
    libc.unmap(address, length)


def _finalize(connection: Connection, number: int, address: int, length: int) -> None:
    """The last array and the region object are gone."""
    if connection.owner != os.getpid():
        return  # a fork that is not through yet: the range is our parent's
    if not connection.usable:
        connection.stop_agent()
        registry.remove(address)
        libc.unmap(address, length)
        return
    try:
        _release(connection, number, address, length)
    except KeyboardInterrupt:
        # Nothing can be raised from here.
        _thread.interrupt_main()


def _forget(address: int, length: int) -> None:
    registry.remove(address)
    libc.unmap(address, length)

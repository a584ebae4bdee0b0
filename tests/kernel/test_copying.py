"""Parts of a snapshot that the pager copies to memory which it shares with us."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from helpers.child import run_child
from helpers.userfaultfd import needs_userfaultfd

pytestmark = [needs_userfaultfd, pytest.mark.usefixtures("nothing_left", "served_by")]

MIB = 1 << 20


def parts(path: str, page_size: str) -> None:
    import functools
    import os

    import numpy as np

    import refault
    from refault.client.copying import SharedBuffer, read_snapshot
    from refault.wire import messages

    def refuses(call, message: str) -> None:
        try:
            call()
        except refault.UsageError as error:
            assert message in str(error), error
        else:
            raise AssertionError(message)

    x = refault.open(path, "c", dtype="u1", resident="1MiB", page_size=page_size)
    x[::9001] ^= 255  # most of it is in swap now
    y = refault.full((300, 7), 3, "u2", "F")
    then = np.array(x)
    dice = np.random.default_rng(5)
    buffer = SharedBuffer(10 << 20)
    with refault.snapshot(x, y) as snap:
        x[::50_000] = 1
        for count, longest in ((1, 8 << 20), (40, 200_000), (3000, 3000), (5, 1)):
            starts = dice.integers(0, len(x) - longest + 1, count)
            ranges = [(int(start), int(start + dice.integers(1, longest + 1))) for start in starts]
            buffer.data[:] = bytes(len(buffer))
            before = refault.region(x).statistics().faults
            read_snapshot(snap, x, ranges, buffer)
            assert refault.region(x).statistics().faults == before
            wanted = np.concatenate([then[low:high] for low, high in ranges])
            assert np.array_equal(np.frombuffer(buffer.data, "u1")[: len(wanted)], wanted)
            assert not any(buffer.data[len(wanted) :])
        y[:] = 9
        read_snapshot(snap, y[:, 2:], [(0, 2), (1200, 3000)], buffer)
        assert np.frombuffer(buffer.data[:1802], "u2").tolist() == [3] * 901
        for ranges, message in (
            ([(len(x) - 1, len(x) + 1)], "not in the"),
            ([(-1, 1)], "not in the"),
            ([(0, 6 << 20)] * 2, "do not fit"),
        ):
            refuses(functools.partial(read_snapshot, snap, x, ranges, buffer), message)
        # The pager looks for itself.
        memory = refault.region(x)._memory
        plain = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
        os.ftruncate(plain, 1 << 20)

        def ask(fd: int, at: int, *pairs: int) -> None:
            numbers = np.array(pairs, "i8").tobytes()
            request = messages.ReadSnapshot(snap._number, memory.number, numbers, at)
            memory.connection.call(request, [fd])

        ask(buffer.fd, 5, 0, 100)
        assert bytes(buffer.data[5:105]) == then[:100].tobytes()
        refuses(lambda: ask(plain, 0, 0, 100), "cannot shrink")
        refuses(lambda: ask(buffer.fd, len(buffer) - 99, 0, 100), "cannot shrink")
        refuses(lambda: ask(buffer.fd, -1, 0, 100), "cannot shrink")
        refuses(lambda: ask(buffer.fd, 0, 0, 1 << 40), "does not lie")
        refuses(lambda: ask(buffer.fd, 0, 0, 5 << 20), "too many")
        refuses(lambda: ask(buffer.fd, 0, *[0, 1] * 2000), "too many")
    refuses(lambda: read_snapshot(snap, x, [(0, 1)], buffer), "closed")


@pytest.mark.parametrize("page_size", ["4KiB", "64KiB"])
def test_parts_are_read_without_a_fault(tmp_path: pathlib.Path, page_size: str) -> None:
    """In memory, in swap, in the file; written to since; in any order."""
    path = tmp_path / "numbers"
    np.random.default_rng(3).integers(0, 256, 8 * MIB + 77, dtype="u1").tofile(path)
    run_child(parts, timeout=60, args=[str(path), page_size])


FAILING = """
class Failing:
    size = 4 << 20

    def read_into(self, offset, buffer):
        if offset + len(buffer) > self.size // 2:
            raise OSError("out of ink")
        buffer[:] = b"7" * len(buffer)
"""


def part_of_a_failing_store() -> None:
    from failing import Failing

    import refault
    from refault.client.copying import SharedBuffer, read_snapshot

    x = refault.open(Failing(), "c", dtype="u1", page_size="64KiB")
    buffer = SharedBuffer(4 << 20)
    with refault.snapshot(x) as snap:
        read_snapshot(snap, x, [(0, 1 << 20), (5, 2 << 20)], buffer)
        assert bytes(buffer.data[: 3 << 20]) == b"7" * ((3 << 20) - 5) + bytes(5)
        try:
            read_snapshot(snap, x, [(0, 100), (2 << 20, (2 << 20) + 1)], buffer)
        except refault.StoreError as error:
            assert "out of ink" in str(error)
        else:
            raise AssertionError("what cannot be read was read")


def test_a_part_that_cannot_be_read_is_an_error() -> None:
    run_child(part_of_a_failing_store, timeout=60, files={"failing.py": FAILING})

r"""Working sets in files: which bytes of an object a run needed, and how much each is worth.

The file is a line of text, a checksum, and the compressed rest::

    refault working set 1\n
    16 bytes        BLAKE2b of what follows
    ...             zlib of msgpack: the version and size of the object, bytes of the page units,
                    and for each range its distance from the one before, its length (both in
                    units of 4096 bytes) and its weight

It is written beside its place and renamed, so whoever reads finds the old one or the new one.  What
does not look like this is no working set.

The weight of a range.  What a run used weighs `USED`, and one more for each time that it had to
come in again, up to 255.  What it did not use weighs half of what it did before, and below 1 it is
forgotten: after three runs that do not need it, if the run that did had to read it once only.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

__all__ = [
    "Damaged",
    "Foreign",
    "Range",
    "Recorded",
    "USED",
    "at_most",
    "may_replace",
    "overlaid",
    "read_recorded",
    "write_recorded",
]

Range: TypeAlias = tuple[int, int, int]
"""Bytes ``[start, end)`` of the object, and their weight, from 1 to 255."""

USED: Final = 4
HEAVIEST: Final = 255
GRAIN: Final = 4096

_HEAD: Final = b"refault working set "
_VERSION: Final = b"1\n"
_DIGEST: Final = 16
LONGEST: Final = 64 << 20
"""More bytes than this, packed or not, are no working set of ours."""


class Damaged(ValueError):
    """A file is no working set, or not whole; the message says which."""


class Foreign(Damaged):
    """A file is something else, and must not be replaced."""


class Recorded(NamedTuple):
    """A working set.

    Attributes
    ----------
    version
        Of the bytes it was recorded on, see `refault.stores.base`; empty: the store has none.
    size
        Bytes of the object.
    page_size
        Bytes of a page unit at the end of the run.
    ranges
        In order, and apart.
    """

    version: str
    size: int
    page_size: int
    ranges: list[Range]


class _Content(msgspec.Struct, array_like=True):
    version: str
    size: int
    page_size: int
    numbers: list[int]


_decoder = msgspec.msgpack.Decoder(_Content)


def encode(recorded: Recorded) -> bytes:
    """The content of the file."""
    numbers: list[int] = []
    at = 0
    for start, end, weight in recorded.ranges:
        first, last = max(at, start // GRAIN), -(-end // GRAIN)
        if first >= last:
            continue
        numbers += (first - at, last - first, weight)
        at = last
    content = _Content(recorded.version, recorded.size, recorded.page_size, numbers)
    packed = zlib.compress(msgspec.msgpack.encode(content))
    return _HEAD + _VERSION + _digest(packed) + packed


def decode(data: bytes) -> Recorded:
    """What a file says.

    Raises
    ------
    Damaged
        It is not ours, or not whole.
    """
    if not data:
        raise Damaged("it is empty")
    if not data.startswith(_HEAD):
        raise Foreign("it is no working set")
    version, _, rest = data[len(_HEAD) :].partition(b"\n")
    if version + b"\n" != _VERSION:
        raise Damaged("it is of another version of refault")
    packed = rest[_DIGEST:]
    if _digest(packed) != rest[:_DIGEST]:
        raise Damaged("its checksum is wrong")
    try:
        unpacked = zlib.decompressobj().decompress(packed, LONGEST)
        content = _decoder.decode(unpacked)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise Damaged(str(error)) from error
    numbers, ranges, at = content.numbers, [], 0
    if len(numbers) % 3:
        raise Damaged("its ranges make no sense")
    for gap, length, weight in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if gap < 0 or length <= 0 or not 0 < weight <= HEAVIEST:
            raise Damaged("its ranges make no sense")
        start, at = at + gap, at + gap + length
        ranges.append((start * GRAIN, min(at * GRAIN, content.size), weight))
    if at * GRAIN >= content.size + GRAIN:
        raise Damaged("its ranges make no sense")
    return Recorded(content.version, content.size, content.page_size, ranges)


def read_recorded(path: str) -> Recorded | None:
    """The working set in a file; None: there is no file.

    Raises
    ------
    Damaged
        It is not ours, or not whole.
    OSError
        It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST + 1)
    except FileNotFoundError:
        return None
    if len(data) > LONGEST:
        raise Foreign("it is too long for a working set")
    return decode(data)


def may_replace(path: str) -> bool:
    """Whether a working set may be put there: it holds one, or nothing."""
    if not os.path.isfile(path):
        return not os.path.lexists(path)
    try:
        with open(path, "rb") as file:
            return file.read(len(_HEAD)) in (b"", _HEAD)
    except OSError:
        return True  # whoever cannot read it says so later


def write_recorded(path: str, recorded: Recorded) -> None:
    """Put a working set into a file, all or nothing; its folder is made.

    Raises
    ------
    OSError
        It cannot be written; what was there before is there still.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    beside = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(fd, "wb") as file:
            file.write(encode(recorded))
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def overlaid(used: Iterable[Range], before: Iterable[Range]) -> list[Range]:
    """What a run used, and at half its weight what it did not and one before it did.

    Parameters
    ----------
    used
        In order, and apart; how often each range was used in place of its weight.
    before
        The working set that there was.
    """
    found = [(start, end, min(times + USED - 1, HEAVIEST)) for start, end, times in used]
    found += list(_without(before, found))
    found.sort()
    return list(_joined(found))


def at_most(ranges: Iterable[Range], room: int) -> list[Range]:
    """The heaviest of `ranges` that together have at most `room` bytes, in order."""
    chosen = []
    for start, end, weight in sorted(ranges, key=lambda one: -one[2]):
        if room <= 0:
            break
        end = min(end, start + room)
        chosen.append((start, end, weight))
        room -= end - start
    return sorted(chosen)


def _without(ranges: Iterable[Range], others: list[Range]) -> Iterator[Range]:
    """The parts of `ranges` that do not lie in `others`, at half their weight."""
    at = 0
    for start, end, weight in ranges:
        while at < len(others) and others[at][1] <= start:
            at += 1
        look = at
        while start < end and weight > 1:
            low = others[look][0] if look < len(others) else end
            if low > start:
                yield start, min(low, end), weight // 2
            start = others[look][1] if look < len(others) else end
            look += 1


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Neighbours of the same weight as one range."""
    last: Range | None = None
    for one in ranges:
        if last is not None and last[1:] == (one[0], one[2]):
            last = (last[0], one[1], one[2])
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def _digest(packed: bytes) -> bytes:
    import hashlib  # with OpenSSL, 8 ms of the start of the pager

    return hashlib.blake2b(packed, digest_size=_DIGEST).digest()

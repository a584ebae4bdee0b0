"""How a page is kept in swap: as a mark, compressed, or as it is.

zstd is imported when the first page comes, not before.  A compressor is kept
per thread: making one costs more (8 us) than compressing an easy 64 KiB (4 us).
"""

from __future__ import annotations

import enum
import sys
import threading
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    if sys.version_info >= (3, 14):
        from compression.zstd import ZstdCompressor
    else:
        from backports.zstd import ZstdCompressor

__all__ = ["Codec", "Kind", "compress", "zstd_module"]

_PROBE = bytes(64)


class Kind(enum.IntEnum):
    ZERO = 0
    RAW = 1
    ZSTD = 2


class Codec:
    """Packs and unpacks pages; any number of threads at a time."""

    def __init__(self, level: int) -> None:
        self.level = level

    def pack(self, buffer: memoryview) -> tuple[Kind, bytes]:
        """The shortest way to keep `buffer`.

        A page that compression makes less than an eighth shorter is kept as it
        is: it would cost more to get back than it saves.
        """
        raw = bytes(buffer)
        if raw.startswith(_PROBE[: len(raw)]) and raw == bytes(len(raw)):
            return Kind.ZERO, b""
        packed = compress(raw, self.level)
        if len(packed) > len(raw) - (len(raw) >> 3):
            return Kind.RAW, raw
        return Kind.ZSTD, packed

    def unpack(self, kind: Kind, stored: bytes | bytearray, buffer: memoryview) -> None:
        """Fill `buffer`; ValueError if `stored` is not a page of its length."""
        if kind is Kind.ZERO:
            buffer[:] = bytes(len(buffer))
        elif kind is Kind.RAW:
            buffer[:] = stored
        else:
            zstd = zstd_module()
            try:
                raw = zstd.decompress(stored)
            except zstd.ZstdError as error:
                raise ValueError(str(error)) from error
            buffer[:] = raw


def compress(raw: bytes | memoryview, level: int) -> bytes:
    """Compress to one frame; any number of threads at a time."""
    compressors: dict[int, ZstdCompressor] = vars(_threads).setdefault("compressors", {})
    compressor = compressors.get(level)
    if compressor is None:
        compressor = compressors[level] = zstd_module().ZstdCompressor(level=level)
    try:
        return compressor.compress(raw, compressor.FLUSH_FRAME)
    except BaseException:
        del compressors[level]  # it may be in the middle of a frame
        raise


@cache
def zstd_module() -> ModuleType:
    """The standard library's zstd, or the package that it was before it went there."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


_threads = threading.local()

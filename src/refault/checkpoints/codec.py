"""A chunk as it is stored: zstd, if it is compressed, and a checksum behind it.

This is what the codecs "zstd" and "crc32c" of Zarr do, one after the other; they are done here
because zarr takes ten times as long for a small chunk, and 200 ms to import.
"""

from __future__ import annotations

from refault.stores.codec import compress, zstd_module

__all__ = ["CHECKSUM", "Damaged", "decode", "encode"]

CHECKSUM = 4
"""Bytes of the CRC-32C at the end, little-endian."""


class Damaged(ValueError):
    """A chunk is not what was stored."""


def encode(data: memoryview, length: int, level: int | None) -> bytes:
    """Make a chunk of `length` bytes of its data; what is missing is zeros.

    Parameters
    ----------
    level
        Of zstd; None: not compressed.
    """
    from google_crc32c import value as crc32c

    raw: memoryview | bytes = data
    if len(data) < length:
        raw = bytes(data) + bytes(length - len(data))
    stored = bytes(raw) if level is None else compress(raw, level)
    return stored + int(crc32c(stored)).to_bytes(CHECKSUM, "little")


def decode(stored: bytes, length: int, *, compressed: bool) -> bytes:
    """Return the `length` bytes of a chunk.

    Raises
    ------
    Damaged
        The checksum is wrong, or it has another length.
    """
    from google_crc32c import value as crc32c

    packed = stored[:-CHECKSUM]
    if int(crc32c(packed)).to_bytes(CHECKSUM, "little") != stored[-CHECKSUM:]:
        raise Damaged(f"its checksum is wrong ({len(stored)} bytes)")
    raw = packed
    if compressed:
        zstd = zstd_module()
        try:
            raw = zstd.decompress(packed)
        except zstd.ZstdError as error:
            raise Damaged(f"it cannot be decompressed ({error})") from error
    if len(raw) != length:
        raise Damaged(f"it has {len(raw)} bytes instead of {length}")
    return raw

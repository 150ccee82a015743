"""Packed values as far as the store looks into them: the header."""

import struct

_HEADER = struct.Struct("<8q")
_FORMAT = 0x0146534C
_FINGERPRINT = 0x1122334455667788


def packed(generation: int, offset: int, *, partition: int = 0, latest: int = 0, body: bytes = b"") -> bytes:
    return _HEADER.pack(_FORMAT, _FINGERPRINT, generation, offset, partition, latest, 0, 0) + body


def position(value: bytes | None) -> tuple[int, int]:
    """(generation, offset) of a value; (-1, -1) of none."""
    return (-1, -1) if value is None else struct.unpack_from("<2q", value, 16)

"""Bytes that were changed on the way: the error that says whose they were, and which bit of a header was flipped."""

from __future__ import annotations

from functools import cache
from zlib import crc32

from zmpsl.errors import RemoteProtocolError
from zmpsl.transport.task import Task

__all__ = ["DamagedError", "mended"]


class DamagedError(RemoteProtocolError):
    """A message of a peer was changed on the way; nothing of it was used, and it is lost.

    Args:
        text: What was found.
        task: What the message belonged to, as far as it can be told.
    """

    def __init__(self, text: str, task: Task) -> None:
        super().__init__(text)
        self.task = task


def mended(data: bytes) -> bytes | None:
    """Turns the one bit back without which the CRC-32 at the end of some bytes would match.

    A CRC is linear: which bit it was follows from the difference alone. The result only tells whose message it was; it
    is never used in its place.

    Args:
        data: Bytes whose last four are the CRC-32 of those before, little-endian.

    Returns:
        The bytes before the damage, None where more than one bit was flipped.
    """
    body, kept = data[:-4], int.from_bytes(data[-4:], "little")
    bit = _bits(len(body)).get(crc32(body) ^ kept)
    if bit is None:
        return None
    fixed = bytearray(data)
    fixed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(fixed)


@cache
def _bits(size: int) -> dict[int, int]:
    """Gives, by the difference it makes between the CRC of `size` bytes and the one kept, each bit of both."""
    zeros = crc32(bytes(size))
    found = {1 << bit: 8 * size + bit for bit in range(32)}
    for bit in range(8 * size):
        data = bytearray(size)
        data[bit >> 3] = 1 << (bit & 7)
        found[crc32(data) ^ zeros] = bit
    return found

"""How the bytes of a chunk are packed: the registry of codecs, by name and by number on the wire.

A codec packs one chunk (at most 1 MiB) at a time, so packing, sending and unpacking overlap, and a receiver never
allocates more than a chunk on a peer's word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
import numpy as np
from numpy.typing import NDArray

from zmpsl.codec_kernels import KERNELS
from zmpsl.errors import RemoteProtocolError

__all__ = ["CODECS", "NONE", "Codec", "by_name", "by_number"]

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to pack bytes.

    Attributes:
        name: As in the job.
        number: As in the header.
        pack: Gives the packed bytes of a chunk, or None where they would not be fewer.
        unpack_into: Unpacks into a destination of exactly the chunk's size.
    """

    name: str
    number: int
    pack: Callable[[memoryview], bytes | None]
    unpack_into: Callable[[memoryview, Bytes], None]


def _pack_none(_chunk: memoryview) -> None:
    return None


def _unpack_none(data: memoryview, destination: Bytes) -> None:
    if len(data) != destination.nbytes:
        raise RemoteProtocolError(f"an unpacked chunk has {len(data)} bytes, its header says {destination.nbytes}")
    destination.data[:] = data


def _pack_lz4(chunk: memoryview) -> bytes | None:
    packed: bytes = lz4.block.compress(chunk, store_size=False)
    return packed if len(packed) < len(chunk) else None


def _unpack_lz4(data: memoryview, destination: Bytes) -> None:
    try:
        # python-lz4 has no way to decompress into our buffer: one copy more.
        raw = lz4.block.decompress(data, uncompressed_size=destination.nbytes)
    except (lz4.block.LZ4BlockError, MemoryError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"an lz4 chunk of {len(data)} bytes cannot be unpacked: {error}") from error
    # A shorter result is no error to lz4; it is one to us.
    _unpack_none(memoryview(raw), destination)


def _pack_huff(chunk: memoryview) -> bytes | None:
    kernel = KERNELS.formats["huff"]
    if len(chunk) % 4 or not len(chunk):  # not float32, nor anything of that size
        return None
    packed = np.empty(kernel.bound(len(chunk) // 4), np.uint8)
    size = kernel.encode_into(chunk, packed)
    return packed[:size].tobytes() if size < len(chunk) else None


def _unpack_huff(data: memoryview, destination: Bytes) -> None:
    try:
        KERNELS.formats["huff"].decode_into(data, destination)
    except ValueError as error:
        raise RemoteProtocolError(f"a huff chunk of {len(data)} bytes cannot be unpacked: {error}") from error


NONE = Codec("none", 0, _pack_none, _unpack_none)
CODECS = (NONE, Codec("lz4", 1, _pack_lz4, _unpack_lz4), Codec("huff", 2, _pack_huff, _unpack_huff))
_NAMES = {codec.name: codec for codec in CODECS}


def by_name(name: str) -> Codec:
    """Gives the codec of that name; the job's schema has checked the name."""
    return _NAMES[name]


def by_number(number: int) -> Codec:
    """Gives the codec a header names.

    Raises:
        RemoteProtocolError: There is no such codec.
    """
    if number >= len(CODECS):
        raise RemoteProtocolError(f"codec number {number} is not known here; known are 0 to {len(CODECS) - 1}")
    return CODECS[number]

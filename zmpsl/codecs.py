"""How the bytes of a chunk are packed: the registry of codecs, by name and by number on the wire.

A codec packs one chunk (at most 1 MiB) at a time, so packing, sending and unpacking overlap, and a receiver never
allocates more than a chunk on a peer's word. Whatever a format needs to be read, such as a quantiser's step, stands in
the packed chunk itself, so the number in the header is all a receiver has to know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import RemoteProtocolError
from zmpsl.kernels import KERNELS, Kernel

__all__ = ["CODECS", "NONE", "Codec", "Packed", "by_name", "by_number", "qz_of", "scratch", "topk_of"]

Bytes = NDArray[np.uint8]
Pack = Callable[[memoryview], bytes | None]


class Packed(NamedTuple):
    """A chunk as it travels.

    Attributes:
        number: Of the codec.
        masked: Whether only the values under a mask that both ends know are in it.
        body: The bytes.
    """

    number: int
    masked: bool
    body: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to pack bytes.

    Attributes:
        name: As in the job.
        number: As in the header.
        pack: Gives the packed bytes of a chunk, or None where they would not be fewer.
        unpack_into: Unpacks into a destination of exactly the chunk's size.
        exact: Whether any bytes come back as they were; if not, chunks are float32 values.
    """

    name: str
    number: int
    pack: Pack
    unpack_into: Callable[[memoryview, Bytes], None]
    exact: bool = True

    def __call__(self, chunk: memoryview, _offset: int = 0) -> Packed:
        """Packs a chunk, or gives it as it is where that is not longer."""
        body = self.pack(chunk)
        return Packed(NONE.number, False, chunk) if body is None else Packed(self.number, False, body)


_local = threading.local()


def scratch(name: str, nbytes: int) -> Bytes:
    """Lends this thread's buffer of that name until the next call with it; fresh memory costs more than packing."""
    buffer: Bytes | None = getattr(_local, name, None)
    if buffer is None or buffer.nbytes < nbytes:
        buffer = np.empty(max(nbytes, 1 << 20), np.uint8)
        setattr(_local, name, buffer)
    return buffer[:nbytes]


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


def _encode(kernel: Kernel, chunk: memoryview | Bytes, *step: float) -> bytes | None:
    nbytes = len(chunk)
    if nbytes % 4 or not nbytes:  # not float32, nor anything of that size
        return None
    packed = scratch("packed", kernel.bound(nbytes // 4))
    size = kernel.encode_into(chunk, packed, *step)
    return packed[:size].tobytes() if size < nbytes else None


def _kernel_codec(name: str, number: int, *, exact: bool, pack: Pack | None = None) -> Codec:
    kernel = KERNELS.formats[name.replace("-", "_")]

    def encode(chunk: memoryview) -> bytes | None:
        return _encode(kernel, chunk)

    def unpack_into(data: memoryview, destination: Bytes) -> None:
        try:
            kernel.decode_into(data, destination)
        except ValueError as error:
            raise RemoteProtocolError(f"a {name} chunk of {len(data)} bytes cannot be unpacked: {error}") from error

    return Codec(name, number, pack or encode, unpack_into, exact)


def qz_of(alpha: float) -> Codec:
    """Gives qz with a step of alpha times the root mean square of each chunk's values."""
    kernel = KERNELS.formats["qz"]

    def pack(chunk: memoryview) -> bytes | None:
        return None if len(chunk) % 4 else _encode(kernel, chunk, KERNELS.step(chunk, alpha))

    return _kernel_codec("qz", 8, exact=False, pack=pack)


def topk_of(share: float) -> Codec:
    """Gives the codec that sends the largest values, about that share of each chunk, as bf16-huff; the rest become 0.

    Source: "sparsified SGD with memory", Stich et al. 2018, the operator top_k, with a threshold from a sample.
    """
    bound = KERNELS.formats["bf16_huff"].bound

    def pack(chunk: memoryview) -> bytes | None:
        nbytes = len(chunk)
        if nbytes % 4 or not nbytes:
            return None
        packed = scratch("packed", bound(nbytes // 4))
        size = KERNELS.topk_encode_into(chunk, packed, share)
        return packed[:size].tobytes() if size < nbytes else None

    return replace(_NAMES["bf16-huff"], name="topk", pack=pack)


NONE = Codec("none", 0, _pack_none, _unpack_none)
# A codec's position is its number on the wire: the order never changes.
CODECS = (
    NONE,
    Codec("lz4", 1, _pack_lz4, _unpack_lz4),
    _kernel_codec("huff", 2, exact=True),
    _kernel_codec("bitmap", 3, exact=True),
    _kernel_codec("bf16", 4, exact=False),
    _kernel_codec("int8", 5, exact=False),
    _kernel_codec("int4", 6, exact=False),
    _kernel_codec("bf16-huff", 7, exact=False),
    qz_of(0.2),
)
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

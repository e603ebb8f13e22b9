"""What one would pack tensors with otherwise: lz4, and blosc2, zstd and torch's casts where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOSC2", "Rival", "rivals"]

# blosc2: codec, level, filter, and how many bits of the mantissa are kept (None: all). Of each class of error those
# that keep the fewest bits: 0.2 %, 1.2 %, 6 %, 15 % and 25 %; bitshuffle and fast codecs are its best on float32.
BLOSC2 = (
    *((codec, level, how, None) for codec, level in (("lz4", 5), ("zstd", 1)) for how in ("shuffle", "bitshuffle")),
    ("zstd", 3, "shuffle", None),
    *((codec, level, "bitshuffle", bits) for bits in (8, 7, 6, 3, 2, 1) for codec, level in (("lz4", 5), ("zstd", 1))),
    *(("zstd", 1, "shuffle", bits) for bits in (8, 6, 3)),
)
Values = NDArray[np.float32]


class Rival(NamedTuple):
    """One way to pack one tensor.

    Attributes:
        name: What it is, with its settings.
        encode: Packs, and gives the number of bytes.
        decode: Unpacks what `encode` packed last.
    """

    name: str
    encode: Callable[[], int]
    decode: Callable[[], Values]


def rivals(values: Values, most: bool = False) -> Iterator[Rival]:
    """Gives what is installed.

    Args:
        values: The tensor, contiguous.
        most: Every setting in `BLOSC2` and of zstd, instead of one or two.
    """
    yield _lz4(values)
    zstandard, blosc2, torch = (_installed(name) for name in ("zstandard", "blosc2", "torch"))
    if zstandard is not None:
        yield from (_zstd(zstandard, values, level) for level in ((-5, 1, 3) if most else (1,)))
    if blosc2 is not None:
        few = [setting for setting in BLOSC2 if setting in (("zstd", 1, "shuffle", None), ("zstd", 1, "bitshuffle", 7))]
        yield from (_blosc2(blosc2, values, *setting) for setting in (BLOSC2 if most else few))
    if torch is not None:
        yield from (_cast(torch, values, name) for name in ("bfloat16", "float16", "float8_e4m3fn"))


def _installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _general(name: str, values: Values, pack: Callable[[], bytes], unpack: Callable[[bytes], Any]) -> Rival:
    """A compressor of bytes, which gives fresh memory; unpacked bytes are taken as they are, without a copy."""
    kept = [b""]

    def encode() -> int:
        kept[0] = pack()
        return len(kept[0])

    return Rival(name, encode, lambda: np.frombuffer(unpack(kept[0]), np.float32))


def _lz4(values: Values) -> Rival:
    data = values.reshape(-1).view(np.uint8).data
    return _general(
        "lz4",
        values,
        lambda: lz4.block.compress(data, store_size=False),
        lambda packed: lz4.block.decompress(packed, uncompressed_size=values.nbytes),
    )


def _zstd(zstandard: ModuleType, values: Values, level: int) -> Rival:
    packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return _general(f"zstd {level}", values, lambda: packer.compress(values), unpacker.decompress)


def _blosc2(blosc2: ModuleType, values: Values, codec: str, level: int, how: str, bits: int | None) -> Rival:
    shuffle = blosc2.Filter.SHUFFLE if how == "shuffle" else blosc2.Filter.BITSHUFFLE
    truncated = [] if bits is None else [blosc2.Filter.TRUNC_PREC]
    result = np.zeros(values.size, np.float32)

    def pack() -> bytes:
        packed: bytes = blosc2.compress2(
            values,
            codec=getattr(blosc2.Codec, codec.upper()),
            clevel=level,
            typesize=4,
            nthreads=1,
            filters=[*truncated, shuffle],
            filters_meta=[*(() if bits is None else (bits,)), 0],
        )
        return packed

    def unpack(packed: bytes) -> Values:
        blosc2.decompress2(packed, dst=result, nthreads=1)
        return result

    name = f"blosc2 {codec}-{level} {how}{'' if bits is None else f', {bits} bits'}"
    return _general(name, values, pack, unpack)


def _cast(torch: ModuleType, values: Values, name: str) -> Rival:
    """A cast into memory that is there already; 8 bits are scaled to the largest value, as they overflow early."""
    tensor = torch.from_numpy(values.reshape(-1)) if values.flags.writeable else torch.tensor(values.reshape(-1))
    packed = torch.zeros(values.size, dtype=getattr(torch, name))
    result = torch.zeros(values.size)
    small = packed.element_size() == 1
    scale = [1.0]

    def encode() -> int:
        if small:
            scale[0] = float(tensor.abs().max()) / 448 or 1.0
            packed.copy_(tensor / scale[0])
        else:
            packed.copy_(tensor)
        return int(packed.numel() * packed.element_size())

    def decode() -> Values:
        result.copy_(packed)
        unpacked: Values = (result.mul_(scale[0]) if small else result).numpy()
        return unpacked

    return Rival(f"torch {name}", encode, decode)

"""Signs that go with the exponents of a block, in NumPy: the specification of that stage.

Neighbours in a feature map mostly have one sign, before a ReLU above all, and values near 0 change it most easily. With
flag 4 of a block of huff or bf16-huff (`zmpsl.kernels.twins`) there stand for the exponents

    base u8, distance u16   the least exponent; how far back the sign is that a value's own is compared with, not 0
    symbols                 a plane (`zmpsl.kernels.planes`): exponent - base, and 128 more where the two signs differ

Exponents are modulo 256; a sign before the first value is positive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zmpsl.kernels.planes import Reader, encode_plane

__all__ = ["decode_signs", "encode_signs"]

# The next one, and the one above in maps of usual widths.
DISTANCES = (1, 7, 8, 14, 16, 28, 32, 56, 64, 112)
FIRST, APART = 128, 512  # groups of 8 signs are looked at beforehand: the first, and so many values further each

U8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]


def _distance(negative: Bools) -> int:
    """Gives the distance at which signs change least in a sample; 0 where that is in 3 of 8 places or more."""
    places = np.arange(FIRST, max(negative.size - 7, FIRST), APART)[:, None] + np.arange(8)
    changes = [int((negative[places] != negative[places - distance]).sum()) for distance in DISTANCES]
    least = min(changes)
    return DISTANCES[changes.index(least)] if 8 * least < 3 * places.size else 0


def encode_signs(exponents: U8, negative: Bools) -> U8 | None:
    """Gives the encoding, or None where signs change too often or exponents are too far apart.

    Args:
        exponents: At most 65,536.
        negative: Which values are.
    """
    distance = _distance(negative)
    if distance == 0 or int(exponents.max()) - int(exponents.min()) > 127:
        return None
    base = exponents.min()
    before = np.concatenate([np.zeros(distance, bool), negative])[: negative.size]
    symbols = (exponents - base) | np.where(negative != before, np.uint8(128), np.uint8(0))
    return np.concatenate([np.array([base, distance & 255, distance >> 8], np.uint8), encode_plane(symbols)])


def decode_signs(reader: Reader, n: int) -> tuple[U8, Bools]:
    """Gives the next n exponents, and which values are negative.

    Raises:
        ValueError: The encoding is truncated or contradicts itself.
    """
    head = reader.take(3)
    distance = int(head[1]) | int(head[2]) << 8
    if distance == 0:
        raise reader.contradiction()
    symbols = reader.plane(n)
    changes = np.concatenate([symbols >= 128, np.zeros(-n % distance, bool)]).reshape(-1, distance)
    negative: Bools = np.logical_xor.accumulate(changes, axis=0).ravel()[:n]
    return (symbols & 127) + head[0], negative

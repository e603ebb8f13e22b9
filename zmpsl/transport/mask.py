"""Which values of a smashed-data tensor are 0, as both ends of a hop know it, one bit each.

Behind a ReLU the gradient of a value that is 0 is never read: the backward of the ReLU selects by `value > 0`. Both
ends hold that tensor, so those gradients need not travel. With a lossy codec the receiver's tensor has other zeros
than the sender's, so the sender notes what the receiver gets to see.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import RemoteProtocolError
from zmpsl.kernels import KERNELS

__all__ = ["KnownMask", "count"]

Bits = NDArray[np.uint8]


def count(bits: Bits) -> int:
    """Gives the number of bits that are set."""
    return int(np.bitwise_count(bits).sum()) if hasattr(np, "bitwise_count") else int(np.unpackbits(bits).sum())


class KnownMask:
    """The mask of one tensor.

    Args:
        values: The tensor, float32 and contiguous; it must not change while the mask is in use.
    """

    __slots__ = ("_noted", "_settled", "_values", "nbytes")

    def __init__(self, values: NDArray[Any]) -> None:
        self.nbytes = int(values.nbytes)
        self._values: NDArray[Any] | None = values.reshape(-1).view(np.uint8)
        self._noted: dict[int, Bits] = {}
        self._settled: Bits | None = None

    def settle(self) -> None:
        """Keeps the bits alone and lets go of the tensor; for a mask that waits in a queue."""
        if self._values is not None:
            self._settled = _bits(self._values)
            self._values = None

    def note(self, offset: int, values: Bits) -> None:
        """Takes down what the receiver of a chunk sees: its bytes after unpacking, and where it starts."""
        self._noted[offset] = _bits(values)

    def bits(self, offset: int, nbytes: int) -> Bits:
        """Gives the bits of a chunk, the first value's in the lowest.

        Args:
            offset: First byte of the chunk in the tensor, a multiple of 32.
            nbytes: Bytes of the chunk.

        Raises:
            RemoteProtocolError: The tensor has no such chunk.
        """
        if offset + nbytes > self.nbytes or offset % 32:
            raise RemoteProtocolError(f"no mask for {nbytes} bytes at {offset}: the activation has {self.nbytes}")
        noted = self._noted.get(offset)
        if noted is not None:
            return noted
        if self._values is not None:
            return _bits(self._values[offset : offset + nbytes])
        settled = self._settled if self._settled is not None else np.zeros(0, np.uint8)
        return settled[offset // 32 : -(-(offset + nbytes) // 32)]


def _bits(values: Bits) -> Bits:
    bits = np.empty(-(-values.nbytes // 32), np.uint8)
    KERNELS.mask_into(values, bits)
    return bits

"""Aligned receive buffers that return to their pool by themselves when the last view of them is gone.

A lease is a NumPy array. Everything made from it (views, a torch tensor by from_numpy, a memoryview handed to a
socket) keeps it alive; when the last of them dies, its memory is used again. So a buffer can neither be recycled
under somebody's eyes nor be forgotten, and in steady state no message allocates: fresh pages would cost more than the
copy into them.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "BufferPool", "size_class"]

KEEP_BYTES = 256 << 20
# What BLAS libraries ask for; results of torch may differ on other addresses.
ALIGNMENT = 64

Slab = NDArray[np.uint8]


@lru_cache(1024)
def size_class(nbytes: int) -> int:
    """Gives the size of the slab a request gets: the next of eight steps per power of two, at least 4 KiB."""
    step = max(4096, 1 << max(nbytes - 1, 0).bit_length() >> 4)
    return max(4096, -(-nbytes // step) * step)


class BufferPool:
    """Recycles aligned memory.

    Args:
        keep_bytes: Free memory above this is given back to the system.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._free: dict[int, list[memoryview]] = defaultdict(list)
        self._leases: dict[int, weakref.ref[Slab]] = {}
        self._keep_bytes = keep_bytes
        self.free_bytes = 0
        self.leased_bytes = 0
        self.allocations = 0

    def keep(self, nbytes: int | None) -> None:
        """Keeps no more free memory than this, and never more than 256 MiB; None leaves it as it is."""
        if nbytes is None:
            return
        self._keep_bytes = min(nbytes, KEEP_BYTES)
        if self.free_bytes > self._keep_bytes:
            self._free.clear()
            self.free_bytes = 0

    def take(self, nbytes: int) -> Slab:
        """Leases memory.

        Args:
            nbytes: How much.

        Returns:
            A writable uint8 array of that length, its address a multiple of 64; contents are arbitrary.
        """
        size = size_class(nbytes)
        free = self._free[size]
        if free:
            slab = free.pop()
            self.free_bytes -= size
        else:
            whole = np.empty(size + ALIGNMENT, np.uint8)
            start = -whole.ctypes.data % ALIGNMENT
            slab = whole.data[start : start + size]
            self.allocations += 1
        # Through a memoryview: NumPy gives views of plain arrays the slab itself as base and would let the lease die.
        lease = np.frombuffer(slab, np.uint8, nbytes)
        token = id(slab)

        def give_back(_dead: weakref.ref[Slab]) -> None:
            # May run in pyzmq's collector thread; each step is atomic under the GIL.
            del self._leases[token]
            self.leased_bytes -= size
            if self.free_bytes + size <= self._keep_bytes:
                self._free[size].append(slab)
                self.free_bytes += size

        self._leases[token] = weakref.ref(lease, give_back)
        self.leased_bytes += size
        return lease

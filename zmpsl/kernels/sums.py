"""Sums of float64 that lose nothing, in NumPy: the specification of that kernel, and the step that it is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zmpsl.kernels.plain import Buffer, destination, source

__all__ = ["add_into", "two_sum"]

# Elements at a time: what is made anew for each step is small enough to come from the heap, and stays in the cache.
PIECE = 4096


def two_sum(sums: NDArray[np.float64], terms: NDArray[np.float64]) -> None:
    """Adds the terms to the sums in place, and leaves in `terms`, exactly, what rounding left out (TwoSum of Knuth).

    With t = sum + term and b = t - sum, that is (sum - (t - b)) + (term - b).
    """
    with np.errstate(all="ignore"):
        for low in range(0, sums.size, PIECE):
            sum_, term = sums[low : low + PIECE], terms[low : low + PIECE]
            total = sum_ + term
            back = total - sum_
            np.add(sum_ - (total - back), term - back, out=term)
            sum_[:] = total


def add_into(src: Buffer, weight: float, sums: Buffer, rests: Buffer) -> bool:
    """Adds float32 values times a weight to float64 sums.

    Args:
        src: The values.
        weight: An integer of 29 bits at most, so that the products are exact.
        sums: One float64 per value.
        rests: As many; becomes, exactly, what rounding left out.

    Returns:
        Whether any rest is not 0.
    """
    data = source(src)
    total = destination(sums, 0, data)
    rest = destination(rests, 0, data, total)
    if not total.size == rest.size == 2 * data.size:
        n = data.size // 4
        raise ValueError(f"{n} values need {8 * n} bytes of sums and of rests, not {total.size} and {rest.size}")
    left = rest.view(np.float64)
    with np.errstate(all="ignore"):
        np.multiply(data.view("<f4"), weight, out=left, dtype=np.float64)
    two_sum(total.view(np.float64), left)
    return bool(left.any())

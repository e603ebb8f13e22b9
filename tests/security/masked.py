"""A job with secure averaging, and the mean it must give, in whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import TINY

__all__ = ["SECURE", "fixed_mean"]

SECURE = [*TINY, "owners=3", "privacy.secure_average=true", "model.name=small_nets:tiny_mlp"]


def fixed_mean(arrays: list[np.ndarray[Any, Any]], weights: list[int]) -> np.ndarray[Any, Any]:
    """The documented average in whole numbers of any size; shares no code with what runs."""
    first = arrays[0]
    if first.dtype.kind != "f":
        return first.copy()
    sums = [0] * first.size
    for array, weight in zip(arrays, weights, strict=True):
        for index, value in enumerate(array.ravel().tolist()):
            sums[index] += weight * round(value * 2**28)
    means = [float(each) / sum(weights) / 2**28 for each in sums]
    return np.array(means, np.float64).astype(first.dtype).reshape(first.shape)

"""L2 norms of what data owners send, against the limits of a job. NumPy only."""

from __future__ import annotations

import math

import numpy as np

from zmpsl.state import STEP, Flat, Layout
from zmpsl.transport.task import Array

__all__ = ["change_norm", "tensor_norm", "too_large"]


def tensor_norm(tensor: Array) -> float:
    """Gives the L2 norm of a tensor of floats, summed in float64."""
    values = tensor.reshape(-1)
    return math.sqrt(
        sum(float(np.dot(piece, piece)) for low in range(0, values.size, STEP) if (piece := _wide(values, low)).size)
    )


def change_norm(layout: Layout, flat: Flat, base: Flat) -> float:
    """Gives the L2 norm of the difference between the parameters of two states; buffers and optimiser do not count."""
    total = 0.0
    for segment in layout.segments:
        if segment.trained and not segment.is_optimizer:
            here = slice(segment.offset, segment.offset + segment.nbytes)
            new, old = flat[here].view(segment.dtype), base[here].view(segment.dtype)
            for low in range(0, new.size, STEP):
                piece = _wide(new, low) - _wide(old, low)
                total += float(np.dot(piece, piece))
    return math.sqrt(total)


def too_large(what: str, owner: int, norm: float, limit: float, key: str) -> str:
    """Says which owner went how far beyond which limit."""
    return (
        f"{what} owner {owner} has norm {norm:.6g}, the limit is {limit:g} ({key}). Either its training diverges or its"
        " data are unlike the others' (try a lower optimizer.lr.initial, or a higher limit), or it sends what it should"
        " not"
    )


def _wide(values: Array, low: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return values[low : low + STEP].astype(np.float64)

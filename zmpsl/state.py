"""A part's state as one flat buffer: where each tensor lies, exact averaging, and safetensors files. NumPy only.

Every weight, running statistic and (where it is averaged) optimiser tensor of a part lies in one aligned buffer, in
block order. So a replica is reset by one copy, an owner's parts travel as one tensor, and the aggregator needs no
torch.

The average of K replicas with n_k samples each (FedAvg) is defined per element as

    float32( float64( exact sum of n_k * w_k ) / sum of n_k )

A float32 times an integer below 2**29 is exact in float64, and the sum is exact too (ExactSum), so the result does not
depend on the order in which owners finish. Integer tensors are not averaged: those of the lowest-numbered owner stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import JobError, TrainingError
from zmpsl.job.schema import Optimizer
from zmpsl.kernels import KERNELS
from zmpsl.kernels.sums import two_sum
from zmpsl.plan import Block

__all__ = [
    "Average", "ExactSum", "Layout", "Segment", "digest", "ends_layout", "layout_of", "not_finite", "optimizer_entries",
]  # fmt: skip

Flat = NDArray[np.uint8]
ALIGNMENT = 64
FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
# Small enough for the scratch arrays of one step to stay in the cache.
STEP = 1 << 15


@dataclass(frozen=True, slots=True)
class Segment:
    """One tensor of the state.

    Attributes:
        name: Key in the whole model's state dict, such as `3.weight`; optimiser tensors are `3.weight@momentum`.
        dtype: NumPy dtype name.
        shape: Shape.
        offset: Bytes from the start of the buffer, a multiple of 64.
        trained: True for parameters.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    trained: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def is_optimizer(self) -> bool:
        """True for a tensor of the optimiser, which is no part of the model's state dict."""
        return "@" in self.name


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of one or more parts lies in a flat buffer."""

    segments: tuple[Segment, ...]
    nbytes: int

    def views(self, flat: Flat) -> dict[str, NDArray[np.generic]]:
        """Gives every tensor as an array over the buffer, without a copy."""
        return {
            segment.name: (
                flat[segment.offset : segment.offset + segment.nbytes].view(segment.dtype).reshape(segment.shape)
            )
            for segment in self.segments
        }


def optimizer_entries(optimizer: Optimizer) -> tuple[tuple[str, bool], ...]:
    """Gives the optimiser's tensors per parameter that are averaged: name, and whether it has the parameter's shape."""
    if optimizer.state != "average":
        return ()
    if optimizer.name == "adam":
        return (("step", False), ("exp_avg", True), ("exp_avg_sq", True))
    return (("momentum_buffer", True),) if optimizer.momentum else ()


def layout_of(blocks: tuple[Block, ...], indices: range, optimizer: Optimizer, start: int = 0) -> Layout:
    """Lays out the state of some blocks.

    Args:
        blocks: All blocks of the model.
        indices: Which of them.
        optimizer: Tells which optimiser tensors are part of the state.
        start: Offset of the first tensor, to put one layout behind another.

    Raises:
        JobError: A tensor has a dtype that cannot be averaged.
    """
    segments: list[Segment] = []
    end = start
    extra = optimizer_entries(optimizer)
    for index in indices:
        for entry in blocks[index].entries:
            if entry.dtype not in FLOATS + INTEGERS:
                raise JobError(
                    f"block {index} ({blocks[index].kind}): {entry.key} has dtype {entry.dtype}; known are"
                    f" {', '.join(FLOATS + INTEGERS)}"
                )
            wanted = [(f"{index}.{entry.key}", entry.dtype, entry.shape, entry.trained)]
            if entry.trained:
                wanted += [
                    (
                        f"{index}.{entry.key}@{name}",
                        entry.dtype if like else "float32",
                        entry.shape if like else (),
                        False,
                    )
                    for name, like in extra
                ]
            for name, dtype, shape, trained in wanted:
                segment = Segment(name, dtype, shape, end, trained)
                segments.append(segment)
                end += -(-segment.nbytes // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(segments), end)


def ends_layout(blocks: tuple[Block, ...], bounds: tuple[int, ...], optimizer: Optimizer) -> Layout:
    """Lays out the first part's state and the last part's behind it, as owners send it to the aggregator."""
    first = layout_of(blocks, range(bounds[0], bounds[1]), optimizer)
    last = layout_of(blocks, range(bounds[-2], bounds[-1]), optimizer, start=first.nbytes)
    return Layout(first.segments + last.segments, last.nbytes)


def digest(flat: Flat) -> str:
    """Gives the SHA-256 of a state, in hex; padding is always zero, so equal states have equal digests."""
    return sha256(flat.data).hexdigest()


def not_finite(layout: Layout, flat: Flat) -> str | None:
    """Gives the name of the first tensor of a state that holds a NaN or an infinity, None when there is none."""
    for segment in layout.segments:
        if segment.dtype in FLOATS:
            values = flat[segment.offset : segment.offset + segment.nbytes].view(segment.dtype)
            # Three times as fast as looking at each; it is only wrong where squares overflow, so then we look.
            with np.errstate(all="ignore"):
                sound = np.isfinite(np.dot(values, values))
            if not sound and not np.isfinite(values).all():
                return segment.name
    return None


class Average:
    """A running weighted mean of states whose result does not depend on the order of `add`.

    Args:
        layout: Of the states.
    """

    def __init__(self, layout: Layout) -> None:
        self._floats = [segment for segment in layout.segments if segment.dtype in FLOATS]
        self._others = [segment for segment in layout.segments if segment.dtype not in FLOATS]
        sizes = [segment.nbytes // np.dtype(segment.dtype).itemsize for segment in self._floats]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._sum = ExactSum(sum(sizes))
        self._integers = np.zeros(layout.nbytes, np.uint8) if self._others else None
        self._lowest: int | None = None
        self.weight = 0

    def reset(self) -> None:
        """Starts anew."""
        self._sum.reset()
        self._lowest, self.weight = None, 0

    def add(self, owner: int, flat: Flat, weight: int) -> None:
        """Adds one replica's state.

        Args:
            owner: Whose; integer tensors of the lowest-numbered owner stand.
            flat: The state.
            weight: Samples processed, at least 1.
        """
        self.weight += weight
        for segment, start in zip(self._floats, self._starts, strict=True):
            values = flat[segment.offset : segment.offset + segment.nbytes].view(segment.dtype)
            for low in range(0, values.size, STEP):
                self._sum.add(start + low, values[low : low + STEP], weight)
        if self._integers is not None and (self._lowest is None or owner < self._lowest):
            self._lowest = owner
            for segment in self._others:
                here = slice(segment.offset, segment.offset + segment.nbytes)
                self._integers[here] = flat[here]

    def write_to(self, flat: Flat) -> None:
        """Writes the mean into a state.

        Raises:
            TrainingError: The mean is not finite.
        """
        for segment, start in zip(self._floats, self._starts, strict=True):
            values = flat[segment.offset : segment.offset + segment.nbytes].view(segment.dtype)
            for low in range(0, values.size, STEP):
                piece = values[low : low + STEP]
                with np.errstate(all="ignore"):  # what overflows is found below
                    mean = self._sum.rounded(start + low, start + low + piece.size) / self.weight
                    piece[:] = mean.astype(segment.dtype)
                if not np.isfinite(piece).all():
                    raise TrainingError(
                        f"the average of {segment.name} is not finite; training has diverged, try a lower learning rate"
                    )
        if self._integers is not None:
            for segment in self._others:
                here = slice(segment.offset, segment.offset + segment.nbytes)
                flat[here] = self._integers[here]


class ExactSum:
    """Sums of float64 without any rounding, element by element, as unevaluated sums of float64.

    A term is added to level 0; what that rounds off is added to level 1; what is then still left is kept as it is
    (TwoSum of Knuth; growing expansions of Shewchuk 1997). Two levels hold 106 bits: something is left only where the
    terms of one element differ by more than about 2**50. Memory is two numbers per element, and 16 bytes per rest.
    """

    def __init__(self, size: int) -> None:
        self._levels = np.zeros(size), np.zeros(size)
        self._rest = np.empty(STEP)
        self._left: dict[int, list[tuple[NDArray[np.intp], NDArray[np.float64]]]] = {}  # by element // STEP

    def reset(self) -> None:
        """Starts anew."""
        self._left.clear()
        for level in self._levels:
            level.fill(0)

    def add(self, start: int, values: NDArray[np.floating], weight: int) -> None:
        """Adds a weight times at most STEP values to the elements from `start` on.

        What is not finite makes the sum not finite.
        """
        rest = self._rest[: values.size]
        first, second = (level[start : start + values.size] for level in self._levels)
        if values.dtype != np.float32:
            with np.errstate(over="ignore"):  # is found when the mean is written
                np.multiply(values, weight, out=rest, dtype=np.float64)
            two_sum(first, rest)
        elif not KERNELS.add_into(values, weight, first, rest):
            return
        two_sum(second, rest)
        found = np.flatnonzero((rest != 0) & np.isfinite(rest))
        for step in np.unique((found + start) // STEP):
            mine = found[(found + start) // STEP == step]
            self._left.setdefault(int(step), []).append((mine + start, rest[mine]))

    def rounded(self, start: int, stop: int) -> NDArray[np.float64]:
        """Gives the sums of elements [start, stop), each rounded once to the nearest float64."""
        total = self._levels[0][start:stop] + self._levels[1][start:stop]
        deep: dict[int, list[float]] = {}
        for step in range(start // STEP, -(-stop // STEP)):
            for indices, terms in self._left.get(step, ()):
                for index, term in zip(indices.tolist(), terms.tolist(), strict=True):
                    deep.setdefault(index, []).append(term)
        for index, rests in deep.items():
            if start <= index < stop and np.isfinite(total[index - start]):
                total[index - start] = math.fsum([*(float(level[index]) for level in self._levels), *rests])
        return total

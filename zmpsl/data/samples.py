"""Samples and Split: the values every data set is read into, and how a batch is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zmpsl.data.augment import augment
from zmpsl.errors import DataError

__all__ = ["Samples", "Split"]

INPUT_TYPES = ("uint8", "float32", "int64")


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and targets of the same number of samples, kept as compactly as they came.

    `mean` and `std` hold one number per channel (axis 1), or a single one for all channels, or nothing.
    Both arrays are kept as read-only views; the batches made from them are fresh copies.

    Shapes: inputs `(N, C, H, W) uint8` pixels, `(N, ...) float32`, or `(N, T) int64` tokens;
        targets `(N,)` class labels or `(N, T)` tokens, any integer type.

    Raises:
        DataError: Counts, types or the lengths of `mean` and `std` do not fit together.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.inputs.ndim < 2 or self.targets.ndim < 1 or len(self.inputs) != len(self.targets):
            raise DataError(
                f"samples need inputs (N, ...) and targets (N,) or (N, T) of one N, not inputs {self.inputs.shape} "
                f"and targets {self.targets.shape}"
            )
        if self.inputs.dtype.name not in INPUT_TYPES or self.targets.dtype.kind not in "iu":
            raise DataError(
                f"inputs must be {', '.join(INPUT_TYPES)} and targets integers, not {self.inputs.dtype} and "
                f"{self.targets.dtype}"
            )
        channels = self.inputs.shape[1]
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, channels):
            raise DataError(
                f"mean ({len(self.mean)} numbers) and std ({len(self.std)} numbers) must have 0, 1 or {channels} "
                f"numbers each, as the inputs have {channels} channels"
            )
        if self.mean and (self.inputs.dtype == np.int64 or not min(self.std) > 0):
            raise DataError(f"mean and std are for images, std above 0, not {self.std} on {self.inputs.dtype} inputs")
        for name in ("inputs", "targets"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(
        self, indices: NDArray[np.integer[Any]], rng: np.random.Generator | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Gives the samples at `indices` as the model takes them.

        Every step works on single elements in float32 with IEEE rounding, in this order, so that each host gets
        the same bits: augment the raw pixels; convert; divide uint8 pixels by 255; subtract mean; divide by std.

        Args:
            indices: Which samples, in which order. Shape `(B,)`.
            rng: Source of crops and flips (see `zmpsl.data.augment`); None leaves the images as they are.

        Returns:
            Inputs, C-contiguous: float32 for images and features, int64 for tokens; and targets, C-contiguous int64.

        Raises:
            DataError: Augmentation was asked for inputs that are not images.
        """
        raw = self.inputs[indices]
        if rng is not None:
            raw = augment(raw, rng)
        targets = np.ascontiguousarray(self.targets[indices], dtype=np.int64)
        if raw.dtype == np.int64:
            return np.ascontiguousarray(raw), targets
        inputs = np.array(raw, dtype=np.float32, order="C")
        if raw.dtype == np.uint8:
            inputs /= np.float32(255)
        if self.mean:
            per_channel = (1, -1) + (1,) * (inputs.ndim - 2)
            inputs -= np.array(self.mean, dtype=np.float32).reshape(per_channel)
            inputs /= np.array(self.std, dtype=np.float32).reshape(per_channel)
        return inputs, targets

    def subset(self, indices: NDArray[np.integer[Any]]) -> Samples:
        """Gives a copy of the samples at `indices`, so that the rest can be freed."""
        return Samples(self.inputs[indices], self.targets[indices], self.mean, self.std)

    def first(self, count: int) -> Samples:
        """Gives a copy of the first `count` samples, or these samples where there are no more than that."""
        return self if count >= len(self) else self.subset(np.arange(count))


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test samples of one data set, and the number of classes (for text: of characters).

    Raises:
        DataError: There is no training sample, the two halves differ in shape or type, or a target lies outside
            `[0, classes)`.
    """

    train: Samples
    test: Samples
    classes: int

    def __post_init__(self) -> None:
        if len(self.train) == 0:
            raise DataError("the data set has no training sample")
        halves = (self.train, self.test)
        forms = [(half.inputs.shape[1:], half.targets.shape[1:], half.inputs.dtype.name) for half in halves]
        if forms[0] != forms[1]:
            raise DataError(f"training and test differ in (input shape, target shape, type): {forms[0]} and {forms[1]}")
        for name, targets in (("training", self.train.targets), ("test", self.test.targets)):
            if targets.size and not 0 <= int(targets.min()) <= int(targets.max()) < self.classes:
                raise DataError(
                    f"{name} targets must lie in [0, {self.classes}) as the data set has {self.classes} classes, "
                    f"but they span {targets.min()} to {targets.max()}"
                )

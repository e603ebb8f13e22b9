"""Made-up data, for benches only: as many samples of any shape as a measurement needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zmpsl.data.arguments import whole_number
from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError
from zmpsl.randomness import generator

__all__ = ["read_synthetic"]


def read_synthetic(
    folder: str | None, seed: int, *, samples: int = 1024, shape: Sequence[int] = (1, 8, 8), classes: int = 10
) -> Split:
    """Makes samples that show how fast something runs; no accuracy reached on them means anything.

    Each class has a random pattern and each sample adds random noise to that of its class, so a loss does fall.
    Pixels are drawn as integers, hence the same on every host, from the generator keyed `(seed, "synthetic")`.

    Args:
        folder: Not used.
        seed: The job's seed.
        samples: Training samples; there are an eighth as many test samples on top, at least one.
        shape: Shape of one sample, without the batch dimension.
        classes: Number of classes.

    Returns:
        Inputs `(N, *shape) uint8` with mean 0.5 and std 0.25, and labels `(N,) int64`.

    Raises:
        DataError: An argument is not a whole number of at least one.
    """
    count = whole_number("synthetic", "samples", samples)
    classes = whole_number("synthetic", "classes", classes)
    if not isinstance(shape, list | tuple) or not shape:
        raise DataError(f"synthetic: data.args shape must be a list of whole numbers, not {shape!r}")
    sizes = [whole_number("synthetic", "shape", size) for size in shape]
    rng = generator(seed, "synthetic")
    total = count + max(1, count // 8)
    patterns = rng.integers(0, 128, size=(classes, *sizes), dtype=np.uint8)
    labels = rng.integers(0, classes, size=total)
    pixels = rng.integers(0, 128, size=(total, *sizes), dtype=np.uint8)
    pixels += patterns[labels]
    mean, std = (0.5,), (0.25,)
    return Split(
        Samples(pixels[:count], labels[:count], mean, std), Samples(pixels[count:], labels[count:], mean, std), classes
    )

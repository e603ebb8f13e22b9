"""Crop-flip augmentation of a batch of images: zero pad by 4, random crop back to size, random horizontal flip."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from zmpsl.errors import DataError

__all__ = ["augment"]

PAD = 4


def augment(images: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Shifts and flips each image of a batch on its own.

    It works on raw pixels, before normalisation, so that the border is black as in torchvision's
    `RandomCrop(size, padding=4)`. The generator is drawn from in this fixed order, whatever the images hold:

        offsets = rng.integers(0, 9, size=(B, 2))    # top row and left column of the crop in the padded image
        flips = rng.random(B) < 0.5                  # mirrored left to right

    Args:
        images: A batch of images, `(B, C, H, W)`, any type; not changed.
        rng: The generator keyed `(seed, "augment", owner, round, local epoch, batch)`.

    Returns:
        The new images, C-contiguous, of the same shape and type.

    Raises:
        DataError: The batch is not one of images.
    """
    if images.ndim != 4:
        raise DataError(
            f"data.augment 'crop-flip' is for images (B, C, H, W), but a batch of this data set is {images.shape}; "
            "set data.augment: none"
        )
    count, _, height, width = images.shape
    offsets = rng.integers(0, 2 * PAD + 1, size=(count, 2))
    flips = rng.random(count) < 0.5
    padded = np.pad(images, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))  # (B, C, 9, 9, H, W), nothing copied
    crops = np.ascontiguousarray(windows[np.arange(count), :, offsets[:, 0], offsets[:, 1]])
    crops[flips] = crops[flips, :, :, ::-1]
    return crops

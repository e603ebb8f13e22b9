"""The digits data set that comes with scikit-learn: the data of the built-in job, nothing to download."""

from __future__ import annotations

import numpy as np

from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError

__all__ = ["read_digits"]


def read_digits(folder: str | None, seed: int) -> Split:
    """Reads the 1,797 handwritten digits, of which every fifth is a test sample whatever the seed.

    Args:
        folder: Not used, the images lie in the scikit-learn package.
        seed: Not used, the split is fixed: samples 4, 9, 14, ... are the 359 test samples.

    Returns:
        Images `(1, 8, 8) float32`, the pixels 0 to 16 divided by 16, and 10 classes.

    Raises:
        DataError: scikit-learn is not installed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """
    try:
        from sklearn.datasets import load_digits  # a second to import, so only where it is wanted
    except ImportError as error:
        raise DataError(
            "data set 'digits' comes with scikit-learn, which is not installed: pip install zmpsl[digits]"
        ) from error
    bunch = load_digits()
    images = (np.asarray(bunch.images, dtype=np.float32) / np.float32(16))[:, np.newaxis]
    labels = np.asarray(bunch.target, dtype=np.int64)
    is_test = np.arange(len(labels)) % 5 == 4
    return Split(Samples(images[~is_test], labels[~is_test]), Samples(images[is_test], labels[is_test]), 10)

"""The digits data set that comes with scikit-learn: the data of the built-in job, nothing to download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
    table = np.loadtxt(_file(), delimiter=",", dtype=np.int64)
    images = table[:, :64].astype(np.float32).reshape(-1, 1, 8, 8) / np.float32(16)
    labels = np.ascontiguousarray(table[:, 64])
    is_test = np.arange(len(labels)) % 5 == 4
    return Split(Samples(images[~is_test], labels[~is_test]), Samples(images[is_test], labels[is_test]), 10)


def _file() -> Path:
    # Found without importing scikit-learn, which would take each data owner a second and 100 MB.
    package = importlib.util.find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package is not None else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise DataError("data set 'digits' comes with scikit-learn, which is not installed: pip install zmpsl[digits]")

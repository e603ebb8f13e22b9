"""The digits as vectors, named in jobs as `flat_digits:split`."""

from __future__ import annotations

from zmpsl.data import Samples, Split, load
from zmpsl.job import Data


def split(folder: str | None) -> Split:
    """Digits of shape (N, 64), a few of them."""
    digits = load(Data(name="digits", args={"limit": 110, "test_limit": 40}), 0)
    flat = [Samples(half.inputs.reshape(len(half), -1), half.targets) for half in (digits.train, digits.test)]
    return Split(flat[0], flat[1], digits.classes)

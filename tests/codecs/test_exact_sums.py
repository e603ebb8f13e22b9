"""Exact sums, the kernel of averaging: sum and rest together are what was added, from C and from NumPy alike."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from codec_cases import ALL, TWIN, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.kernels import Kernels
from zmpsl.kernels.sums import PIECE

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights = st.integers(1, 2**29 - 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(finite, st.floats(-1e60, 1e60)), min_size=1, max_size=40), weights)
def test_sum_and_rest_are_exact(pairs: list[tuple[float, float]], weight: int) -> None:
    for isa, kernels in ALL.items():
        if kernels is None:
            continue
        values = np.array([value for value, _ in pairs], np.float32)
        sums, rests = np.array([before for _, before in pairs]), np.full(len(pairs), 9.0)
        left = kernels.add_into(values, weight, sums, rests)
        for (value, before), total, rest in zip(pairs, sums.tolist(), rests.tolist(), strict=True):
            assert Fraction(total) + Fraction(rest) == Fraction(before) + Fraction(value) * weight, isa
            assert total == float(Fraction(before) + Fraction(value) * weight), isa
        assert left is bool(rests.any())


@pytest.mark.parametrize("n", [0, 1, 7, 8, 31, PIECE - 1, PIECE, PIECE + 1, 70001])
def test_c_and_twin_agree(kernels: Kernels, n: int) -> None:
    for kind, values in samples(n).items():  # some are not finite
        found = []
        for each in (TWIN, kernels):
            sums, rests = np.linspace(-1e6, 1e-3, n), np.empty(n)
            left = each.add_into(values, 1234567, sums, rests)
            found.append((left, sums, rests))
        (left, *expected), (same, *arrays) = found
        assert left == same, kind
        for one, other in zip(expected, arrays, strict=True):
            np.testing.assert_array_equal(one, other, kind)


def test_buffers_may_begin_anywhere(kernels: Kernels) -> None:
    values = np.random.default_rng(0).standard_normal(999, np.float32)
    memory = np.zeros(3 * 8000, np.uint8)
    source, sums, rests = memory[1:3997], memory[8003 : 8003 + 7992], memory[16005 : 16005 + 7992]
    source[:] = values.view(np.uint8)
    assert not kernels.add_into(source, 3, sums, rests)
    assert np.array_equal(sums.view(np.float64), 3 * values.astype(np.float64))
    assert not rests.any()


def test_sizes_that_do_not_fit_and_overlap_are_refused(kernels: Kernels) -> None:
    memory = np.zeros(30)
    values = np.zeros(10, np.float32)
    for sums, rests in ((memory[:9], memory[10:20]), (memory[:10], memory[10:21]), (memory[:11], memory[11:22])):
        with pytest.raises(ValueError, match="10 values need 80 bytes of sums and of rests"):
            kernels.add_into(values, 1, sums, rests)
    with pytest.raises(ValueError, match="no whole number"):
        kernels.add_into(b"12345", 1, memory[:1], memory[1:2])
    inside = memory[:5].view(np.float32)
    for sums, rests in ((memory[:10], memory[20:]), (memory[20:], memory[:10]), (memory[10:20], memory[11:21])):
        with pytest.raises(ValueError, match="overlap"):
            kernels.add_into(inside, 1, sums, rests)
    with pytest.raises((TypeError, BufferError)):
        kernels.add_into(values, 1, bytes(80), memory[:10])

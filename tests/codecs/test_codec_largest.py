"""topk: the largest values, about as many as wanted, and the same bytes from C and from NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from codec_cases import NATIVE, TWIN, bell, decode, samples

from zmpsl.kernels import Kernels


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 300, 16383, 16384, 70001, 300007])
def test_c_and_twin_agree(n: int, share: float) -> None:
    if not NATIVE:
        pytest.skip("the C kernels are not built")
    for kind, values in samples(n).items():
        expected, room = (np.zeros(TWIN.formats["bf16_huff"].bound(n), np.uint8) for _ in range(2))
        size = TWIN.topk_encode_into(values, expected, share)
        for kernels in NATIVE:
            assert kernels.topk_encode_into(values, room, share) == size, (kernels.isa, kind)
            assert room[:size].tobytes() == expected[:size].tobytes(), (kernels.isa, kind)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("n", "off"), [(5000, 0.01), (300007, 0.15)])
def test_the_largest_and_about_as_many_as_wanted(kernels: Kernels, n: int, off: float, share: float) -> None:
    values = bell(n, 3)
    room = np.zeros(kernels.formats["bf16_huff"].bound(n), np.uint8)
    size = kernels.topk_encode_into(values, room, share)
    arrived = decode(kernels, "bf16_huff", room[:size].tobytes(), n)
    kept = arrived != 0
    assert kept.sum() == pytest.approx(share * n, rel=off, abs=1)
    assert np.abs(values[kept]).min() >= np.abs(values[~kept]).max()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, np.nan])
def test_a_share_that_is_none_is_refused(kernels: Kernels, share: float) -> None:
    with pytest.raises(ValueError, match="share must lie above 0"):
        kernels.topk_encode_into(bell(9), np.zeros(100, np.uint8), share)

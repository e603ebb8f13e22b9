"""Fixtures for tests of codecs."""

from __future__ import annotations

import pytest
from codec_cases import ALL

from zmpsl.kernels import Kernels


@pytest.fixture(params=ALL)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Every set of codec kernels in turn."""
    found = ALL[request.param]
    if found is None:
        pytest.skip(f"the {request.param} kernels are not built or cannot run on this processor")
    return found

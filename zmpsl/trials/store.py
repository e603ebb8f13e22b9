"""What it costs a role to store its part at the end of a round: files written and synced in a folder for a moment."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from zmpsl.whole_file import replacing

__all__ = ["storing_cost"]

SMALL_BYTES, LARGE_BYTES = 1 << 12, 8 << 20
REPEATS = 3


def storing_cost(folder: Path | None) -> tuple[float, float]:
    """Measures the seconds of a file, and those of each byte in it.

    Args:
        folder: Where a run keeps its checkpoints; None where it keeps none.

    Returns:
        Both seconds; nothing where nothing is stored, or nothing can be: the run will tell.
    """
    if folder is None:
        return 0.0, 0.0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=folder) as place:
            small, large = (_seconds(Path(place) / "part", nbytes) for nbytes in (SMALL_BYTES, LARGE_BYTES))
    except OSError:
        return 0.0, 0.0
    each = max(0.0, large - small) / (LARGE_BYTES - SMALL_BYTES)
    return max(0.0, small - SMALL_BYTES * each), each


def _seconds(path: Path, nbytes: int) -> float:
    values = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        with replacing(path, lasting=True) as temporary:
            save_file({"values": values}, temporary)
        found.append(time.perf_counter() - begun)
    return median(found)

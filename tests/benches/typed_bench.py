"""A benchmark as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["bench"]

ROOT = Path(__file__).parents[2]


def bench(name: str, *options: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs bench/NAME.py in the tree's root, with the tree's own package."""
    return subprocess.run(
        [sys.executable, f"bench/{name}.py", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

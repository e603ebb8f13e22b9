"""The benchmark of averaging runs from its command line."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_few_parameters_give_a_table() -> None:
    done = subprocess.run(
        [sys.executable, "bench/average.py", "--parameters", "70001", "--repeats", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "| a copy of as many bytes | " in done.stdout
    assert len(rows) == 2 + 4

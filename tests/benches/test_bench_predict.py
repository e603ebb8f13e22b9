"""The prediction benchmark runs from its command line; what its figures say is told by a quiet machine only."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_case_gives_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "predict.json"
    options = ["--cases", "1", "--rounds", "1", "--no-hand", "--quick", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "bench/predict.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| resnet18, equal | [1, " in done.stdout
    assert "mean absolute error" in done.stdout
    (found,) = json.loads(file.read_text()).values()
    assert found["auto"]["predicted_s"] > 0
    assert found["auto"]["measured_s"] > 0

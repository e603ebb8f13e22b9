"""The pool's benchmark runs from its command line, with owners that cannot measure a model as they hold none."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_small_model_gives_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "pool.json"
    options = ["--model", "digits_cnn", "--cuts", "1,3,5", "--nodes", "2", "--owners", "1", "--total", "904MiB"]
    done = subprocess.run(
        [sys.executable, "bench/pool.py", *options, "--batches", "1", "--timeout-s", "60", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| 2 | 1 | 1 | " in done.stdout
    assert json.loads(file.read_text())

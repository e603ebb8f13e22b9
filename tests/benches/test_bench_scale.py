"""The benchmark of scale runs from its command line; what its figures say is told by a quiet machine only."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_few_owners_give_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    options = ["--only", "scale", "--owners", "3", "--batches", "6", "--rounds", "2", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "bench/scale.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| 3 | 6 | " in done.stdout
    assert "mean absolute error" in done.stdout
    (found,) = json.loads(file.read_text(encoding="utf-8"))["scale"]
    assert len(found["rounds_s"]) == 2
    assert found["measured_s"] == found["rounds_s"][1]
    assert found["predicted_s"] > 0


def test_without_the_authors_numbers_there_is_nothing_to_say(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "bench/scale.py", "--only", "links", "--data", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "of --only links nothing could be measured here" in done.stderr

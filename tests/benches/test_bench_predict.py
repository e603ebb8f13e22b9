"""The prediction benchmark runs from its command line; what its figures say is told by a quiet machine only."""

import json
from pathlib import Path

from typed_bench import bench


def test_one_case_gives_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "predict.json"
    options = ["--cases", "1", "--rounds", "1", "--no-hand", "--quick", "--json", str(file)]
    done = bench("predict", *options, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "| resnet18, equal | [1, " in done.stdout
    assert "mean absolute error" in done.stdout
    (found,) = json.loads(file.read_text()).values()
    assert found["auto"]["predicted_s"] > 0
    assert found["auto"]["measured_s"] > 0

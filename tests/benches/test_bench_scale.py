"""The benchmark of scale runs from its command line; what its figures say is told by a quiet machine only."""

import json
from pathlib import Path

from typed_bench import bench


def test_few_owners_give_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    options = ["--only", "scale", "--owners", "3", "--batches", "6", "--rounds", "2", "--json", str(file)]
    done = bench("scale", *options, timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert "| 3 | 6 | " in done.stdout
    assert "mean absolute error" in done.stdout
    (found,) = json.loads(file.read_text(encoding="utf-8"))["scale"]
    assert len(found["rounds_s"]) == 2
    assert found["measured_s"] == found["rounds_s"][1]
    assert found["predicted_s"] > 0


def test_without_the_authors_numbers_there_is_nothing_to_say(tmp_path: Path) -> None:
    done = bench("scale", "--only", "links", "--data", str(tmp_path), timeout_s=60)
    assert done.returncode == 2
    assert "of --only links nothing could be measured here" in done.stderr

"""A checkpoint that cannot be written ends the run with a clear word, and the last good one is gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TINY, differing, job

from zmpsl.checkpoint import load_state_dict, read_record, round_folder
from zmpsl.errors import CheckpointError
from zmpsl.launch.local import run

WANTED = job(*TINY, "owners=2", "train.rounds=4", "evaluate.every=0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a disk that takes everything."""
    return run(WANTED, tmp_path_factory.mktemp("whole"), "whole").folder


@pytest.mark.parametrize("name", ["part-0.safetensors", "part-1.safetensors", "model.safetensors.index.json"])
def test_a_file_that_cannot_be_written(tmp_path: Path, whole: Path, name: str):
    """By the aggregator, a node, the manager."""
    folder = tmp_path / "full"
    obstacle = round_folder(folder, 2) / name / "in the way"
    obstacle.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"cannot write .*{name}"):
        run(WANTED, tmp_path, "full")
    assert read_record(folder).last == 1
    obstacle.rmdir()
    obstacle.parent.rmdir()
    assert differing(load_state_dict(run(WANTED, tmp_path, "full", resume=True).folder), load_state_dict(whole)) == []

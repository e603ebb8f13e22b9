"""Random faults in random schedules: every commit agrees with the quiet run, and the run comes to its end.

`ZMPSL_SCHEDULES=10000 pytest tests/faults/test_schedules.py` runs many; a failing seed is in the test's name, and
`ZMPSL_FIRST_SCHEDULE` starts there.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faulty_run import FaultyRun
from helpers import differing, global_state, job

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun

FIRST = int(os.environ.get("ZMPSL_FIRST_SCHEDULE", "0"))
SCHEDULES = int(os.environ.get("ZMPSL_SCHEDULES", "40"))
BATCH = 20


@cache
def small(owners: int, micro: int) -> Job:
    return job(
        "model.name=small_nets:tiny_mlp",
        "data.name=synthetic",
        "data.args.samples=60",
        "train.rounds=3",
        "train.batch_size=16",
        f"train.micro_batches={micro}",
        "evaluate.every=2",
        f"owners={owners}",
        "keep_checkpoints=2",
        "recover.wait_s=1000000",
        "recover.attempts=1000",
        "network.join_timeout_s=1000000",
    )


@cache
def quiet(owners: int, micro: int) -> tuple[dict, dict]:
    """Weights and digests by round of a run on which no faults fall."""
    with TemporaryDirectory() as folder:
        undisturbed = FaultyRun(small(owners, micro), 0, Path(folder), faults=0)
        undisturbed.run()
        return load_state_dict(Path(folder) / "memory"), dict(undisturbed.commits)


@pytest.mark.parametrize("first", range(FIRST, FIRST + SCHEDULES, BATCH))
def test_every_commit_is_that_of_the_quiet_run(first: int, tmp_path: Path):
    for seed in range(first, first + BATCH):
        owners, micro = 1 + seed % 3, 1 + seed % 2
        weights, digests = quiet(owners, micro)
        run = FaultyRun(small(owners, micro), seed, tmp_path / str(seed))
        run.run()
        story = f"seed {seed}: {run.fallen}"
        assert all(digests[round_] == told for round_, told in run.commits), story
        assert read_record(tmp_path / str(seed) / "memory").last == 2, story
        assert differing(load_state_dict(tmp_path / str(seed) / "memory"), weights) == [], story


def test_the_quiet_run_is_that_without_a_folder():
    weights, _ = quiet(2, 1)
    plain = MemoryRun(small(2, 1), 3)
    plain.run()
    assert differing(global_state(plain.members), weights) == []

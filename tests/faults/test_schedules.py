"""Random faults in random schedules: every commit is what the reference trains, and the run comes to its end.

`ZMPSL_SCHEDULES=10000 pytest tests/faults/test_schedules.py` runs many; a failing seed is in the test's name and its
message, and `ZMPSL_FIRST_SCHEDULE=SEED ZMPSL_SCHEDULES=1` runs that one again, move by move the same.

What may never be: that a round's work counts twice or in part (the weights would differ), that two commits of a round
differ, that a record goes back, that memory or credit are over their bounds, that a run does not end once faults stop.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faulty_run import FAULTS, FaultyRun
from helpers import differing, global_state, notices
from schedules import KINDS, check, schedule, small

from zmpsl.checkpoint import load_state_dict
from zmpsl.launch.memory import MemoryRun

FIRST = int(os.environ.get("ZMPSL_FIRST_SCHEDULE", "0"))
SCHEDULES = int(os.environ.get("ZMPSL_SCHEDULES", "42"))
BATCH = 21


@pytest.mark.parametrize("first", range(FIRST, FIRST + SCHEDULES, BATCH))
def test_every_commit_is_that_of_the_reference(first: int):
    for seed in range(first, min(first + BATCH, FIRST + SCHEDULES)):
        with TemporaryDirectory() as folder:
            run = schedule(seed, Path(folder))
            try:
                run.run()
            except BaseException as error:
                error.add_note(f"seed {seed} ({KINDS[seed % len(KINDS)]}): {run.fallen}")
                raise
            check(run, Path(folder), f"seed {seed} ({KINDS[seed % len(KINDS)]}): {run.fallen}")


def test_a_node_that_comes_back_to_a_taken_place_stands_by(tmp_path: Path):
    """It was refused and left, so nobody stood by when the other node was lost for good: a seed that stood still."""
    run = schedule(9140, tmp_path)
    texts = notices(run.manager.board)
    run.run()
    check(run, tmp_path, "seed 9140")
    assert sum("takes the place of" in text for text in texts) == 2


def test_an_activation_that_comes_once_more_after_its_batch_is_none(tmp_path: Path):
    """It was computed anew and waited for a gradient; when that came late too, autograd met other weights."""
    run = schedule(10410, tmp_path)
    run.run()
    check(run, tmp_path, "seed 10410")


def test_owners_that_keep_their_optimiser_states():
    """The states of a round that is begun again are those of the last commit, whoever had written newer ones."""
    for seed in range(FIRST, FIRST + SCHEDULES // 3):
        with TemporaryDirectory() as folder:
            run, story = schedule(seed, Path(folder), "keep"), f"seed {seed} ({KINDS[seed % len(KINDS)]})"
            try:
                run.run()
            except BaseException as error:
                error.add_note(f"{story}: {run.fallen}")
                raise
            check(run, Path(folder), f"{story}: {run.fallen}")


def test_a_seed_is_a_schedule(tmp_path: Path):
    """Run again, it does the same moves: so a failing one can be looked at."""
    twice = [schedule(4, tmp_path / name) for name in ("one", "two")]
    for run in twice:
        run.run()
    assert twice[0].fallen == twice[1].fallen
    assert twice[0]._moved == twice[1]._moved
    assert len(twice[0].fallen) > 3


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault_alone(kind: str, tmp_path: Path):
    """Many of one kind: it does fall, and changes nothing."""
    run = FaultyRun(small(2, 2), 5, tmp_path, faults=12, every=60)
    fall = run._fault
    run._fault = lambda _: fall(kind)  # type: ignore[method-assign]
    run.run()
    assert run.fallen
    check(run, tmp_path, str(run.fallen))


def test_the_quiet_run_is_that_without_a_folder(tmp_path: Path):
    """And nothing falls in it."""
    undisturbed = FaultyRun(small(2, 1), 0, tmp_path, faults=0)
    undisturbed.run()
    assert undisturbed.fallen == []
    plain = MemoryRun(small(2, 1), 3)
    plain.run()
    assert differing(global_state(plain.members), load_state_dict(tmp_path / "memory")) == []

"""Random faults in random schedules: every commit is what the reference trains, and the run comes to its end.

`ZMPSL_SCHEDULES=10000 pytest tests/faults/test_schedules.py` runs many; a failing seed is in the test's name and its
message, and `ZMPSL_FIRST_SCHEDULE=SEED ZMPSL_SCHEDULES=1` runs that one again, move by move the same.

What may never be: that a round's work counts twice or in part (the weights would differ), that two commits of a round
differ, that a record goes back, that memory or credit are over their bounds, that a run does not end once faults stop.
"""

from __future__ import annotations

import os
from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from faulty_run import FAULTS, FaultyRun
from helpers import differing, global_state, job, notices
from reference import State, train
from test_pool_runs import parts

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun

FIRST = int(os.environ.get("ZMPSL_FIRST_SCHEDULE", "0"))
SCHEDULES = int(os.environ.get("ZMPSL_SCHEDULES", "42"))
BATCH = 21
ROUNDS = 2
KINDS = ("plain", "waves", "credit", "plain", "quorum", "standby", "fewer nodes")

# Digests by job, cuts, and who took part in each round so far: as the first schedule of this process found them.
AGREED: dict[Any, dict[str, str]] = {}


@cache
def small(owners: int, micro: int, state: str = "reset") -> Job:
    return job(
        "model.name=small_nets:tiny_mlp",
        "data.name=synthetic",
        f"data.args.samples={20 * max(owners, 3)}",
        f"train.rounds={ROUNDS}",
        "train.local_epochs=1",
        "train.batch_size=16",
        f"train.micro_batches={micro}",
        "evaluate.every=2",
        f"optimizer.state={state}",
        f"owners={owners}",
        "cuts=even",
        "keep_checkpoints=2",
        "recover.wait_s=1000000",
        "recover.attempts=1000",
        "network.join_timeout_s=1000000",
    )


@cache
def rooms(owners: int, micro: int, state: str) -> tuple[int, ...]:
    """Room for one owner on the first node and for two on the others."""
    return tuple(memory.need(1 + bool(hop)) + 10 for hop, memory in enumerate(parts(small(owners, micro, state))))


@cache
def expected(owners: int, micro: int, state: str, active: tuple[tuple[int, ...], ...]) -> State:
    """The weights, from the oracle that shares no code with what runs."""
    return train(small(owners, micro, state), active=active).states[-1]


def schedule(seed: int, runs: Path, state: str = "reset") -> FaultyRun:
    """The run of a seed: which job, which roles are lost for long, how many faults."""
    kind, turn = KINDS[seed % len(KINDS)], seed // len(KINDS)
    owners, micro = 1 + turn % 3, 1 + turn % 2
    faults: dict[str, Any] = {"faults": 2 + turn % 5}
    settings: dict[str, Any] = {}
    match kind:
        case "waves":
            owners += 1
            faults["rooms"] = rooms(owners, micro, state)
        case "credit":
            faults["credit_bytes"] = 700  # about two micro-batches
        case "quorum":
            owners = 3
            settings = {"quorum": 0.6, "wait_s": 20.0}
            faults |= {"loses": f"owner-{turn % 3}", "loses_in": turn % 2, "back_after": 1 + seed * 97 % 6000}
        case "standby":
            settings = {"standby_after_s": 2.0}
            faults |= {"loses": f"node-{turn % 2}", "loses_in": turn % 2, "standby": 1}
        case "fewer nodes":
            settings = {"fewer_nodes": True, "wait_s": 30.0}
            faults |= {"loses": f"node-{turn % 2}", "loses_in": turn % 2}
    wanted = small(owners, micro, state)
    wanted = msgspec.structs.replace(wanted, recover=msgspec.structs.replace(wanted.recover, **settings))
    if kind == "fewer nodes":
        wanted = msgspec.structs.replace(wanted, network=msgspec.structs.replace(wanted.network, join_timeout_s=60))
    return FaultyRun(wanted, seed, runs, **faults)


def check(run: FaultyRun, runs: Path, story: str) -> None:
    """What was committed is what the reference trains with the owners that took part."""
    owners, micro, state = run.job.owners, run.job.train.micro_batches, run.job.optimizer.state
    assert sorted(run.commits) == list(range(ROUNDS)), story
    history = accumulate((run.commits[round_][2],) for round_ in range(ROUNDS))
    for (digests, bounds, _), active in zip((run.commits[round_] for round_ in range(ROUNDS)), history, strict=True):
        assert AGREED.setdefault((owners, micro, state, bounds, active), digests) == digests, story
    assert read_record(runs / "memory").last == ROUNDS - 1, story
    took_part = tuple(run.commits[round_][2] for round_ in range(ROUNDS))
    assert differing(load_state_dict(runs / "memory"), expected(owners, micro, state, took_part)) == [], story


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

"""One run under a schedule of faults, drawn from a seed; and what it must end with."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
from faulty_run import FaultyRun
from helpers import differing, job
from reference import State, train
from small_pools import parts

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.job import Job

__all__ = ["AGREED", "KINDS", "ROUNDS", "check", "expected", "rooms", "schedule", "small"]

ROUNDS = 2
KINDS = ("plain", "waves", "credit", "plain", "quorum", "standby", "fewer nodes")
# Digests by job, cuts, and who took part in each round so far: as the first schedule of this process found them.
AGREED: dict[Any, dict[str, str]] = {}


@cache
def small(owners: int, micro: int, state: str = "reset") -> Job:
    """A job whose run takes a fraction of a second."""
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

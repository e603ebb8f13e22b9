"""Split equals unsplit, bitwise: the spine of the suite.

Every run here is compared, bit for bit, with tests/reference.py: one process, whole model, no runtime code.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from exact import MODELS, reference, settings
from helpers import ThreadedRun, differing, global_state

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.launch.local import run
from zmpsl.launch.memory import MemoryRun

# Cuts right behind a ReLU, and behind one with max-pooling after it: gradients travel under the activation's mask.
LOSSLESS = ["codec=lossless", "cuts=[1, 3, 4]"]


CASES = [
    pytest.param(model, hops, owners, micro, id=f"{model}-{hops}hops-{owners}owners-{micro}micro")
    for model in MODELS
    for hops in (1, 2, 3, 4)
    for owners in (1, 3)
    for micro in ((1,) if model == "batch-norm" else (1, 4))
]


@pytest.mark.parametrize(("model", "hops", "owners", "micro"), CASES)
def test_in_memory_with_random_schedule(model: str, hops: int, owners: int, micro: int):
    wanted = settings(model, hops, owners, micro)
    ours = MemoryRun(wanted, seed=hops * 100 + owners * 10 + micro)
    scores = []
    ours.manager.board.listeners.append(
        lambda event: scores.append(event.accuracy) if hasattr(event, "accuracy") else None
    )
    ours.run()
    expected = reference(wanted)
    assert differing(global_state(ours.members), expected.states[-1]) == []
    assert scores == expected.accuracies


@pytest.mark.parametrize("seed", range(6))
def test_schedule_changes_nothing(seed: int):
    wanted = settings("dropout", 3, 3, 4, "network.credit_bytes=65536")
    ours = MemoryRun(wanted, seed=seed)
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


@pytest.mark.parametrize(
    "more",
    [
        ["train.schedule=gpipe"],
        ["codec.activations=lz4", "codec.gradients=lz4", "codec.parts=lz4"],
        ["codec.activations=huff", "codec.gradients=huff", "codec.parts=huff"],
        ["codec=lossless"],
        ["codec=lossless", "cuts=[1, 2, 5]", "train.schedule=gpipe", "train.micro_batches=4"],
        ["codec=bitmap"],
        ["codec=auto"],
        ["optimizer.state=average"],
        ["optimizer.name=adam", "optimizer.state=average", "optimizer.lr.initial=0.01"],
        ["optimizer.momentum=0", "optimizer.weight_decay=0"],
        ["optimizer.lr.schedule=cosine"],
        ["data.partition.kind=dirichlet", "data.partition.sizes=null", "data.partition.min_samples=16"],
        ["evaluate.data=owners", "evaluate.share=0.2"],
        ["train.drop_last=true", "train.max_batches=1"],
    ],
    ids=lambda more: ",".join(more[:2]),
)
def test_settings(more: list[str]):
    wanted = settings("dropout", 2, 3, 2, *more)
    ours = MemoryRun(wanted, seed=5)
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


@pytest.mark.parametrize("seed", range(4))
def test_resumed_run_equals_uninterrupted(tmp_path: Path, seed: int):
    """The stored average once overtook the plan on its way to an owner, and was dropped: the run never began."""
    wanted = settings("batch-norm", 2, 3, 1)
    MemoryRun(
        msgspec.structs.replace(wanted, train=msgspec.structs.replace(wanted.train, rounds=1)), seed, tmp_path
    ).run()
    MemoryRun(wanted, seed, tmp_path, resume=read_record(tmp_path / "memory")).run()
    assert differing(load_state_dict(tmp_path / "memory"), reference(wanted).states[-1]) == []


@pytest.mark.parametrize(("hops", "more"), [(1, []), (3, ["first_cut=2"]), (2, ["cuts=[2, 3, 4]"])])
def test_resumed_run_may_be_cut_differently(tmp_path: Path, hops: int, more: list[str]):
    """The last checkpoint is read whoever wrote which part of it; also the owners' parts may change."""
    momentum = ["optimizer.momentum=0.9", "optimizer.state=average"]
    MemoryRun(settings("batch-norm", 2, 3, 1, "train.rounds=1", *momentum), 1, tmp_path).run()
    wanted = settings("batch-norm", hops, 3, 1, *momentum, *more)
    MemoryRun(wanted, 2, tmp_path, resume=read_record(tmp_path / "memory")).run()
    assert differing(load_state_dict(tmp_path / "memory"), reference(wanted).states[-1]) == []


@pytest.mark.parametrize("micro", [1, 4])
def test_lossless_over_tcp_behind_a_relu(micro: int):
    wanted = settings("dropout", 2, 3, micro, *LOSSLESS, "network.jitter_s=0.002")
    with ThreadedRun(wanted) as ours:
        ours.finish()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert all(node.rejected == 0 for node in ours.nodes)


@pytest.mark.parametrize("model", MODELS)
def test_over_tcp_with_random_delays(model: str):
    wanted = settings(model, 2, 3, 1 if model == "batch-norm" else 4, "network.jitter_s=0.004")
    with ThreadedRun(wanted) as ours:
        ours.finish()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert all(node.rejected == 0 for node in ours.nodes)


# All models over all chain lengths, owners and micro-batches in turn.
PROCESSES = [
    (model, hops, (1, 3)[(number + hops) % 2], 1 if model == "batch-norm" else (1, 4)[number // 2 % 2 ^ hops % 2])
    for number, model in enumerate(MODELS)
    for hops in (1, 2, 3, 4)
]


@pytest.mark.parametrize(("model", "hops", "owners", "micro"), PROCESSES)
def test_over_tcp_processes_with_random_delays(tmp_path: Path, model: str, hops: int, owners: int, micro: int):
    wanted = settings(model, hops, owners, micro, "network.jitter_s=0.004")
    result = run(wanted, tmp_path, "exact")
    expected = reference(wanted)
    assert differing(load_state_dict(result.folder), expected.states[-1]) == []
    assert result.accuracy == expected.accuracies[-1]


def test_the_comparison_can_fail():
    wanted = settings("mlp", 1, 1, 1)
    other = settings("mlp", 1, 1, 1, "seed=1")
    assert differing(reference(wanted).states[-1], reference(other).states[-1]) != []

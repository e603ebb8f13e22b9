"""Clipping, noise and the likeness term: what leaves the owner, what is trained, and that nothing changes without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import differing, global_state, job
from packed_frames import tensors
from reference import train

from zmpsl.engine.privacy import Shaping, distance_correlation
from zmpsl.errors import JobError
from zmpsl.job.privacy import Privacy
from zmpsl.launch.memory import MemoryRun
from zmpsl.transport.task import Op

SMALL = [
    "model.name=small_nets:tiny_mlp", "owners=2", "train.rounds=2", "train.local_epochs=1", "train.batch_size=16",
    "data.args.limit=96", "data.args.test_limit=48", "first_cut=1", "cuts=even",
]  # fmt: skip
CLIP = ["privacy.clip_norm=0.1"]
NOISE = [*CLIP, "privacy.noise=0.3", "privacy.reproducible=true"]
NOPEEK = ["privacy.nopeek=0.5"]


def run(*more: str, seed: int = 1, capture: bool = False) -> MemoryRun:
    """A finished run."""
    ours = MemoryRun(job(*SMALL, *more), seed, capture=capture)
    ours.run()
    return ours


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    "more", [[], CLIP, NOISE, NOPEEK, [*NOISE, *NOPEEK]], ids=["off", "clip", "noise", "nopeek", "all"]
)
def test_split_is_unsplit(more: list[str], nodes: int, micro: int):
    """The oracle trains the whole model with the same definition, in one piece; not a bit differs."""
    settings = [*more, f"compute_nodes={nodes}", f"train.micro_batches={micro}"]
    ours = run(*settings)
    assert differing(global_state(ours.members), train(ours.manager.job).states[-1]) == []


def test_each_option_changes_what_is_trained():
    """Or the comparison above would say nothing."""
    plain, *others = (global_state(run(*more).members) for more in ([], CLIP, NOISE, NOPEEK))
    assert all(differing(plain, other) for other in others)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_travels_is_clipped_and_noisy(noise: float):
    """In training and in evaluation, every sample that leaves the owner."""
    ours = run("privacy.clip_norm=0.1", f"privacy.noise={noise}", capture=True)
    seen = set()
    for header, data in tensors(ours.frames).values():
        if header.task.op in (Op.FORWARD, Op.EVALUATE) and header.task.sender == 0xFFFF:
            seen.add(header.task.op)
            norms = np.linalg.norm(np.frombuffer(data, np.float32).reshape(header.shape), axis=1)
            assert (norms.max() <= 0.1 * (1 + 1e-5)) == (noise == 0.0)
    assert seen == {Op.FORWARD, Op.EVALUATE}


def test_noise_is_a_secret_of_the_owner():
    """Two runs of one job end with other weights, as the secret is drawn anew; nobody can take the noise off again."""
    settings = ["privacy.clip_norm=1", "privacy.noise=0.5"]
    assert differing(global_state(run(*settings).members), global_state(run(*settings).members))
    settings.append("privacy.reproducible=true")
    assert not differing(global_state(run(*settings).members), global_state(run(*settings, seed=2).members))


def test_noise_has_its_deviation_and_is_another_each_time():
    """Also per owner and per micro-batch, and the same when a round is begun again."""
    secret = bytes(range(32))
    zeros = torch.zeros(64, 500)

    def sent(owner: int, *at: int, key: bytes = secret) -> torch.Tensor:
        shaping = Shaping(Privacy(clip_norm=2.0, noise=0.5), 7, owner, key)
        return shaping.train(zeros, zeros, at, 1.0)[0]

    first = sent(0, 0, 0, 0, 0)
    assert abs(float(first.std()) - 1.0) < 0.01
    assert torch.equal(first, sent(0, 0, 0, 0, 0))
    others = [sent(1, 0, 0, 0, 0), sent(0, 1, 0, 0, 0), sent(0, 0, 0, 0, 1), sent(0, 0, 0, 0, 0, key=bytes(32))]
    assert not any(torch.equal(first, other) for other in others)


def test_distance_correlation_of_known_cases():
    """1 for a shifted and scaled copy, near 0 for what is independent; also with equal samples."""
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    assert float(distance_correlation(x, 3 * x + 2)) == pytest.approx(1.0, abs=1e-4)
    assert float(distance_correlation(x, torch.randn(200, 3))) < 0.1
    assert float(distance_correlation(x, torch.full((200, 5), 3.0))) < 0.01
    same = torch.ones(8, 4, requires_grad=True)
    distance_correlation(x[:8], same).backward()
    assert same.grad is not None
    assert bool(torch.isfinite(same.grad).all())


def test_the_term_makes_smashed_data_less_like_the_inputs():
    """After some rounds, on data the model has not seen."""

    def likeness(*more: str) -> float:
        ours = run("train.rounds=6", *more)
        owner = ours.members["owner-0"]
        inputs = torch.from_numpy(owner.data.train.batch(np.arange(48))[0])  # type: ignore[attr-defined]
        return float(distance_correlation(inputs, owner.engine._parts[0].evaluate(inputs)))  # type: ignore[attr-defined]

    assert likeness("privacy.nopeek=0.05") < likeness() - 0.1


def test_noise_without_a_bound_is_refused():
    with pytest.raises(JobError, match=r"privacy.noise 1 is a multiple of privacy.clip_norm, which is not given"):
        job("privacy.noise=1")


def test_a_node_may_hold_only_so_much():
    """Fixed cuts that show a node more end the run before it begins; solved cuts keep to it."""
    with pytest.raises(JobError, match=r"node-0 would hold 72 of .* parameters .* more than privacy.max_share 5.0%"):
        run("compute_nodes=2", "privacy.max_share=0.05")
    run("compute_nodes=2", "privacy.max_share=0.2")

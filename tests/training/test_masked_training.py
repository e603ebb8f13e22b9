"""Whole runs whose gradients travel under the activation's mask, and with every preset."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from helpers import TINY, differing, global_state, job
from torch import nn

from zmpsl.engine.relu import mask_of_output
from zmpsl.errors import TrainingError
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.observe.events import RoundEvent
from zmpsl.transport.task import Op
from zmpsl.transport.wire import HEADER_BYTES, Header, parse

RELU_CUTS = ["cuts=[1, 2, 4]", "owners=2"]  # parts end with ReLU, ReLU, and ReLU behind the first dense layer


def run(wanted: Job, seed: int = 3) -> tuple[MemoryRun, list[float], list[Header]]:
    ours = MemoryRun(wanted, seed=seed, capture=True)
    scores: list[float] = []
    ours.manager.board.listeners.append(
        lambda event: scores.append(event.accuracy) if hasattr(event, "accuracy") else None
    )
    ours.run()
    headers = [parse(frame, 1 << 40) for frame in ours.frames if len(frame) == HEADER_BYTES and frame[:2] == b"zP"]
    return ours, scores, headers


class TestReluOutputs:
    @pytest.mark.parametrize(
        ("block", "is_relu"),
        [
            (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), True),
            (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.ReLU(inplace=True))), True),
            (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), True),
            (nn.Sequential(nn.ReLU(), nn.Identity(), nn.Dropout(0.5)), False),
            (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), False),
            (nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3)), False),
            (nn.LeakyReLU(), False),
            (nn.GELU(), False),
            (nn.Sigmoid(), False),
        ],
        ids=str,
    )
    def test_are_recognised(self, block: nn.Module, is_relu: bool) -> None:
        block.train()
        output = block(1 * torch.randn(4, 2, 8, 8, requires_grad=True))
        mask = mask_of_output(output)
        assert (mask is not None) == is_relu
        if mask is not None:
            flat = output.detach().numpy().ravel()
            assert mask.bits(0, flat.nbytes).tobytes() == np.packbits(flat != 0, bitorder="little").tobytes()

    def test_gradients_outside_the_mask_change_nothing(self) -> None:
        """Not even where they are infinite or NaN."""
        torch.manual_seed(1)
        inputs = torch.randn(4, 3, 8, 8)
        results = []
        for wild in (0.0, float("inf"), float("nan"), -7.0):
            torch.manual_seed(2)
            block = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2))
            output = block(inputs)
            gradient = torch.where(output == 0, torch.full_like(output, wild), torch.ones_like(output))
            output.backward(gradient)
            results.append([p.grad.numpy().tobytes() for p in block.parameters() if p.grad is not None])
        assert results[0] == results[1] == results[2] == results[3]


@pytest.mark.parametrize("micro", [1, 3])
def test_every_gradient_of_a_lossless_run_is_masked_and_weights_stay_the_same(micro: int) -> None:
    more = [*TINY, *RELU_CUTS, f"train.micro_batches={micro}"]
    plain, scores, before = run(job(*more))
    masked, same, after = run(job(*more, "codec=lossless"), seed=4)
    assert differing(global_state(masked.members), global_state(plain.members)) == []
    assert same == scores
    assert not any(header.masked for header in before)
    gradients = [header for header in after if header.task.op is Op.BACKWARD]
    # A chunk whose activation has no zero travels without a mask.
    assert sum(header.masked for header in gradients) > 0.9 * len(gradients) > 0
    sizes = [sum(h.size for h in headers if h.task.op is Op.BACKWARD) for headers in (before, after)]
    assert sizes[1] < 0.7 * sizes[0]


def test_replicas_that_recompute_know_their_masks_too() -> None:
    plain = run(job(*TINY, *RELU_CUTS))[0]
    masked, _, headers = run(job(*TINY, *RELU_CUTS, "codec=lossless", "recompute=always", "train.micro_batches=1"))
    assert masked.manager.plan is not None
    assert all(masked.manager.plan.recompute)
    assert differing(global_state(masked.members), global_state(plain.members)) == []
    gradients = [header for header in headers if header.task.op is Op.BACKWARD]
    assert sum(header.masked for header in gradients) > 0.9 * len(gradients) > 0


LEARNING = [
    "train.local_epochs=3",
    "train.batch_size=16",
    "data.args.limit=300",
    "data.args.test_limit=150",
    *RELU_CUTS,
]


@cache
def exact_accuracy() -> float:
    return run(job(*LEARNING))[1][-1]


@pytest.mark.parametrize(
    "codec",
    ["accurate", "slow-link", "bf16", "int8", "qz(0.2)", "topk(0.3)", "topk(0.3, error-feedback)", "auto(slow-link)"],
)
def test_lossy_codecs_reach_about_what_an_exact_run_reaches(codec: str) -> None:
    _, (*_, ours), headers = run(job(*LEARNING, f"codec={codec}"))
    assert exact_accuracy() > 0.8
    assert ours > exact_accuracy() - 0.06
    assert all(header.codec in (0, 2) for header in headers if header.task.op in (Op.PART, Op.GLOBAL))


@pytest.mark.parametrize("codec", ["slow-link", "topk(0.3, error-feedback)"])
def test_with_a_fixed_codec_the_order_of_events_changes_nothing(codec: str) -> None:
    wanted = job(*TINY, *RELU_CUTS, "train.micro_batches=3", f"codec={codec}")
    one, other = (run(wanted, seed)[0] for seed in (1, 2))
    assert differing(global_state(one.members), global_state(other.members)) == []


@pytest.mark.parametrize("codec", ["lossless", "slow-link"])
def test_a_run_that_diverges_still_says_so(codec: str) -> None:
    with pytest.raises(TrainingError, match="the loss is nan"):
        run(job(*TINY, *RELU_CUTS, f"codec={codec}", "optimizer.lr.initial=1e30"))


def test_what_codecs_did_is_told_per_kind_of_link() -> None:
    ours = MemoryRun(job(*TINY, *RELU_CUTS, "codec=lossless"), seed=1)
    rounds: list[RoundEvent] = []
    ours.manager.board.listeners.append(lambda event: rounds.append(event) if isinstance(event, RoundEvent) else None)
    ours.run()
    # Parts and averages leave when the round's figures are told already; they count in the next one's.
    links = {name: link for name, link in rounds[0].links.items() if "aggregator" not in name}
    down = {"owner>node-0", "node-0>node-1", "node-1>owner"}
    assert set(links) == down | {"owner>node-1", "node-1>node-0", "node-0>owner"}
    assert all(0 < link.packed_bytes < link.raw_bytes for link in links.values())
    assert all(link.encode_s > 0 and link.decode_s > 0 for link in links.values())
    assert all(set(link.codecs) == {"huff"} for link in links.values())
    # A round's figures are those of that round alone: the same batches again, without the evaluation between.
    assert rounds[1].links["owner>node-1"].raw_bytes == links["owner>node-1"].raw_bytes
    assert rounds[1].links["owner>aggregator"].codecs == {"huff": 2}


def test_figures_never_fall_when_links_are_made_anew() -> None:
    """As after a role was lost: the packers are new, what they have sent still counts."""
    ours = MemoryRun(job(*TINY, *RELU_CUTS, "codec=lossless"), seed=1)
    ours.run()
    station = next(place.station for place in ours._places.values() if place.station.member.place == "node-0")
    before = station.traffic()
    station.disconnect()
    assert not station.packers
    after = station.traffic()
    assert set(after) == set(before)
    sent = [name for name in before if name.startswith("node-0>")]
    assert all(after[name].packed_bytes == before[name].packed_bytes > 0 for name in sent)

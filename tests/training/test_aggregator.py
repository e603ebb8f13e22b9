"""The aggregator folds what owners hand in as it comes: its memory does not depend on how many owners there are."""

from __future__ import annotations

import tracemalloc

import msgspec
import numpy as np
import pytest

from zmpsl.engine.build import summarise
from zmpsl.errors import RemoteProtocolError
from zmpsl.job import Job, Model
from zmpsl.messages import Publish
from zmpsl.plan import Peer, Plan, check_cuts, owner_name
from zmpsl.roles.actions import Send
from zmpsl.roles.aggregator import Aggregator
from zmpsl.state import ends_layout
from zmpsl.transport.task import Op, Task

# First and last part of 4 MB: what a round takes besides is nothing next to it.
WIDE = Job(model=Model(name="small_nets:tiny_mlp", args={"features": 1000, "width": 1000}), compute_nodes=1)


def published(owners: int) -> tuple[Aggregator, Plan]:
    """An aggregator that has heard of a plan with so many owners."""
    job = msgspec.structs.replace(WIDE, owners=owners)
    blocks = summarise(job.model)
    plan = Plan(
        version=1, run="run", job=job, blocks=blocks, bounds=check_cuts(job, len(blocks)),
        aggregator=Peer("aggregator", "tcp://a"), nodes=(Peer("node-0", "tcp://b"),),
        owners=tuple(Peer(owner_name(owner), "tcp://c") for owner in range(owners)),
    )  # fmt: skip
    role = Aggregator()
    list(role.hear(Publish(plan=plan)))
    return role, plan


def part_of(plan: Plan, owner: int) -> Task:
    """What an owner hands in: all its numbers are its own number."""
    layout = ends_layout(plan.blocks, plan.bounds, plan.job.optimizer)
    flat = np.full(layout.nbytes // 4, owner, np.float32).view(np.uint8)
    return Task(Op.PART, 1, owner, 0, count=1 + owner, tensor=flat)


def round_of(owners: int) -> tuple[int, np.ndarray]:
    """Bytes of the highest peak of a round over what was there before it, and its result."""
    role, plan = published(owners)
    tracemalloc.start()
    try:
        for owner in reversed(range(owners)):
            actions = list(role.handle(part_of(plan, owner)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sent = [action.task for action in actions if isinstance(action, Send)]
    assert [task.owner for task in sent] == list(range(owners))
    assert all(task.tensor is sent[0].tensor for task in sent), "one result, not a copy for each owner"
    return peak, sent[0].tensor.view(np.float32)  # type: ignore[union-attr]


def test_fifty_owners_take_the_memory_of_three():
    few, _ = round_of(3)
    many, result = round_of(50)
    size = result.nbytes
    assert many < few + size / 10, f"{few / size:.2f} states for 3 owners, {many / size:.2f} for 50"
    weights = np.arange(1, 51)
    mean = np.float32((weights * np.arange(50)).sum() / weights.sum())
    assert set(result.tolist()) == {mean, 0.0}  # zeros fill up between tensors
    assert (result == mean).sum() > 0.999 * result.size


def test_an_owner_is_folded_once():
    role, plan = published(3)
    list(role.handle(part_of(plan, 1)))
    with pytest.raises(RemoteProtocolError, match="handed in twice"):
        list(role.handle(part_of(plan, 1)))

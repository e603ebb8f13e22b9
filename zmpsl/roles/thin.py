"""Roles that compute nothing, for trials of scale: the protocol, the bytes and the time of real owners and nodes.

They hold no weights, no data and no activations; what they send are zeros of the right shapes. Nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from zmpsl.engine.batches import Batch, Tally
from zmpsl.engine.compute import ComputeEngine, to_tensor
from zmpsl.engine.owner import OwnerEngine
from zmpsl.engine.replica import Key
from zmpsl.errors import CheckpointError, JobError
from zmpsl.messages import Ready
from zmpsl.plan import Activation, Plan
from zmpsl.pool.account import part_memory
from zmpsl.pool.pool import ReplicaPool
from zmpsl.pool.spill import SpillStats
from zmpsl.roles.actions import Action, Connect, Say
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.owner import DataOwner
from zmpsl.state import Flat, Layout, ends_layout
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["ThinNode", "ThinOwner"]

NO_SAMPLES = np.zeros(0, np.uint8)


@cache
def zeros(dtype: str, *shape: int) -> Tensor:
    """Gives zeros, the same memory for all roles of this process; nobody writes to what is sent."""
    return torch.from_numpy(np.zeros(shape, dtype))


def entering(plan: Plan, part: int) -> Activation:
    """Gives what enters a part.

    Raises:
        JobError: The model's first owner could not tell.
    """
    form = plan.entering(part)
    if form is None:
        raise JobError(f"compute: none: nobody can tell what enters part {part} of {plan.job.model.name}")
    return form


class _Hollow:
    """In place of a part: no blocks, no weights."""

    layout = Layout((), 0)
    flat: Flat = NO_SAMPLES
    blocks = ()


class ThinEngine(ComputeEngine):
    """In place of a compute node's engine: forms and counts are checked as there, memory is accounted for as there."""

    def __init__(self, plan: Plan, part: int) -> None:
        self.plan, self.part, self.round = plan, part, plan.start_round
        self._owners = len(plan.active)
        memory = part_memory(plan.job, plan.blocks, plan.bounds, plan.footprints, part)
        self.pool = ReplicaPool(memory, None, self._owners, plan.nodes[part - 1].name)
        self.base = _Hollow()  # type: ignore[assignment]
        self._samples, self._closed, self.came = {}, set(), []
        self._forms = [entering(plan, each) for each in (part, part + 1)]

    def begin(self, round_: int) -> None:
        self.round = round_
        self._samples.clear()
        self._closed.clear()

    def has_room(self, task: Task) -> bool:
        return True

    @property
    def aside_stats(self) -> SpillStats:
        return SpillStats()

    def known_mask(self, task: Task) -> None:
        return None

    def expect_activation(self, task: Task) -> None:
        return None

    def expect_gradient(self, task: Task) -> None:
        return None

    def spoiled(self, owner: int) -> None:
        return None

    def update(self, owner: int) -> None:
        return None

    def forward(self, task: Task) -> Task:
        self._samples[task.owner] = self._samples.get(task.owner, 0) + len(to_tensor(task))
        return self._reply(task, Op.FORWARD, self._forms[1])

    def backward(self, task: Task) -> Task:
        return self._reply(task, Op.BACKWARD, self._forms[0])

    def close(self, task: Task) -> bool:
        self._closed.add(task.owner)
        return len(self._closed) == self._owners

    def commit(self) -> str:
        return f"nothing was trained in round {self.round}"

    def _reply(self, task: Task, op: Op, form: Activation) -> Task:
        return task.reply(op, zeros(form.dtype, len(to_tensor(task)), *form.shape).numpy())


class ThinNode(ComputeNode):
    """A compute node that computes nothing."""

    def _build(self, plan: Plan) -> ComputeEngine:
        return ThinEngine(plan, self.part)

    def _load(self, plan: Plan) -> None:
        raise CheckpointError(f"{self.place} computes nothing (compute: none), so the run cannot go on")


class ThinOwnerEngine(OwnerEngine):
    """In place of an owner's engine; all of a process share one state of zeros."""

    def __init__(self, plan: Plan, owner: int) -> None:
        self.owner = owner
        nbytes = ends_layout(plan.blocks, plan.bounds, plan.job.optimizer).nbytes
        self.base = zeros("uint8", nbytes).numpy()
        self._forms = [entering(plan, part) for part in (1, plan.parts - 1)]

    def begin(self, round_: int) -> None:
        return None

    def end(self, round_: int) -> None:
        return None

    @property
    def flat(self) -> Flat:
        return self.base

    def first_forward(self, inputs: Tensor, at: Key, samples: int) -> Tensor:
        return zeros(self._forms[0].dtype, len(inputs), *self._forms[0].shape)

    def first_mask(self, at: Key) -> None:
        return None

    def last_part(self, activations: Tensor, targets: Tensor, at: Key, samples: int) -> tuple[Tensor, float]:
        return zeros(self._forms[1].dtype, len(activations), *self._forms[1].shape), 0.0

    def last_update(self) -> None:
        return None

    def first_backward(self, gradient: Tensor, at: Key) -> None:
        return None

    def first_update(self) -> None:
        return None

    def load(self, flat: Flat) -> None:
        return None


class ThinOwner(DataOwner):
    """A data owner without data that computes nothing. Its class says how many batches it has."""

    def build(self, plan: Plan) -> Iterator[Action]:
        """Opens links to the chain's ends and the aggregator."""
        self.index = [peer.name for peer in plan.owners].index(self.place)
        self.hops = len(plan.nodes)
        kind = plan.job.emulate.owner(self.index)
        self._epochs, self._per_epoch = plan.job.train.local_epochs, 1 if kind is None else kind.batches
        self.engine = ThinOwnerEngine(plan, self.index)
        self._tally = Tally()
        ends = {peer.name: peer.endpoint for peer in (plan.nodes[0], plan.nodes[-1], plan.aggregator)}
        yield Connect(plan, OWNER_SENDER, ends)
        yield self._ready(plan)

    def _ready(self, plan: Plan) -> Action:
        batches = self._epochs * self._per_epoch
        return Say(Ready(plan=plan.version, samples=self._per_epoch * plan.job.train.batch_size, batches=batches))

    def _start_round(self, round_: int) -> None:
        self.round = round_
        self._tally = Tally()
        self._batches = self._empty_batches()
        self._batch = next(self._batches, None)

    def _empty_batches(self) -> Iterator[Batch]:
        train = self._plan().job.train
        pieces = torch.tensor_split(zeros("float32", train.batch_size), min(train.pieces, train.batch_size))
        for epoch in range(self._epochs):
            for number in range(self._per_epoch):
                yield Batch(epoch, number, pieces, pieces)

"""The compute node's engine: one part, one replica per owner in flight. Tasks in, tasks out; no socket, no clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from zmpsl.engine.footprint import probe
from zmpsl.engine.recompute import RecomputingReplica
from zmpsl.engine.replica import Part, Replica, aligned
from zmpsl.errors import LocalProtocolError, RemoteProtocolError
from zmpsl.norms import change_norm
from zmpsl.plan import Plan
from zmpsl.pool.account import part_memory
from zmpsl.pool.pool import ReplicaPool
from zmpsl.pool.spill import KeptStates
from zmpsl.state import Average, digest, not_finite
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.task import Op, Task

__all__ = ["ComputeEngine", "to_array", "to_tensor"]


def to_tensor(task: Task) -> Tensor:
    """Gives a task's payload as a tensor over the same memory.

    Raises:
        RemoteProtocolError: The task has none.
    """
    if task.tensor is None:
        raise RemoteProtocolError(f"{task}: no tensor")
    return torch.from_numpy(task.tensor)


def to_array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Gives a tensor's memory as a contiguous array; copies only where it is not contiguous."""
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = tensor.detach().contiguous().numpy()
    return array


class ComputeEngine:
    """Forward, backward, update and averaging of one part for all owners.

    Args:
        plan: The plan.
        part: Which part, 1 to P - 2.
        kept: Where owners' optimiser states are kept from round to round; None where they are not.

    Raises:
        JobError: The plan leaves this node too little memory for one replica; nothing has been built then.
    """

    def __init__(self, plan: Plan, part: int, kept: KeptStates | None = None) -> None:
        self.plan = plan
        self.part = part
        self._kept = kept
        self._owners = len(plan.active)
        self._kind = RecomputingReplica if plan.recompute and plan.recompute[part - 1] else Replica
        memory = part_memory(plan.job, plan.blocks, plan.bounds, plan.footprints, part)
        memory = replace(memory, recompute=self._kind is RecomputingReplica)
        self.pool: ReplicaPool[Replica] = ReplicaPool(
            memory, plan.rooms[part - 1] if plan.rooms else None, plan.in_flight or self._owners,
            plan.nodes[part - 1].name,
        )  # fmt: skip
        self.base = Part(plan, part)
        self.average = Average(self.base.layout)
        self.round = plan.start_round
        self._samples: dict[int, int] = {}
        self._closed: set[int] = set()
        self._largest = 0

    def begin(self, round_: int) -> None:
        """Starts a round from the base weights."""
        self.round = round_
        self.average.reset()
        self.pool.begin()
        self._samples.clear()
        self._closed.clear()

    def has_room(self, task: Task) -> bool:
        """Sets memory aside for the replica of a forward's owner, unless it has one; False while there is none left.

        Raises:
            JobError: The activations turn out so large that not one replica fits.
        """
        self._learn(task)
        return self.pool.admit(task.owner)

    def forward(self, task: Task) -> Task:
        """Runs one micro-batch forward through the owner's replica."""
        inputs = to_tensor(task)
        if not self.has_room(task):
            raise LocalProtocolError(f"{task}: handled although there is no room for a replica")
        replica = self.pool.get(task.owner, self._build)
        at = (task.round, task.epoch, task.batch, task.micro)
        output = replica.forward(inputs, at, relu=task.relu)
        self._samples[task.owner] = self._samples.get(task.owner, 0) + len(output)
        return task.reply(Op.FORWARD, to_array(output), replica.masks(at)[1])

    def backward(self, task: Task) -> Task:
        """Runs one micro-batch backward; the weights are not changed yet."""
        replica = self.pool.get(task.owner)
        at = (task.round, task.epoch, task.batch, task.micro)
        mask = replica.masks(at)[0]
        gradient = replica.backward(to_tensor(task), at)
        return task.reply(Op.BACKWARD, None if gradient is None else to_array(gradient), mask)

    def known_mask(self, task: Task) -> KnownMask | None:
        """Gives the mask of the output that a gradient belongs to, where that is a ReLU's and still saved."""
        try:
            replica = self.pool.get(task.owner)
        except RemoteProtocolError:
            return None
        return replica.masks((task.round, task.epoch, task.batch, task.micro))[1]

    def expect_gradient(self, task: Task) -> None:
        """Checks that a gradient is one that this part waits for.

        Raises:
            RemoteProtocolError: It is not.
        """
        wanted = self.pool.get(task.owner).output_of((task.round, task.epoch, task.batch, task.micro))
        if wanted is None or task.tensor is None or task.tensor.shape != wanted:
            raise RemoteProtocolError(f"{task}: no such gradient is wanted here (of that micro-batch: {wanted})")

    def spoiled(self, owner: int) -> str | None:
        """Gives the name of a tensor of the owner's replica that is not finite, None when all are."""
        replica = self.pool.get(owner)
        replica.own()
        return not_finite(self.base.layout, replica.flat)

    def moved(self, owner: int) -> float:
        """Gives the L2 norm of what an owner's round has changed in the parameters of this part."""
        replica = self.pool.get(owner)
        replica.own()
        return change_norm(self.base.layout, replica.flat, self.base.flat)

    def update(self, owner: int) -> None:
        """Steps the optimiser of an owner's replica; after the batch's last micro-batch."""
        self.pool.get(owner).update()

    def evaluate(self, task: Task) -> Task:
        """Runs a batch through the base weights, touching no training state."""
        return task.reply(Op.EVALUATE, to_array(self.base.evaluate(to_tensor(task))))

    def close(self, task: Task) -> bool:
        """Takes an owner's replica into the average and frees it; tells whether all owners are in.

        Raises:
            RemoteProtocolError: The owner counts other samples than passed through here.
        """
        samples = self._samples.get(task.owner, 0)
        replica = self.pool.get(task.owner)
        if replica.saved or samples != task.count:
            raise RemoteProtocolError(
                f"{task}: owner counts {task.count} samples, {samples} passed here, {replica.saved} unfinished"
            )
        replica.own()
        self.average.add(task.owner, replica.flat, task.count)
        if self._kept is not None:
            self._kept.store(task.owner, self.part, self.round, replica.kept())
        replica.rest()
        self.pool.fold(task.owner)
        self._closed.add(task.owner)
        return len(self._closed) == self._owners

    def commit(self) -> str:
        """Makes the average the new base; gives its digest."""
        self.average.write_to(self.base.flat)
        return digest(self.base.flat)

    def _build(self, owner: int, spare: Replica | None) -> Replica:
        replica = spare if spare is not None else self._kind(self.base, owner, aligned(self.base.layout.nbytes))
        replica.owner = owner
        replica.reset(self.round)
        if self._kept is not None:
            replica.go_on_from(self._kept.fetch(owner, self.part))
        return replica

    def _learn(self, task: Task) -> None:
        """Reckons what the largest micro-batch so far takes, before anything is built for it."""
        if task.nbytes <= self._largest or task.tensor is None:
            return
        self._largest = task.nbytes
        prints = probe(self.base.blocks, task.tensor.shape, to_tensor(task).dtype)
        if prints:
            self.pool.resize(self.pool.memory.with_activations(prints))

"""The compute node's engine: one part, one replica per data owner. Tasks in, tasks out; no socket, no clock."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zmpsl.engine.replica import Part, Replica, aligned
from zmpsl.errors import RemoteProtocolError
from zmpsl.plan import Plan
from zmpsl.state import Average, digest
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
    """

    def __init__(self, plan: Plan, part: int) -> None:
        self.plan = plan
        self.part = part
        self.base = Part(plan, part)
        self.average = Average(self.base.layout)
        self.round = plan.start_round
        self._replicas: dict[int, Replica] = {}
        self._spare: list[Replica] = []
        self._samples: dict[int, int] = {}
        self._closed: set[int] = set()

    def begin(self, round_: int) -> None:
        """Starts a round from the base weights."""
        self.round = round_
        self.average.reset()
        self._samples.clear()
        self._closed.clear()

    def forward(self, task: Task) -> Task:
        """Runs one micro-batch forward through the owner's replica."""
        replica = self._replica(task)
        at = (task.round, task.epoch, task.batch, task.micro)
        output = replica.forward(to_tensor(task), at, relu=task.relu)
        self._samples[task.owner] = self._samples.get(task.owner, 0) + len(output)
        return task.reply(Op.FORWARD, to_array(output), replica.masks(at)[1])

    def backward(self, task: Task) -> Task:
        """Runs one micro-batch backward; the weights are not changed yet."""
        replica = self._replicas.get(task.owner)
        if replica is None:
            raise RemoteProtocolError(f"{task}: owner {task.owner} has no replica here")
        at = (task.round, task.epoch, task.batch, task.micro)
        mask = replica.masks(at)[0]
        gradient = replica.backward(to_tensor(task), at)
        return task.reply(Op.BACKWARD, None if gradient is None else to_array(gradient), mask)

    def known_mask(self, task: Task) -> KnownMask | None:
        """Gives the mask of the output that a gradient belongs to, where that is a ReLU's and still saved."""
        replica = self._replicas.get(task.owner)
        return None if replica is None else replica.masks((task.round, task.epoch, task.batch, task.micro))[1]

    def update(self, owner: int) -> None:
        """Steps the optimiser of an owner's replica; after the batch's last micro-batch."""
        self._replicas[owner].update()

    def evaluate(self, task: Task) -> Task:
        """Runs a batch through the base weights, touching no training state."""
        return task.reply(Op.EVALUATE, to_array(self.base.evaluate(to_tensor(task))))

    def close(self, task: Task) -> bool:
        """Takes an owner's replica into the average and frees it; tells whether all owners are in.

        Raises:
            RemoteProtocolError: The owner counts other samples than passed through here.
        """
        replica, samples = self._replicas.pop(task.owner, None), self._samples.get(task.owner, 0)
        if replica is None or replica.saved or samples != task.count:
            raise RemoteProtocolError(
                f"{task}: owner counts {task.count} samples, {samples} passed here, {replica.saved if replica else 0}"
                " unfinished"
            )
        self.average.add(task.owner, replica.flat, task.count)
        self._spare.append(replica)
        self._closed.add(task.owner)
        return len(self._closed) == len(self.plan.owners)

    def commit(self) -> str:
        """Makes the average the new base; gives its digest."""
        self.average.write_to(self.base.flat)
        return digest(self.base.flat)

    def _replica(self, task: Task) -> Replica:
        replica = self._replicas.get(task.owner)
        if replica is None:
            if task.owner in self._closed:
                raise RemoteProtocolError(f"{task}: owner {task.owner} has closed this round")
            replica = (
                self._spare.pop() if self._spare else Replica(self.base, task.owner, aligned(self.base.layout.nbytes))
            )
            replica.owner = task.owner
            replica.reset(self.round)
            self._replicas[task.owner] = replica
        return replica

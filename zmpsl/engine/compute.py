"""The compute node's engine: one part, one replica per owner in flight. Tasks in, tasks out; no socket, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from zmpsl.engine.footprint import probe
from zmpsl.engine.node_replica import Absent, NodeReplica, Slots
from zmpsl.engine.recompute import RecomputingReplica
from zmpsl.engine.replica import Key, Part, aligned
from zmpsl.errors import CheckpointError, LocalProtocolError, RemoteProtocolError
from zmpsl.norms import change_norm
from zmpsl.plan import Plan
from zmpsl.pool.account import part_memory
from zmpsl.pool.aside import AsideFiles
from zmpsl.pool.pool import ReplicaPool, State
from zmpsl.pool.spill import KeptStates, SpillStats, Tensors
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


def _at(task: Task) -> Key:
    return task.round, task.epoch, task.batch, task.micro


class ComputeEngine:
    """Forward, backward, update and averaging of one part for all owners.

    Args:
        plan: The plan.
        part: Which part, 1 to P - 2.
        kept: Where owners' optimiser states are kept from round to round; None where they are not.
        files: Where replicas of owners that are set aside go; None where nobody can be.

    Attributes:
        came: Owners of which a task has come since they were set aside; taken from here by who tells the manager.

    Raises:
        JobError: The plan leaves this node too little memory for one replica; nothing has been built then.
    """

    def __init__(self, plan: Plan, part: int, kept: KeptStates | None = None, files: AsideFiles | None = None) -> None:
        self.plan = plan
        self.part = part
        self._kept = kept
        self._owners = len(plan.active)
        self._kind = RecomputingReplica if plan.recompute and plan.recompute[part - 1] else NodeReplica
        memory = part_memory(plan.job, plan.blocks, plan.bounds, plan.footprints, part)
        memory = replace(memory, recompute=self._kind is RecomputingReplica)
        self.pool: ReplicaPool[NodeReplica] = ReplicaPool(
            memory, plan.rooms[part - 1] if plan.rooms else None, plan.in_flight or self._owners,
            plan.nodes[part - 1].name,
        )  # fmt: skip
        self.base = Part(plan, part)
        self.base.repeats = plan.may_set_aside
        self.average = Average(self.base.layout)
        self.round = plan.start_round
        self._samples: dict[int, int] = {}
        self._last: dict[int, Key] = {}  # the last micro-batch of each owner that went forward
        self._closed: set[int] = set()
        self._largest = 0
        self._files = files if files is not None else AsideFiles(None, plan.nodes[part - 1].name)
        self._absent: dict[int, Absent] = {}
        self._reading: dict[int, tuple[Callable[[], None], Tensors]] = {}
        self.came: list[int] = []
        self._expected: set[int] = set()  # set aside, and no task has come
        self._written: Slots | None = None  # memory of the kept state that is being written

    def begin(self, round_: int) -> None:
        """Starts a round from the base weights."""
        self.round = round_
        self.average.reset()
        self.pool.begin()
        self._samples.clear()
        self._last.clear()
        self._closed.clear()
        self.came.clear()
        self._expected.clear()

    def has_room(self, task: Task) -> bool:
        """Reserves memory for the replica of a task's owner, unless it has one.

        Returns:
            False while there is none left, or the owner is set aside.

        Raises:
            JobError: The activations turn out so large that not one replica fits.
        """
        if self.pool.state(task.owner) is State.ASIDE:
            if task.owner in self._expected:
                self._expected.remove(task.owner)
                self.came.append(task.owner)
            return False
        if task.op is Op.FORWARD:
            self._learn(task)
        elif task.owner not in self._absent:
            return True
        admitted = self.pool.admit(task.owner)
        if self._kept is not None and self.pool.state(task.owner) is State.RESERVED:
            self.pool.get(task.owner, self._build)  # so its optimiser state is read while its first task waits
        return admitted

    def forward(self, task: Task) -> Task:
        """Runs one micro-batch forward through the owner's replica."""
        inputs = to_tensor(task)
        if not self.has_room(task):
            raise LocalProtocolError(f"{task}: handled although there is no room for a replica")
        replica, at = self._get(task.owner, self._build), _at(task)
        output = replica.forward(inputs, at, relu=task.relu)
        self._last[task.owner] = at
        self._samples[task.owner] = self._samples.get(task.owner, 0) + len(output)
        return task.reply(Op.FORWARD, to_array(output), replica.masks(at)[1])

    def backward(self, task: Task) -> Task:
        """Runs one micro-batch backward; the weights are not changed yet."""
        replica, at = self._get(task.owner), _at(task)
        mask = replica.masks(at)[0]
        gradient = replica.backward(to_tensor(task), at)
        return task.reply(Op.BACKWARD, None if gradient is None else to_array(gradient), mask)

    def known_mask(self, task: Task) -> KnownMask | None:
        """Gives the mask of the output that a gradient belongs to, where that is a ReLU's and still saved."""
        if task.owner in self._absent:
            unfinished = self._absent[task.owner].of(_at(task))
            return None if unfinished is None else unfinished.mask
        try:
            replica = self.pool.get(task.owner)
        except RemoteProtocolError:
            return None
        return replica.masks(_at(task))[1]

    def expect_activation(self, task: Task) -> None:
        """Checks that an activation is a new one: an owner's micro-batches go forward in order.

        Raises:
            RemoteProtocolError: It came twice, or late.
        """
        last = self._last.get(task.owner)
        if last is not None and _at(task) <= last:
            raise RemoteProtocolError(f"{task}: its owner's micro-batches have gone forward up to {last} here")

    def expect_gradient(self, task: Task) -> None:
        """Checks that a gradient is one that this part waits for.

        Raises:
            RemoteProtocolError: It is not.
        """
        if task.owner in self._absent:
            unfinished = self._absent[task.owner].of(_at(task))
            wanted = None if unfinished is None else unfinished.shape
        else:
            wanted = self.pool.get(task.owner).output_of(_at(task))
        if wanted is None or task.tensor is None or task.tensor.shape != wanted:
            raise RemoteProtocolError(f"{task}: no such gradient is wanted here (of that micro-batch: {wanted})")

    def spoiled(self, owner: int) -> str | None:
        """Gives the name of a tensor of the owner's replica that is not finite, None when all are."""
        replica = self._get(owner)
        replica.own()
        return not_finite(self.base.layout, replica.flat)

    def moved(self, owner: int) -> float:
        """Gives the L2 norm of what an owner's round has changed in the parameters of this part."""
        replica = self._get(owner)
        replica.own()
        return change_norm(self.base.layout, replica.flat, self.base.flat)

    def update(self, owner: int) -> None:
        """Steps the optimiser of an owner's replica; after the batch's last micro-batch."""
        self._get(owner).update()

    def evaluate(self, task: Task) -> Task:
        """Runs a batch through the base weights, touching no training state."""
        return task.reply(Op.EVALUATE, to_array(self.base.evaluate(to_tensor(task))))

    def close(self, task: Task) -> bool:
        """Takes an owner's replica into the average and frees it; tells whether all owners are in.

        Raises:
            RemoteProtocolError: The owner counts other samples than passed through here.
        """
        samples = self._samples.get(task.owner, 0)
        replica = self._get(task.owner)
        if replica.saved or samples != task.count:
            raise RemoteProtocolError(
                f"{task}: owner counts {task.count} samples, {samples} passed here, {replica.saved} unfinished"
            )
        replica.own()
        self.average.add(task.owner, replica.flat, task.count)
        if self._kept is not None:
            self._kept.store(task.owner, self.part, self.round, replica.kept())
            # The state before it is written by now, so its memory is free.
            self._written = replica.exchange(self._written)
        replica.rest()
        self.pool.fold(task.owner)
        self._closed.add(task.owner)
        return len(self._closed) == self._owners

    def set_aside(self, owner: int) -> bool:
        """Writes an owner's replica to disk and gives its place away; tells whether it had not been folded yet.

        Raises:
            CheckpointError: That cannot be; the replica stays where it is then.
        """
        state = self.pool.state(owner)
        if state in (State.FOLDED, State.ASIDE):  # a message may come twice
            return state is State.ASIDE
        if state is State.TRAINING:
            replica = self._get(owner)
            if replica.saved and not (self.base.repeats and self.base.lends):
                blocks = f"blocks {self.base.indices.start} to {self.base.indices.stop - 1}"
                raise CheckpointError(f"its batch is under way, and forward of {blocks} cannot be repeated")
            absent = replica.absent()
            self._files.write(owner, replica.arrays())
            self._absent[owner] = absent
            replica.rest()
        self.pool.set_aside(owner)
        self._expected.add(owner)
        return True

    def take_up(self, owner: int) -> None:
        """Lets an owner that was set aside come back; begins to read its replica if there is room already."""
        if self.pool.state(owner) is not State.ASIDE:
            return
        self._expected.discard(owner)
        self.pool.take_up(owner)
        if owner in self._absent and self.pool.admit(owner):
            self.pool.get(owner, self._build)

    @property
    def aside_stats(self) -> SpillStats:
        """What setting owners aside has cost so far."""
        return self._files.stats

    def commit(self) -> str:
        """Makes the average the new base; gives its digest."""
        self.average.write_to(self.base.flat)
        return digest(self.base.flat)

    def _get(self, owner: int, build: Callable[[int, NodeReplica | None], NodeReplica] | None = None) -> NodeReplica:
        """Gives an owner's replica, after it has been read back if it was set aside."""
        if owner not in self._absent:
            return self.pool.get(owner, build)
        replica = self.pool.get(owner, self._build)
        read, arrays = self._reading.pop(owner)
        read()
        replica.come_back(self._absent.pop(owner), arrays)
        return replica

    def _build(self, owner: int, spare: NodeReplica | None) -> NodeReplica:
        replica = spare if spare is not None else self._kind(self.base, owner, aligned(self.base.layout.nbytes))
        replica.owner = owner
        replica.reset(self.round)
        absent = self._absent.get(owner)
        if self._kept is not None and (absent is None or absent.awaits):
            replica.go_on_from(self._kept.fetch(owner, self.part, replica.kept_room()))
        if absent is not None:
            arrays = replica.room_for(absent)
            self._reading[owner] = self._files.read(owner, arrays), arrays
        return replica

    def _learn(self, task: Task) -> None:
        """Reckons what the largest micro-batch so far takes, before anything is built for it."""
        if task.nbytes <= self._largest or task.tensor is None:
            return
        self._largest = task.nbytes
        prints = probe(self.base.blocks, task.tensor.shape, to_tensor(task).dtype)
        if prints:
            self.pool.resize(self.pool.memory.with_activations(prints))

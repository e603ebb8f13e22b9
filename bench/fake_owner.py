"""Data owners that hold no model: they send tensors of the right shapes over real sockets, for bench/pool.py.

What a compute node sees is a data owner's protocol: activations, gradients, CLOSE. The numbers are small random
ones. Many owners fit one process, in one thread (`zmpsl.loops.crowd`); torch is not loaded.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import RemoteProtocolError
from zmpsl.loops.crowd import Crowd
from zmpsl.messages import Describe, Described, Evaluated, Ready, Trained
from zmpsl.plan import AGGREGATOR, Plan, node_name
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import Member
from zmpsl.state import ends_layout
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["Shape", "owners_process"]

# Hundreds of owners share two cores with what is measured. Each says how far it is, and looks after its connections, as
# seldom as if it were one of so many.
AMONG = 3000


class Shape(msgspec.Struct, frozen=True):
    """What a fake owner must know: the model's description, part 0's output for one batch, batches per round."""

    described: Described
    activations: tuple[int, ...]
    batches: int
    think_s: float


@cache
def noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Small random numbers, the same array for all owners of this process."""
    return np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(1e-3)


class FakeOwner(Member):
    """An owner without data and without a model. Args: `shape` says what it sends, `place` which owner it is."""

    role = "owner"

    def __init__(self, shape: Shape, place: str) -> None:
        super().__init__(None, place)
        self.shape = shape
        self._global = -1
        self._begin_at: int | None = None
        self._batch = -1  # under way; -1 for none
        self._fed = False

    def accepts(self, op: Op) -> int | None:
        if op is Op.FORWARD:
            return self.hops
        return {Op.BACKWARD: 1, Op.GLOBAL: 0}.get(op)

    def describe(self, message: Describe) -> Iterator[Action]:
        yield Say(self.shape.described)

    def build(self, plan: Plan) -> Iterator[Action]:
        self.index = [peer.name for peer in plan.owners].index(self.place)
        self.hops = len(plan.nodes)
        self.part = np.zeros(ends_layout(plan.blocks, plan.bounds, plan.job.optimizer).nbytes, np.uint8)
        ends = {peer.name: peer.endpoint for peer in (plan.nodes[0], plan.nodes[-1], plan.aggregator)}
        yield Connect(plan, OWNER_SENDER, ends)
        yield Say(Ready(plan=plan.version, samples=self.samples, batches=self.shape.batches))

    @property
    def samples(self) -> int:
        """Samples of one round."""
        return self.shape.batches * self.shape.activations[0]

    def begin(self, round_: int) -> Iterator[Action]:
        self._begin_at = round_
        self._start()
        yield from ()

    def wants_work(self) -> bool:
        return self._batch >= 0 and not self._fed

    def idle(self) -> Iterator[Action]:
        self._fed = True
        self.meter.spend(self.shape.think_s, 0.0)
        yield Send(node_name(0), self._task(Op.FORWARD, noise(self.shape.activations)))

    def handle(self, task: Task) -> Iterator[Action]:
        if task.op is Op.GLOBAL:
            self._global = task.round
            self._start()
        elif task.op is Op.FORWARD and task.tensor is not None:
            self.meter.spend(self.shape.think_s, 0.0)
            yield Send(node_name(self.hops - 1), self._task(Op.BACKWARD, noise(task.tensor.shape)))
        elif task.op is Op.BACKWARD:
            self._batch, self._fed = self._batch + 1, False
            if self._batch == self.shape.batches:
                yield from self._close()
        else:
            raise RemoteProtocolError(f"{task}: not for a fake owner")

    def evaluate(self, round_: int) -> Iterator[Action]:
        version = 0 if self.plan is None else self.plan.version
        yield Say(Evaluated(plan=version, round=round_, correct=0, total=0, samples=0, loss_sum=0.0))

    def _start(self) -> None:
        if self._begin_at is not None and self._global == self._begin_at - 1:
            self.round, self._begin_at, self._batch, self._fed = self._begin_at, None, 0, False

    def _close(self) -> Iterator[Action]:
        self._batch = -1
        version = 0 if self.plan is None else self.plan.version
        yield Send(node_name(0), Task(Op.CLOSE, version, self.index, self.round, count=self.samples))
        part = Task(Op.PART, version, self.index, self.round, count=self.samples, tensor=self.part)
        yield Send(AGGREGATOR, part)
        stats = self.meter.stats()
        yield Say(
            Trained(
                plan=version,
                round=self.round,
                batches=self.shape.batches,
                loss_sum=0.0,
                samples=self.samples,
                stats=stats,
            )
        )
        self.meter.restart()

    def _task(self, op: Op, tensor: NDArray[np.float32]) -> Task:
        version = 0 if self.plan is None else self.plan.version
        count = self.shape.activations[0]
        return Task(op, version, self.index, self.round, 0, self._batch, 0, 1, count, tensor=tensor)


def owners_process(shape: bytes, places: list[str], manager: str) -> None:
    """Runs several owners until the run is over."""
    known = msgspec.msgpack.decode(shape, type=Shape)
    Crowd([FakeOwner(known, place) for place in places], manager, AMONG).run()


def start_owners(shape: Shape, owners: int, processes: int, manager: str) -> list[multiprocessing.process.BaseProcess]:
    """Starts all owners, dealt out to a few processes."""
    context = multiprocessing.get_context("spawn")
    data = msgspec.msgpack.encode(shape)
    deals = [[f"owner-{index}" for index in range(first, owners, processes)] for first in range(processes)]
    started = []
    for places in filter(None, deals):
        process = context.Process(target=owners_process, args=(data, places, manager), daemon=True)
        process.start()
        started.append(process)
    return started

"""The data owner: keeps data, labels, the first and the last part of the model, and the loss.

One batch is under way at a time, cut into micro-batches that follow one another through the chain:

    part 0 forward -> chain -> part P-1 forward, loss, backward -> chain -> part 0 backward     for every micro-batch
    then one optimiser step of both parts, then the next batch

Labels and raw inputs stay in this file's objects: what is sent are outputs of part 0, gradients, and the two parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from zmpsl.data import OwnerData, load, owner_data
from zmpsl.errors import DataError, RemoteProtocolError
from zmpsl.messages import Describe, Described, Evaluated, Progress, Ready, Trained
from zmpsl.plan import AGGREGATOR, Plan, node_name
from zmpsl.randomness import generator
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import Member
from zmpsl.state import digest
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

if TYPE_CHECKING:
    from torch import Tensor

    from zmpsl.engine.owner import OwnerEngine

__all__ = ["DataOwner"]


@dataclass
class _Batch:
    """The batch under way: its micro-batches, and how far each of them is."""

    epoch: int
    number: int
    inputs: list[Tensor]
    targets: list[Tensor]
    samples: int
    sent: int = 0
    turned: int = 0  # came back from the chain and went in again as gradients
    done: int = 0

    @property
    def micros(self) -> int:
        return len(self.inputs)


@dataclass
class _Tally:
    """What the owner has trained in this round."""

    batches: int = 0
    samples: int = 0
    loss_sum: float = 0.0


@dataclass
class _Test:
    """Evaluation under way."""

    round: int
    batches: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]
    targets: dict[int, Tensor] = field(default_factory=dict)
    sent: int = 0
    correct: int = 0
    total: int = 0
    samples: int = 0
    loss_sum: float = 0.0


class DataOwner(Member):
    """Trains on its own data.

    Args:
        runs: As for every member.
        place: Place wanted, empty for any.
        data_dir: Folder of this owner's data, instead of the job's `data.dir`.
    """

    role = "owner"

    def __init__(self, runs: Path | None = None, place: str = "", data_dir: Path | None = None) -> None:
        super().__init__(runs, place)
        self.data_dir = data_dir
        self._batch: _Batch | None = None
        self._order: Iterator[tuple[int, int, Any]] | None = None
        self._tally = _Tally()
        self._test: _Test | None = None
        self._global = -1  # round whose average the base holds
        self._wanted: list[tuple[str, int]] = []  # rounds to begin or evaluate once their base is here

    def accepts(self, op: Op) -> int | None:
        """Activations come from the last node, gradients from the first, averages from the aggregator."""
        if op in (Op.FORWARD, Op.EVALUATE):
            return self.hops
        return {Op.BACKWARD: 1, Op.GLOBAL: 0}.get(op)

    def describe(self, message: Describe) -> Iterator[Action]:
        """Gives the block list of the job's model."""
        from zmpsl.engine.build import summarise

        yield Say(Described(blocks=summarise(message.job.model)))

    def build(self, plan: Plan) -> Iterator[Action]:
        """Loads the data, builds both parts, opens links to the chain's ends and the aggregator."""
        from zmpsl.engine.owner import OwnerEngine

        self.index = [peer.name for peer in plan.owners].index(self.place)
        self.hops = len(plan.nodes)
        self.check_model(plan)
        self.data: OwnerData = self._load_data(plan)
        self.engine: OwnerEngine = OwnerEngine(plan, self.index)
        self._batches = sum(
            len(self._epoch(plan, plan.start_round, epoch)) for epoch in range(plan.job.train.local_epochs)
        )
        ends = {peer.name: peer.endpoint for peer in (plan.nodes[0], plan.nodes[-1], plan.aggregator)}
        yield Connect(plan, OWNER_SENDER, ends)
        if plan.start_round == 0:
            self._global = -1
            yield self._ready(plan)

    def begin(self, round_: int) -> Iterator[Action]:
        """Trains a round as soon as its base weights are here."""
        yield from self._want("begin", round_)

    def evaluate(self, round_: int) -> Iterator[Action]:
        """Evaluates a round's model as soon as it is here."""
        yield from self._want("evaluate", round_)

    def handle(self, task: Task) -> Iterator[Action]:
        """Turns activations into gradients, and takes gradients, averages and evaluation results."""
        match task.op:
            case Op.FORWARD:
                yield from self._turn(task)
            case Op.BACKWARD:
                yield from self._finish_micro(task)
            case Op.EVALUATE:
                yield from self._score(task)
            case Op.GLOBAL:
                yield from self._take_global(task)
            case _:
                raise RemoteProtocolError(f"{task}: not for a data owner")

    def wants_work(self) -> bool:
        """True when a micro-batch or an evaluation batch may enter the chain."""
        test, batch = self._test, self._batch
        if test is not None and test.sent < len(test.batches) and len(test.targets) <= self.hops:
            return True
        return batch is not None and batch.sent < batch.micros and batch.sent - batch.done < self._window(batch)

    def idle(self) -> Iterator[Action]:
        """Feeds the chain."""
        if self._test is not None:
            yield from self._feed_test(self._test)
        elif self._batch is not None:
            yield from self._feed(self._batch)

    def progress(self) -> Progress:
        """Tells batches and loss so far."""
        tally = self._tally
        return Progress(
            round=self.round,
            batches=tally.batches,
            loss_sum=tally.loss_sum,
            samples=tally.samples,
            stats=self.meter.stats(),
        )

    # -- training -----------------------------------------------------------------------------------------------------

    def _window(self, batch: _Batch) -> int:
        """Micro-batches that may be under way: all of them (GPipe), or as many as there are parts (1F1B)."""
        plan = self._plan()
        return batch.micros if plan.job.train.schedule == "gpipe" else plan.parts

    def _epoch(self, plan: Plan, round_: int, epoch: int) -> list[Any]:
        train = plan.job.train
        return self.data.batches(
            plan.job.seed, self.index, round_, epoch, train.batch_size, train.drop_last, train.max_batches
        )

    def _start_round(self, round_: int) -> None:
        plan = self._plan()
        self.round = round_
        self.engine.begin(round_)
        self._tally = _Tally()
        self._order = (
            (epoch, number, indices)
            for epoch in range(plan.job.train.local_epochs)
            for number, indices in enumerate(self._epoch(plan, round_, epoch))
        )
        self._next_batch()

    def _next_batch(self) -> None:
        import torch

        plan = self._plan()
        epoch, number, indices = (
            next(self._order, (None, None, None)) if self._order is not None else (None, None, None)
        )
        if epoch is None or number is None:
            return
        rng = (
            generator(plan.job.seed, "augment", self.index, self.round, epoch, number)
            if plan.job.data.augment != "none"
            else None
        )
        inputs, targets = self.data.train.batch(indices, rng)
        # Sizes as numpy.array_split deals them: the first micro-batches take the rest.
        pieces = min(plan.job.train.micro_batches, len(indices))
        split = [list(torch.tensor_split(torch.from_numpy(array), pieces)) for array in (inputs, targets)]
        self._batch = _Batch(epoch, number, split[0], split[1], len(indices))

    def _feed(self, batch: _Batch) -> Iterator[Action]:
        from zmpsl.engine.compute import to_array

        micro = batch.sent
        batch.sent += 1
        task = Task(
            Op.FORWARD,
            self._plan().version,
            self.index,
            self.round,
            batch.epoch,
            batch.number,
            micro,
            batch.micros,
            batch.samples,
        )
        with self.meter.measure("F", task):
            output = self.engine.first_forward(batch.inputs[micro], (self.round, batch.epoch, batch.number, micro))
        yield Send(node_name(0), task.reply(Op.FORWARD, to_array(output)))

    def _turn(self, task: Task) -> Iterator[Action]:
        from zmpsl.engine.compute import to_array, to_tensor

        batch = self._current(task)
        if task.micro != batch.turned:
            raise RemoteProtocolError(f"{task}: micro-batch {batch.turned} of owner {self.index} must come first")
        with self.meter.measure("L", task):
            gradient, loss = self.engine.last_part(
                to_tensor(task),
                batch.targets[task.micro],
                (task.round, task.epoch, task.batch, task.micro),
                batch.samples,
            )
        batch.turned += 1
        self._tally.loss_sum += loss * batch.samples
        yield Send(node_name(self.hops - 1), task.reply(Op.BACKWARD, to_array(gradient)))
        if batch.turned == batch.micros:
            with self.meter.measure("U", task):
                self.engine.last_update()

    def _finish_micro(self, task: Task) -> Iterator[Action]:
        from zmpsl.engine.compute import to_tensor

        batch = self._current(task)
        if task.micro != batch.done:
            raise RemoteProtocolError(f"{task}: micro-batch {batch.done} of owner {self.index} must come first")
        with self.meter.measure("B", task):
            self.engine.first_backward(to_tensor(task), (task.round, task.epoch, task.batch, task.micro))
        batch.done += 1
        if batch.done < batch.micros:
            return
        with self.meter.measure("U", task):
            self.engine.first_update()
        self._tally.batches += 1
        self._tally.samples += batch.samples
        self._batch = None
        self._next_batch()
        if self._batch is None:
            yield from self._close_round()

    def _current(self, task: Task) -> _Batch:
        batch = self._batch
        if batch is None or (task.epoch, task.batch, task.micros) != (batch.epoch, batch.number, batch.micros):
            raise RemoteProtocolError(f"{task}: owner {self.index} has no such batch under way")
        return batch

    def _close_round(self) -> Iterator[Action]:
        plan, tally = self._plan(), self._tally
        self._order = None
        close = Task(Op.CLOSE, plan.version, self.index, self.round, count=tally.samples)
        yield Send(node_name(0), close)
        # The state is not touched before the average of it comes back.
        yield Send(
            AGGREGATOR,
            Task(Op.PART, plan.version, self.index, self.round, count=tally.samples, tensor=self.engine.flat),
        )
        yield Say(
            Trained(
                round=self.round,
                batches=tally.batches,
                loss_sum=tally.loss_sum,
                samples=tally.samples,
                stats=self.meter.stats(),
            )
        )
        self.meter.restart()

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _take_global(self, task: Task) -> Iterator[Action]:
        plan = self._plan()
        if task.tensor is None or task.tensor.shape != self.engine.base.shape or task.tensor.dtype != np.uint8:
            raise RemoteProtocolError(f"{task}: an average has {self.engine.base.nbytes} bytes")
        self.engine.load(task.tensor.view(np.uint8))
        resumed = self._global < 0 and task.round == plan.start_round - 1
        self._global = task.round
        if resumed:
            if digest(self.engine.base) != plan.digests[AGGREGATOR]:
                raise RemoteProtocolError(f"{task}: not the average that the record of round {task.round} names")
            yield self._ready(plan)
        wanted, self._wanted = self._wanted, []
        for what, round_ in wanted:
            yield from self._want(what, round_)

    def _want(self, what: str, round_: int) -> Iterator[Action]:
        needed = round_ - 1 if what == "begin" else round_
        if self._global != needed:
            self._wanted.append((what, round_))
        elif what == "begin":
            self._start_round(round_)
        else:
            size = self._plan().job.evaluate.batch_size
            order = np.arange(len(self.data.test))
            self._test = _Test(round_, [order[start : start + size] for start in range(0, len(order), size)])
            if not self._test.batches:
                yield from self._end_test(self._test)

    def _ready(self, plan: Plan) -> Action:
        return Say(Ready(plan=plan.version, samples=len(self.data.train), batches=self._batches))

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _feed_test(self, test: _Test) -> Iterator[Action]:
        import torch

        from zmpsl.engine.compute import to_array

        number = test.sent
        test.sent += 1
        inputs, targets = self.data.test.batch(test.batches[number])
        test.targets[number] = torch.from_numpy(targets)
        task = Task(Op.EVALUATE, self._plan().version, self.index, test.round, batch=number)
        with self.meter.measure("E", task):
            output = self.engine.evaluate_first(torch.from_numpy(inputs))
        yield Send(node_name(0), task.reply(Op.EVALUATE, to_array(output)))

    def _score(self, task: Task) -> Iterator[Action]:
        from zmpsl.engine.compute import to_tensor

        test = self._test
        if test is None or task.round != test.round or task.batch not in test.targets:
            raise RemoteProtocolError(f"{task}: owner {self.index} waits for no such evaluation")
        targets = test.targets.pop(task.batch)
        with self.meter.measure("E", task):
            correct, total, loss = self.engine.evaluate_last(to_tensor(task), targets)
        test.correct += correct
        test.total += total
        test.samples += len(targets)
        test.loss_sum += loss
        if test.sent == len(test.batches) and not test.targets:
            yield from self._end_test(test)

    def _end_test(self, test: _Test) -> Iterator[Action]:
        self._test = None
        yield Say(
            Evaluated(
                round=test.round, correct=test.correct, total=test.total, samples=test.samples, loss_sum=test.loss_sum
            )
        )

    # -- shared -------------------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        if self.plan is None:
            raise RemoteProtocolError(f"{self.place} has no plan yet")
        return self.plan

    def _load_data(self, plan: Plan) -> OwnerData:
        job = plan.job
        data = job.data if self.data_dir is None else msgspec.structs.replace(job.data, dir=str(self.data_dir))
        mine = owner_data(load(data, job.seed), data, job.evaluate, len(plan.owners), self.index, job.seed)
        if len(mine.train) < job.train.batch_size:
            raise DataError(
                f"owner {self.index} has {len(mine.train)} training samples, fewer than one batch of {job.train.batch_size} (train.batch_size); "
                f"use a smaller batch, fewer owners or another data.partition"
            )
        return mine

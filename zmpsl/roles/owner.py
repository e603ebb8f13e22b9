"""The data owner: keeps data, labels, the first and the last part of the model, and the loss.

One batch is under way at a time, cut into micro-batches that follow one another through the chain:

    part 0 forward -> chain -> part P-1 forward, loss, backward -> chain -> part 0 backward     for every micro-batch
    then one optimiser step of both parts, then the next batch

Labels and raw inputs stay in this file's objects: what is sent are outputs of part 0, gradients, and the two parts.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from zmpsl.engine.batches import Batch, Evaluation, Tally, count_batches, training_batches
from zmpsl.engine.build import check_model, summarise, trace
from zmpsl.engine.compute import to_array, to_tensor
from zmpsl.engine.footprint import model_footprints
from zmpsl.engine.owner import OwnerEngine, SharedEnds
from zmpsl.errors import RemoteProtocolError
from zmpsl.masking import Masker
from zmpsl.messages import Describe, Described, Evaluated, MaskKeys, Measure, Progress, Ready, Trained
from zmpsl.plan import AGGREGATOR, Activation, Plan, held_by_nodes, micro_samples, node_name
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import Member
from zmpsl.roles.own_data import OwnData
from zmpsl.roles.profiling import profiled
from zmpsl.state import digest
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["DataOwner"]


class DataOwner(Member):
    """Trains on its own data.

    Args:
        runs: As for every member.
        place: Place wanted, empty for any.
        data_dir: Folder of this owner's data, instead of the job's `data.dir`.
    """

    role = "owner"
    shared: SharedEnds | None = None  # where the owners of this process have the base of their parts, if one for all

    def __init__(self, runs: Path | None = None, place: str = "", data_dir: Path | None = None) -> None:
        super().__init__(runs, place)
        self._own = OwnData(data_dir)
        self._secret = secrets.token_bytes(32)  # never leaves this process; noise on smashed data follows from it
        self._batch: Batch | None = None
        self._batches: Iterator[Batch] = iter(())
        self._evaluation: Evaluation | None = None
        self._masker: Masker | None = None
        self._handed_in = 0, -1  # plan and round for which the parts last left
        self._global = -1  # round whose average the base holds
        self._wanted: list[tuple[str, int]] = []  # rounds to begin or evaluate once their base is here

    def accepts(self, op: Op) -> int | None:
        """Activations come from the last node, gradients from the first, averages from the aggregator."""
        if op in (Op.FORWARD, Op.EVALUATE):
            return self.hops
        return {Op.BACKWARD: 1, Op.GLOBAL: 0}.get(op)

    def describe(self, message: Describe) -> Iterator[Action]:
        """Gives the block list of the job's model, what each block puts out, and what a micro-batch takes."""
        job = message.job
        train = self._own.whole(job, self.place).train
        sample = torch.from_numpy(train.batch(np.arange(2) % len(train))[0])
        size = micro_samples(job)
        yield Say(
            Described(
                blocks=summarise(job.model),
                outputs=trace(job.model, sample),
                footprints=model_footprints(job.model, (size, *sample.shape[1:]), sample.dtype),
            )
        )

    def expected(self, op: Op) -> Activation | None:
        """Activations enter the last part, gradients are of what the first part puts out."""
        plan = self._plan()
        return plan.entering(1) if op is Op.BACKWARD else plan.entering(plan.parts - 1)

    def inspect(self, task: Task) -> None:
        """As every member; and there must be that many samples in the batch it is of."""
        super().inspect(task)
        if task.op is Op.EVALUATE:
            targets = self._evaluation.targets.get(task.batch) if self._evaluation is not None else None
        elif task.op in (Op.FORWARD, Op.BACKWARD):
            targets = self._current(task).targets[task.micro]
        else:
            return
        samples = 0 if targets is None else len(targets)
        if task.tensor is None or len(task.tensor) != samples:
            raise RemoteProtocolError(f"{task}: owner {self.index} has {samples} samples in that batch")

    def measure(self, message: Measure) -> Iterator[Action]:
        """Profiles the first and the last part on data of its own; the data are kept for `build`."""
        job, index = message.job, int(self.place.rpartition("-")[2])
        if self.own_process:
            torch.set_num_threads(job.threads)
        self.data = self._own.share(job, index, self.place)
        blocks = summarise(job.model)
        middle = held_by_nodes(job, len(blocks))
        inputs, _ = self.data.train.batch(np.arange(micro_samples(job)))
        ends = [number for number in range(len(blocks)) if number not in middle]
        # It rests between its tasks, for its batch to come back.
        yield Say(profiled(job, blocks, ends, torch.from_numpy(inputs), True, self.runs))

    def build(self, plan: Plan) -> Iterator[Action]:
        """Loads the data, builds both parts, opens links to the chain's ends and the aggregator."""
        self.index = [peer.name for peer in plan.owners].index(self.place)
        self.hops = len(plan.nodes)
        if self.own_process:
            torch.set_num_threads(plan.job.threads)
        check_model(plan, self.place)
        self.data = self._own.share(plan.job, self.index, self.place)
        kept = self.keep_states(plan, [self.index], [0, plan.parts - 1])
        self.engine = OwnerEngine(plan, self.index, self._secret, kept, self.shared)
        self._masker = Masker(plan, self.index) if plan.job.privacy.secure_average else None
        self._tally = Tally()
        ends = {peer.name: peer.endpoint for peer in (plan.nodes[0], plan.nodes[-1], plan.aggregator)}
        yield Connect(plan, OWNER_SENDER, ends)
        if plan.start_round == 0:  # else once the stored average is here
            yield self._ready(plan)

    def agree(self, message: MaskKeys) -> None:
        """Takes the other owners' keys, for the masks."""
        if self._masker is not None:
            self._masker.agree(message.keys)

    def handed_in(self, version: int) -> int:
        """Tells the last round for which the parts have left under that plan."""
        return self._handed_in[1] if self._handed_in[0] == version else -1

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
        test, batch = self._evaluation, self._batch
        if test is not None:
            return test.sent < len(test.batches) and len(test.targets) <= self.hops
        return batch is not None and batch.sent < batch.micros and batch.sent - batch.done < self._window(batch)

    def idle(self) -> Iterator[Action]:
        """Feeds the chain."""
        if self._evaluation is not None:
            yield from self._feed_evaluation(self._evaluation)
        elif self._batch is not None:
            yield from self._feed(self._batch)

    def pause(self) -> None:
        """Forgets the batch, evaluation and average under way."""
        self._batch = self._evaluation = None
        self._global = -1
        self._wanted.clear()

    def progress(self, plan: Plan) -> Progress:
        """Tells batches and loss so far."""
        done, stats = self._tally, self.meter.stats()
        return Progress(
            plan=plan.version,
            round=self.round,
            batches=done.batches,
            loss_sum=done.loss_sum,
            samples=done.samples,
            stats=stats,
        )

    def committed(self, round_: int) -> None:
        """Drops optimiser states nobody needs any more."""
        if self._kept is not None:
            self._kept.prune(round_)

    def known_mask(self, task: Task) -> KnownMask | None:
        """Gives the mask of part 0's output."""
        return self.engine.first_mask((task.round, task.epoch, task.batch, task.micro))

    # -- training -----------------------------------------------------------------------------------------------------

    def _window(self, batch: Batch) -> int:
        """Micro-batches that may be under way: all of them (GPipe), or as many as there are parts (1F1B)."""
        plan = self._plan()
        return batch.micros if plan.job.train.schedule == "gpipe" else plan.parts

    def _start_round(self, round_: int) -> None:
        self.round = round_
        self.engine.begin(round_)
        self._tally = Tally()
        self._batches = training_batches(self.data, self._plan().job, self.index, round_)
        self._batch = next(self._batches, None)

    def _feed(self, batch: Batch) -> Iterator[Action]:
        at = (self.round, batch.epoch, batch.number, batch.sent)
        task = Task(Op.FORWARD, self._plan().version, self.index, *at, batch.micros, batch.samples)
        batch.sent += 1
        with self.meter.measure("F", task):
            output = self.engine.first_forward(batch.inputs[task.micro], at, batch.samples)
        yield Send(node_name(0), task.reply(Op.FORWARD, to_array(output), self.engine.first_mask(at)))

    def _turn(self, task: Task) -> Iterator[Action]:
        batch = self._current(task)
        if task.micro != batch.turned:
            raise RemoteProtocolError(f"{task}: micro-batch {batch.turned} of owner {self.index} must come first")
        at = (task.round, task.epoch, task.batch, task.micro)
        with self.meter.measure("L", task):
            gradient, loss = self.engine.last_part(to_tensor(task), batch.targets[task.micro], at, batch.samples)
        batch.turned += 1
        self._tally.loss_sum += loss * batch.samples
        mask = KnownMask(task.tensor) if task.relu and task.tensor is not None else None
        yield Send(node_name(self.hops - 1), task.reply(Op.BACKWARD, to_array(gradient), mask))
        if batch.turned == batch.micros:
            with self.meter.measure("U", task):
                self.engine.last_update()

    def _finish_micro(self, task: Task) -> Iterator[Action]:
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
        self._batch = next(self._batches, None)
        if self._batch is None:
            yield from self._close_round()

    def _current(self, task: Task) -> Batch:
        batch = self._batch
        if batch is None or (task.epoch, task.batch, task.micros) != (batch.epoch, batch.number, batch.micros):
            raise RemoteProtocolError(f"{task}: owner {self.index} has no such batch under way")
        return batch

    def _close_round(self) -> Iterator[Action]:
        version, done = self._plan().version, self._tally
        flat, masker = self.engine.flat, self._masker
        parts = flat if masker is None else masker.mask(flat, done.samples, self.round)
        self._handed_in = version, self.round
        yield Send(node_name(0), Task(Op.CLOSE, version, self.index, self.round, count=done.samples))
        # The state is not touched before the average of it comes back, so it may travel from where it lies.
        part = Task(Op.PART, version, self.index, self.round, count=done.samples, tensor=parts)
        yield Send(AGGREGATOR, part)
        self.engine.end(self.round)
        yield Say(
            Trained(
                plan=version,
                round=self.round,
                batches=done.batches,
                loss_sum=done.loss_sum,
                samples=done.samples,
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
            # Under other cuts than before the state is another selection; the aggregator has checked what it read.
            if not plan.stored and digest(self.engine.base) != plan.digests[AGGREGATOR]:
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
            yield from self._start_evaluation(round_)

    def _ready(self, plan: Plan) -> Action:
        batches = count_batches(self.data, plan.job, self.index)
        key = b"" if self._masker is None else self._masker.public
        return Say(Ready(plan=plan.version, samples=len(self.data.train), batches=batches, key=key))

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _start_evaluation(self, round_: int) -> Iterator[Action]:
        size = self._plan().job.evaluate.batch_size
        order = np.arange(len(self.data.test))
        test = Evaluation(round_, [order[start : start + size] for start in range(0, len(order), size)])
        self._evaluation = test
        if test.over:
            yield from self._end_evaluation(test)

    def _feed_evaluation(self, test: Evaluation) -> Iterator[Action]:
        number = test.sent
        test.sent += 1
        inputs, targets = (torch.from_numpy(array) for array in self.data.test.batch(test.batches[number]))
        test.targets[number] = targets
        task = Task(Op.EVALUATE, self._plan().version, self.index, test.round, batch=number)
        with self.meter.measure("E", task):
            output = self.engine.evaluate_first(inputs, test.round, number)
        yield Send(node_name(0), task.reply(Op.EVALUATE, to_array(output)))

    def _score(self, task: Task) -> Iterator[Action]:
        test = self._evaluation
        if test is None or task.round != test.round or task.batch not in test.targets:
            raise RemoteProtocolError(f"{task}: owner {self.index} waits for no such evaluation")
        targets = test.targets.pop(task.batch)
        with self.meter.measure("E", task):
            correct, total, loss = self.engine.evaluate_last(to_tensor(task), targets)
        test.correct += correct
        test.total += total
        test.samples += len(targets)
        test.loss_sum += loss
        if test.over:
            yield from self._end_evaluation(test)

    def _end_evaluation(self, test: Evaluation) -> Iterator[Action]:
        self._evaluation = None
        yield Say(
            Evaluated(
                plan=self._plan().version,
                round=test.round,
                correct=test.correct,
                total=test.total,
                samples=test.samples,
                loss_sum=test.loss_sum,
            )
        )

    # -- shared -------------------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        if self.plan is None:
            raise RemoteProtocolError(f"{self.place} has no plan yet")
        return self.plan

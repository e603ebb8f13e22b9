"""The compute node: one part of the model, one replica per data owner, averaging over its own replicas."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from zmpsl.checkpoint import load_parts, prune, save_parts
from zmpsl.engine.build import check_model
from zmpsl.engine.compute import ComputeEngine
from zmpsl.errors import RemoteProtocolError
from zmpsl.messages import Prepared, Ready
from zmpsl.plan import Plan, node_name, owner_name
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import Member
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["ComputeNode"]


class ComputeNode(Member):
    """One hop of the chain."""

    role = "compute"

    def accepts(self, op: Op) -> int | None:
        """Forward, evaluate and close come from upstream, backward from downstream."""
        if op in (Op.FORWARD, Op.EVALUATE, Op.CLOSE):
            return OWNER_SENDER if self.hop == 0 else self.hop
        if op is Op.BACKWARD:
            return OWNER_SENDER if self.hop == self.hops - 1 else self.hop + 2
        return None

    def build(self, plan: Plan) -> Iterator[Action]:
        """Builds the part, loads its checkpoint where a run goes on, opens links to the neighbours."""
        self.hop = [peer.name for peer in plan.nodes].index(self.place)
        self.hops = len(plan.nodes)
        self.part = self.hop + 1
        if self.own_process:
            torch.set_num_threads(plan.job.threads)
        check_model(plan, self.place)
        self.engine = ComputeEngine(plan, self.part)
        if plan.start_round:
            self._load(plan)
        self.engine.begin(plan.start_round)
        names = {peer.name: peer.endpoint for peer in (*plan.nodes, *plan.owners)}
        ends = [peer.name for peer in plan.owners]
        neighbours = (ends if self.hop == 0 else [node_name(self.hop - 1)]) + (
            ends if self.hop == self.hops - 1 else [node_name(self.hop + 1)]
        )
        yield Connect(plan, 1 + self.hop, {name: names[name] for name in dict.fromkeys(neighbours)})
        yield Say(Ready(plan=plan.version))

    def handle(self, task: Task) -> Iterator[Action]:
        """Forward, backward, update, evaluate, close."""
        match task.op:
            case Op.FORWARD:
                with self.meter.measure("F", task):
                    output = self.engine.forward(task)
                yield Send(self._down(task), output)
            case Op.BACKWARD:
                with self.meter.measure("B", task):
                    gradient = self.engine.backward(task)
                yield Send(self._up(task), gradient)
                # The gradient has left; the node upstream works while we update.
                if task.micro + 1 == task.micros:
                    with self.meter.measure("U", task):
                        self.engine.update(task.owner)
            case Op.EVALUATE:
                with self.meter.measure("E", task):
                    output = self.engine.evaluate(task)
                yield Send(self._down(task), output)
            case Op.CLOSE:
                yield from self._close(task)
            case _:
                raise RemoteProtocolError(f"{task}: not for a compute node")

    def known_mask(self, task: Task) -> KnownMask | None:
        """Gives the mask of our part's output."""
        return self.engine.known_mask(task)

    def committed(self, round_: int) -> None:
        """Drops checkpoints nobody needs any more."""
        if self.folder is not None and self.plan is not None:
            prune(self.folder, round_, self.plan.job.keep_checkpoints)

    def _down(self, task: Task) -> str:
        return owner_name(task.owner) if self.hop == self.hops - 1 else node_name(self.hop + 1)

    def _up(self, task: Task) -> str:
        return owner_name(task.owner) if self.hop == 0 else node_name(self.hop - 1)

    def _close(self, task: Task) -> Iterator[Action]:
        if self.hop < self.hops - 1:
            yield Send(node_name(self.hop + 1), task.reply(Op.CLOSE, None))
        with self.meter.measure("A", task):
            complete = self.engine.close(task)
        if not complete:
            return
        with self.meter.measure("A", task):
            digest = self.engine.commit()
            if self.folder is not None and self.plan is not None:
                save_parts(
                    self.folder, self.plan, self.round, [self.part], self.engine.base.layout, self.engine.base.flat
                )
        yield Say(Prepared(round=self.round, digests={self.place: digest}, stats=self.meter.stats()))
        # An owner may hear of the next round, and send, before we hear of it: be ready at once.
        self.meter.restart()
        self.round += 1
        self.engine.begin(self.round)

    def _load(self, plan: Plan) -> None:
        if self.folder is None:
            raise RemoteProtocolError("a run that goes on needs a folder with its checkpoints")
        base = self.engine.base
        load_parts(
            self.folder, plan, plan.start_round - 1, [self.part], base.layout, base.flat, plan.digests[self.place]
        )

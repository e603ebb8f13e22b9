"""The compute node: one part of the model, one replica per data owner, averaging over its own replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from zmpsl.checkpoint import load_state, prune, save_parts
from zmpsl.engine.build import check_model, summarise
from zmpsl.engine.compute import ComputeEngine
from zmpsl.engine.profile import inputs_like
from zmpsl.errors import CheckpointError, RemoteProtocolError
from zmpsl.messages import Accuse, Aside, Measure, Prepared, Ready, SetAside, TakeUp
from zmpsl.norms import tensor_norm, too_large
from zmpsl.plan import Activation, Plan, held_by_nodes, micro_samples, node_name, owner_name
from zmpsl.pool.aside import AsideFiles
from zmpsl.pool.budget import OVERHEAD_BYTES, Limits, Watch, limits_here
from zmpsl.pool.ceiling import cap_private, private_bytes
from zmpsl.pool.spill import SpillStats
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import NOT_FINITE, Member
from zmpsl.roles.profiling import profiled
from zmpsl.transport.allocator import give_back_freed_memory
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["ComputeNode"]


class ComputeNode(Member):
    """One hop of the chain."""

    role = "compute"
    _limits: Limits | None = None
    _private = 0  # private memory that we had when they were looked up
    _more_room = False

    def limits(self) -> Limits:
        """Tells what host and cgroup allow, and what we took before we held any part: once measured, it stays so."""
        if self._limits is None:
            self._limits, self._private = limits_here(self.memory), private_bytes()
        return self._limits

    def has_room(self, task: Task) -> bool:
        """False for an owner that must wait until another one has closed, or that is set aside."""
        return task.op is Op.EVALUATE or self.engine.has_room(task)

    def more_room(self) -> bool:
        """True once after an owner was set aside or may come back."""
        more, self._more_room = self._more_room, False
        return more

    def set_aside(self) -> SpillStats:
        """Tells what setting owners aside has cost."""
        return self.engine.aside_stats if hasattr(self, "engine") else SpillStats()

    def accepts(self, op: Op) -> int | None:
        """Forward, evaluate and close come from upstream, backward from downstream."""
        if op in (Op.FORWARD, Op.EVALUATE, Op.CLOSE):
            return OWNER_SENDER if self.hop == 0 else self.hop
        if op is Op.BACKWARD:
            return OWNER_SENDER if self.hop == self.hops - 1 else self.hop + 2
        return None

    def expected(self, op: Op) -> Activation | None:
        """Activations of the part before, gradients of what our part puts out."""
        return self.plan.entering(self.part + (op is Op.BACKWARD)) if self.plan is not None else None

    def admit(self, task: Task) -> None:
        """As every member; an activation must also be new."""
        super().admit(task)
        if task.op is Op.FORWARD:
            self.engine.expect_activation(task)

    def inspect(self, task: Task) -> None:
        """As every member; a gradient must also be one that we wait for."""
        super().inspect(task)
        if task.op is Op.BACKWARD:
            self.engine.expect_gradient(task)

    def measure(self, message: Measure) -> Iterator[Action]:
        """Profiles the blocks between the first and the last cut."""
        job, shape, dtype = message.job, message.input_shape, message.input_dtype
        if self.own_process:
            torch.set_num_threads(job.threads)
        blocks = summarise(job.model)
        inputs = inputs_like(shape, dtype, micro_samples(job))
        slowed = any(name.startswith(("node", "compute")) for name in job.emulate.slow_down)
        sleeps = slowed or bool(job.emulate.nodes)
        yield Say(profiled(job, blocks, held_by_nodes(job, len(blocks)), inputs, sleeps, self.runs))

    def build(self, plan: Plan) -> Iterator[Action]:
        """Builds the part, loads its checkpoint where a run goes on, opens links to the neighbours."""
        self.hop = [peer.name for peer in plan.nodes].index(self.place)
        self.hops = len(plan.nodes)
        self.part = self.hop + 1
        if self.own_process:
            torch.set_num_threads(plan.job.threads)
        room = plan.rooms[self.hop] if plan.rooms and self.own_process else None
        self._watch = Watch(None if room is None else room + self.limits().used_bytes, give_back_freed_memory)
        if plan.job.hard_memory and room is not None and not plan.job.emulate.nodes:  # those share a process
            spare = OVERHEAD_BYTES + (room + self.limits().used_bytes) // 10
            cap_private(self._private + room + spare)
        check_model(plan, self.place)
        # What an earlier plan built goes first: there may be no room for both.
        vars(self).pop("engine", None)
        self.engine = self._build(plan)
        self._asides: set[int] = set()  # who was set aside in this round
        if plan.start_round:
            self._load(plan)
        self.engine.begin(plan.start_round)
        names = {peer.name: peer.endpoint for peer in (*plan.nodes, *plan.owners)}
        ends = [plan.owners[index].name for index in plan.active]
        neighbours = (ends if self.hop == 0 else [node_name(self.hop - 1)]) + (
            ends if self.hop == self.hops - 1 else [node_name(self.hop + 1)]
        )
        links = {name: names[name] for name in dict.fromkeys(neighbours)}
        yield Connect(plan, 1 + self.hop, links, self.engine.pool.kept_bytes or None)
        yield Say(Ready(plan=plan.version))

    def handle(self, task: Task) -> Iterator[Action]:
        """Forward, backward, update, evaluate, close."""
        yield from self._work(task)
        yield from self.idle()
        self._watch.look()

    def wants_work(self) -> bool:
        """True when an owner that was set aside is to be told to the manager."""
        return hasattr(self, "engine") and bool(self.engine.came)

    def idle(self) -> Iterator[Action]:
        """Tells it."""
        while self.engine.came:
            yield self._aside(self.engine.came.pop(0), "came")

    def turns(self, message: SetAside | TakeUp) -> Iterator[Action]:
        """An owner gives up its place, or has it again."""
        owner = message.owner
        self._more_room = True
        self._asides.add(owner)
        if isinstance(message, TakeUp):
            self.engine.take_up(owner)
            return
        try:
            kept = self.engine.set_aside(owner)
        except CheckpointError as error:
            yield self._aside(owner, "failed", str(error)[:3900])
        else:
            yield self._aside(owner, "kept" if kept else "closed")
        self._watch.look()

    def _aside(self, owner: int, state: Literal["kept", "failed", "came", "closed"], text: str = "") -> Action:
        version = 0 if self.plan is None else self.plan.version
        return Say(Aside(plan=version, round=self.round, owner=owner, state=state, text=text))

    def _work(self, task: Task) -> Iterator[Action]:
        match task.op:
            case Op.FORWARD:
                with self.meter.measure("F", task):
                    output = self.engine.forward(task)
                yield Send(self._down(task), output)
            case Op.BACKWARD:
                if (accused := self._steep(task)) is not None:
                    yield Say(accused)
                    return
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
        if self._kept is not None:
            self._kept.prune(round_)

    def _down(self, task: Task) -> str:
        return owner_name(task.owner) if self.hop == self.hops - 1 else node_name(self.hop + 1)

    def _up(self, task: Task) -> str:
        return owner_name(task.owner) if self.hop == 0 else node_name(self.hop - 1)

    def _steep(self, task: Task) -> Accuse | None:
        """Accuses an owner of a gradient beyond the job's limit."""
        limit = None if self.plan is None else self.plan.job.guard.gradient_norm
        if limit is None or task.tensor is None or task.sender != OWNER_SENDER:
            return None
        norm = tensor_norm(task.tensor)
        if norm <= limit:
            return None
        text = too_large("the gradient of", task.owner, norm, limit, "guard.gradient_norm")
        return Accuse(place=owner_name(task.owner), text=text)

    def _far(self, owner: int) -> Accuse | None:
        """Accuses an owner whose round has changed our part beyond the job's limit."""
        limit = None if self.plan is None else self.plan.job.guard.update_norm
        if limit is None or (norm := self.engine.moved(owner)) <= limit:
            return None
        text = too_large(f"the update of part {self.part} by", owner, norm, limit, "guard.update_norm")
        return Accuse(place=owner_name(owner), text=text)

    def _close(self, task: Task) -> Iterator[Action]:
        spoiled = self.engine.spoiled(task.owner)
        if spoiled is not None:
            yield Say(Accuse(place=owner_name(task.owner), text=NOT_FINITE.format(owner=task.owner, name=spoiled)))
            return
        if (accused := self._far(task.owner)) is not None:
            yield Say(accused)
            return
        if self.hop < self.hops - 1:
            yield Send(node_name(self.hop + 1), task.reply(Op.CLOSE, None))
        with self.meter.measure("A", task):
            complete = self.engine.close(task)
        if task.owner in self._asides:
            yield self._aside(task.owner, "closed")
        if not complete:
            return
        base = self.engine.base
        with self.meter.measure("A", task):
            digest = self.engine.commit()
            if self._kept is not None:
                self._kept.end_round()
            if self.folder is not None and self.plan is not None:
                save_parts(self.folder, self.plan, self.round, [self.part], base.layout, base.flat)
        digests = {self.place: digest}
        yield Say(Prepared(plan=task.plan, round=self.round, digests=digests, stats=self.meter.stats()))
        # An owner may hear of the next round, and send, before we hear of it: be ready at once.
        self.meter.restart()
        self.round += 1
        self._asides.clear()
        self.engine.begin(self.round)

    def _build(self, plan: Plan) -> ComputeEngine:
        files = AsideFiles(self.folder, self.place)
        return ComputeEngine(plan, self.part, self.keep_states(plan, plan.active, [self.part]), files)

    def _load(self, plan: Plan) -> None:
        if self.folder is None:
            raise CheckpointError("a run that goes on needs a folder with its checkpoints")
        load_state(self.folder, plan, self.engine.base.layout, self.engine.base.flat)

"""What every role but the manager has in common: join, get the plan, build, say ready, stop. No socket in here.

A driver (zmpsl.loops.member over zmq, zmpsl.launch.memory without) calls `start`, `hear`, `admit`, `handle`, `idle` and
`tick`, and carries out the actions they give, each before it asks for the next one: so a gradient has left before the
code behind its `yield` updates the weights.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from zmpsl import __version__
from zmpsl.errors import CheckpointError, JoinError, RemoteProtocolError
from zmpsl.job.schema import Job
from zmpsl.messages import (
    Begin,
    Broken,
    Committed,
    Describe,
    Evaluate,
    Finish,
    FromManager,
    Join,
    MaskKeys,
    Measure,
    Pause,
    Paused,
    Profiled,
    Progress,
    Publish,
    Refused,
    Restrict,
    SetAside,
    TakeUp,
    Trouble,
    Welcome,
)
from zmpsl.plan import AGGREGATOR, Activation, Plan, Rates
from zmpsl.pool.budget import Limits
from zmpsl.pool.spill import KeptStates, SpillStats
from zmpsl.roles.actions import Action, Disconnect, Say, Stop
from zmpsl.roles.meter import Meter
from zmpsl.roles.pacing import pace_of
from zmpsl.stats import LinkStats
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.task import Op, Task

__all__ = ["NOT_FINITE", "Member"]

PROGRESS_EVERY_S = 0.5
NOT_FINITE = (
    "the weights that owner {owner} has trained are not finite ({name}); they are left out of the average. Either its "
    "training has diverged (try a lower optimizer.lr.initial), or it sends what it should not"
)


class Member:
    """Base of compute node, data owner and aggregator.

    Args:
        runs: Folder in which the run's folder lies or is made; None keeps nothing on disk.
        place: Place wanted, empty for any.

    Attributes:
        own_process: Set by programs that run one role per process; then the job's `threads` is set for torch.
        allowed_code: The `module:function` names a job may make this role import and call; None for any. A job comes
            over the network, so a role that takes jobs from others should know beforehand what it runs for them.
        progress_every_s: How often it says how far it is; a driver with many roles has them speak less.
        memory: Budget of this process, as text; empty where the job's holds. Only compute nodes keep to one.
    """

    role = "member"
    own_process = False
    memory = ""
    progress_every_s = PROGRESS_EVERY_S
    allowed_code: tuple[str, ...] | None = None

    def __init__(self, runs: Path | None = None, place: str = "") -> None:
        self.place = place
        self.runs = runs
        self._kept: KeptStates | None = None
        self.meter = Meter(lambda: self.traffic(), lambda: self.links(), self._spilled, self.set_aside)
        self.plan: Plan | None = None
        self.round = 0
        self._told_at = 0.0
        self._endpoint = ""

    def traffic(self) -> tuple[int, int, int]:
        """Bytes sent, bytes received, messages rejected; the driver puts its own counters here."""
        return 0, 0, 0

    def links(self) -> dict[str, LinkStats]:
        """What was sent on each kind of link since the start; the driver puts its own counters here."""
        return {}

    def restrict(self, rates: Mapping[int, Rates]) -> None:
        """Learns what owners may send from now on; the driver, which counts what comes, puts its own here."""

    def busy(self) -> bool:
        """Tells whether work goes on that is only imitated; a driver that imitates puts its own here."""
        return False

    # -- what a driver calls ------------------------------------------------------------------------------------------

    def start(self, endpoint: str) -> Iterator[Action]:
        """Asks the manager for a place; `endpoint` is where peers reach our PULL."""
        self._endpoint = endpoint
        yield from self.rejoin()

    def rejoin(self) -> Iterator[Action]:
        """Says who we are: at first, and when the connection to the manager is there again."""
        limits = self.limits()
        yield Say(
            Join(
                role=self.role,
                place=self.place,
                endpoint=self._endpoint,
                version=__version__,
                host=socket.gethostname(),
                pid=os.getpid(),
                plan=self.plan.version if self.plan is not None else 0,
                host_bytes=limits.host_bytes,
                used_bytes=limits.used_bytes,
                memory=limits.own,
            )
        )

    def hear(self, message: FromManager) -> Iterator[Action]:
        """Takes a message of the manager."""
        match message:
            case Refused():
                yield Stop(message.exit_code, message.text)
            case Welcome():
                self.place = message.place
            case Describe():
                self._consent(message.job)
                yield from self.describe(message)
            case Measure():
                self._consent(message.job)
                yield from self.measure(message)
            case Publish():
                yield from self._publish(message.plan)
            case Pause():
                yield from self._pause(message.plan)
            case Restrict() if self.plan is not None and message.plan == self.plan.version:
                self.restrict(message.rates)
            case MaskKeys() if self.plan is not None and message.plan == self.plan.version:
                self.agree(message)
            case SetAside() | TakeUp() if self.plan is not None and message.round == self.round:
                yield from self.turns(message)
            case Begin():
                yield from self.begin(message.round)
            case Evaluate():
                yield from self.evaluate(message.round)
            case Committed():
                self.committed(message.round)
            case Finish():
                self.meter.restart()
                yield Stop(message.exit_code, message.text)

    def admit(self, task: Task) -> None:
        """Checks that a task is for us, now.

        Raises:
            RemoteProtocolError: Another plan or round, an owner that is not there, or not for us from that sender.
        """
        plan = self.plan
        if plan is None or task.plan != plan.version:
            raise RemoteProtocolError(
                f"{task}: of plan {task.plan}, ours is {plan.version if plan else 'not there yet'}"
            )
        if not plan.takes_part(task.owner) or self.accepts(task.op) != task.sender:
            raise RemoteProtocolError(f"{task}: not for {self.place} from sender {task.sender}")
        if task.op is not Op.EVALUATE and task.op is not Op.GLOBAL and task.round != self.round:
            raise RemoteProtocolError(f"{task}: {self.place} is in round {self.round}")

    def inspect(self, task: Task) -> None:
        """Checks the tensor of an admitted task, now that it is whole.

        Raises:
            RemoteProtocolError: It has not the form that the model gives it, so it is none of our chain.
        """
        if task.op not in (Op.FORWARD, Op.BACKWARD, Op.EVALUATE):
            return
        form = self.expected(task.op)
        tensor = task.tensor
        if tensor is None or not tensor.ndim or not len(tensor):
            raise RemoteProtocolError(f"{task}: no samples")
        if form is not None and (tensor.dtype.name, tensor.shape[1:]) != (form.dtype, form.shape):
            raise RemoteProtocolError(f"{task}: {self.place} expects {form.dtype}{list(form.shape)} per sample")

    def tick(self, now: float) -> Iterator[Action]:
        """Called now and then with the time in seconds; says how far we are."""
        if self.plan is not None and now - self._told_at >= self.progress_every_s:
            self._told_at = now
            yield Say(replace(self.progress(self.plan), busy=self.busy()))

    def broken(self, peer: str, text: str = "") -> Iterator[Action]:
        """Tells the manager that the connection to a peer of the plan broke, or how else its tasks got lost."""
        if self.plan is not None:
            yield Say(Broken(plan=self.plan.version, peer=peer, text=text[:3000]))

    def trouble(self, error: BaseException, exit_code: int) -> Iterator[Action]:
        """Tells the manager that we cannot go on."""
        yield Say(Trouble(exit_code=exit_code, text=str(error)[:3900]))

    def known_mask(self, task: Task) -> KnownMask | None:
        """Gives the mask of the activation that a gradient belongs to, where that is a ReLU's output and still here."""
        return None

    # -- what the roles fill in ---------------------------------------------------------------------------------------

    def accepts(self, op: Op) -> int | None:
        """Gives the place code a task of this kind must come from, None where we take none."""
        raise NotImplementedError

    def expected(self, op: Op) -> Activation | None:
        """Gives the form of a sample in a task of this kind, None where it is not known."""
        return None

    def build(self, plan: Plan) -> Iterator[Action]:
        """Builds what the plan asks of us and says ready."""
        raise NotImplementedError

    def handle(self, task: Task) -> Iterator[Action]:
        """Does what an admitted task asks."""
        raise NotImplementedError

    def has_room(self, task: Task) -> bool:
        """Tells whether there is memory to handle a task now; else it waits until there may be."""
        return True

    def more_room(self) -> bool:
        """Tells, once, that there may be room by now for what there was none for."""
        return False

    def limits(self) -> Limits:
        """Tells how much memory this role may use; only compute nodes are asked."""
        return Limits()

    def wants_work(self) -> bool:
        """Tells whether there is work of our own to do now."""
        return False

    def idle(self) -> Iterator[Action]:
        """Does the next piece of it."""
        yield from ()

    def describe(self, message: Describe) -> Iterator[Action]:
        """Gives the block list of a model; only data owners are asked."""
        yield from ()

    def measure(self, message: Measure) -> Iterator[Action]:
        """Profiles the blocks it could hold; one data owner and some compute nodes are asked."""
        yield Say(Profiled(profile=None, text="a role of its kind measures nothing"))

    def agree(self, message: MaskKeys) -> None:
        """Learns the other owners' public keys; only owners are told."""

    def handed_in(self, version: int) -> int:
        """Tells the last round for which parts were handed in under that plan, -1 for none."""
        return -1

    def turns(self, message: SetAside | TakeUp) -> Iterator[Action]:
        """An owner gives up its place, or has it again; only compute nodes are told."""
        yield from ()

    def begin(self, round_: int) -> Iterator[Action]:
        """Starts to train a round."""
        yield from ()

    def evaluate(self, round_: int) -> Iterator[Action]:
        """Starts to evaluate a round's model."""
        yield from ()

    def committed(self, round_: int) -> None:
        """Learns that a round counts."""

    def pause(self) -> None:
        """Drops the work of a plan that is void."""

    def progress(self, plan: Plan) -> Progress:
        """Tells how far we are."""
        return Progress(plan=plan.version, round=self.round, stats=self.meter.stats())

    # -- shared -------------------------------------------------------------------------------------------------------

    def keep_states(self, plan: Plan, owners: Iterable[int], parts: Iterable[int]) -> KeptStates | None:
        """Opens the optimiser states that outlive a round, for a new plan; None where there are none.

        Raises:
            CheckpointError: There is no folder for them, or one that should be there is not.
        """
        if self._kept is not None:
            self._kept.close()
        self._kept = None
        if not plan.job.optimizer.keeps:
            return None
        if self.folder is None:
            raise CheckpointError(f"{self.place}: optimizer.state: keep needs a run folder to keep the states in")
        self._kept = KeptStates(self.folder, plan, self.place)
        self._kept.check(owners, parts)
        return self._kept

    @property
    def folder(self) -> Path | None:
        """The run's folder on this host."""
        return None if self.runs is None or self.plan is None else self.runs / self.plan.run

    def set_aside(self) -> SpillStats:
        """Tells what setting owners aside has cost since the plan; only compute nodes do."""
        return SpillStats()

    def _spilled(self) -> SpillStats:
        return SpillStats() if self._kept is None else self._kept.stats

    def _consent(self, job: Job) -> None:
        names = [job.model.name] if self.role == "compute" else [job.model.name, job.data.name]
        for name in names if self.role != AGGREGATOR else []:
            if ":" in name and self.allowed_code is not None and name not in self.allowed_code:
                raise JoinError(
                    f"{self.place} on {socket.gethostname()} was not told to run {name!r} for a job; "
                    f"if you trust that code, start this role with --allow-code {name}"
                )

    def _pause(self, version: int) -> Iterator[Action]:
        if self.plan is not None and self.plan.version <= version:
            self.plan = None
            self.pause()
            yield Disconnect()
        yield Say(Paused(plan=version, handed_in=self.handed_in(version)))

    def _publish(self, plan: Plan) -> Iterator[Action]:
        if self.plan is not None and plan.version <= self.plan.version:
            return
        self._consent(plan.job)
        self.plan = plan
        self.round = plan.start_round
        self.meter.pace = pace_of(plan, self.place)
        if self.folder is not None:
            self.meter.record_to(self.folder, self.place)
        yield from self.build(plan)
        self.meter.restart()

"""The manager: hears joins, makes the plan, publishes it, and records which rounds count. It never sees a tensor.

    gathering  -> describing -> building -> training g -> (evaluating g) -> training g + 1 ... -> over
      joins,      block list    all ready   all prepared   all evaluated
      a job

A round is committed when its record is on disk, after every compute node and the aggregator have stored its weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from zmpsl.checkpoint import Record, write_index, write_record, write_text
from zmpsl.errors import JobError, JoinError, PeerLostError, RemoteProtocolError, ZmpslError
from zmpsl.job.load import check_job, dump_job
from zmpsl.job.schema import Job, Network
from zmpsl.messages import (
    Begin,
    Committed,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Finish,
    FromManager,
    Join,
    Leave,
    Ping,
    Prepared,
    Profiled,
    Progress,
    Publish,
    Ready,
    Refused,
    Submit,
    ToManager,
    Trained,
    Trouble,
    Welcome,
)  # fmt: skip
from zmpsl.plan import AGGREGATOR, Block, Plan, check_cuts, fingerprint, node_name, owner_name
from zmpsl.roles.actions import Action, Stop, Tell
from zmpsl.roles.planning import CutPlanning
from zmpsl.roles.roster import Roster, Seat, listed
from zmpsl.roles.scoreboard import Scoreboard

__all__ = ["Manager", "Phase"]

PING_EVERY_S = 0.5


class Phase(Enum):
    """Where the run stands."""

    GATHERING = "gathering"
    DESCRIBING = "describing"
    BUILDING = "building"
    TRAINING = "training"
    EVALUATING = "evaluating"
    OVER = "over"


class Manager:
    """Places roles, plans, and commits rounds.

    Args:
        runs: Folder in which the run's folder is made; None keeps nothing on disk.
        job: The job, or None to wait until a data owner submits one.
        run: Name of the run and its folder; made from the job's name and the time if not given.
        resume: Record of the run to go on with.
    """

    def __init__(
        self, runs: Path | None = None, job: Job | None = None, run: str | None = None, resume: Record | None = None
    ) -> None:
        self.runs = runs
        self.job = job
        self.phase = Phase.GATHERING
        self.plan: Plan | None = None
        self.round = 0
        self.exit: Stop | None = None
        self.record = resume
        self.board = Scoreboard()
        self._run = run
        self.rejected = 0
        self.roster = Roster()
        self._observers: set[bytes] = set()
        self._waiting: set[str] = set()
        self._since: float | None = None
        self._pinged_at = 0.0
        self._digests: dict[str, str] = {}
        self._cutting: CutPlanning | None = None
        if self.folder is not None:
            self.board.log_to(self.folder)

    # -- what a driver calls ------------------------------------------------------------------------------------------

    def hear(self, who: bytes, message: ToManager) -> Iterator[Action]:
        """Takes a message of a member or observer.

        Raises:
            RemoteProtocolError: It makes no sense from them, or now; it is counted and changes nothing.
        """
        try:
            yield from self._hear(who, message)
        except RemoteProtocolError:
            self.rejected += 1
            raise
        except ZmpslError as error:
            yield from self.finish(error.exit_code, str(error))

    def tick(self, now: float) -> Iterator[Action]:
        """Called now and then with the time in seconds: pings, and gives up what takes too long."""
        self._since = now if self._since is None else self._since
        if now - self._pinged_at >= PING_EVERY_S and self.phase is not Phase.OVER:
            self._pinged_at = now
            self.board.tell_progress(self.phase.value, self.round)
            for seat in self.roster:
                yield Tell(seat.identity, Ping())
        if self.job is None or self.phase not in (Phase.GATHERING, Phase.DESCRIBING, Phase.BUILDING):
            return
        limit = self.job.network.join_timeout_s
        if now - self._since > limit:
            text = f"after {limit:g} s (network.join_timeout_s) {self._who_is_missing(self.job)}"
            yield from self.finish(JoinError.exit_code, text)

    def unreachable(self, who: bytes, now: float) -> Iterator[Action]:
        """The connection to a member is gone; it is lost when it stays so."""
        seat = self.roster.get(who)
        self._observers.discard(who)
        if seat is None or self.phase is Phase.OVER:
            return
        if seat.unreachable_since is None:
            seat.unreachable_since = now
        gone_s = now - seat.unreachable_since
        if gone_s >= (self.job.network if self.job is not None else Network()).lost_after_s:
            yield from self._gone(seat, f"is lost: its connection has been closed for {gone_s:.1f} s")

    def reachable(self, who: bytes) -> None:
        """The connection to a member is open."""
        seat = self.roster.get(who)
        if seat is not None:
            seat.unreachable_since = None

    def finish(self, exit_code: int, text: str) -> Iterator[Action]:
        """Ends the run for everybody."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        self.board.end(exit_code, text)
        for identity in self._everybody():
            yield Tell(identity, Finish(exit_code=exit_code, text=text))
        self.exit = Stop(exit_code, text)
        yield self.exit

    @property
    def folder(self) -> Path | None:
        """The run's folder, once the run has a name."""
        return None if self.runs is None or self._run is None else self.runs / self._run

    # -- messages -----------------------------------------------------------------------------------------------------

    def _hear(self, who: bytes, message: ToManager) -> Iterator[Action]:
        if isinstance(message, Join):
            yield from self._join(who, message)
            return
        if isinstance(message, Submit):
            yield from self._submit(who, message.job)
            return
        seat = self.roster.get(who)
        if isinstance(message, Leave):
            self._observers.discard(who)
            if seat is not None:
                yield from self._gone(seat, "has left")
            return
        if seat is None:
            raise RemoteProtocolError(f"{type(message).__name__} from somebody who has not joined")
        if self.phase is Phase.OVER:
            return
        match message:
            case Trouble():
                yield from self.finish(message.exit_code, message.text)
            case Described():
                yield from self._described(message.blocks)
            case Profiled() if self._cutting is not None:
                yield from self._cut(self._cutting, self._cutting.hear(seat, message))
            case Ready():
                yield from self._ready(seat, message)
            case Progress():
                if message.round == self.round:
                    self.board.progress(seat.place, message)
            case Trained():
                self.board.trained(seat.place, message)
                yield from self._arrived(seat.place, Phase.TRAINING, message.round)
            case Prepared():
                self._digests.update(message.digests)
                self.board.prepared(seat.place, message)
                yield from self._arrived(seat.place, Phase.TRAINING, message.round)
            case Evaluated():
                self.board.evaluated(message)
                yield from self._arrived(seat.place, Phase.EVALUATING, message.round)

    def _join(self, who: bytes, join: Join) -> Iterator[Action]:
        if join.role == "observer":
            self._observers.add(who)
            yield Tell(who, Welcome(place="", job=self.job))
            if self.plan is not None:
                yield Tell(who, Publish(plan=self.plan))
            return
        try:
            if self.phase is not Phase.GATHERING:
                raise JoinError(f"the run is {self.phase.value}; all its places are taken")
            seat = self.roster.add(who, join, self.job)
        except JoinError as error:
            self.board.notice(f"refused {join.role} (process {join.pid} on {join.host}): {error}")
            yield Tell(who, Refused(exit_code=error.exit_code, text=str(error)))
            return
        yield Tell(who, Welcome(place=seat.place, job=self.job))
        yield from self._maybe_describe()

    def _gone(self, seat: Seat, how: str) -> Iterator[Action]:
        self.roster.remove(seat.identity)
        if self.phase is Phase.GATHERING:
            self.board.notice(f"{seat} {how}; its place is free again")
        elif self.phase is not Phase.OVER:
            yield from self.finish(PeerLostError.exit_code, f"{seat} {how}")

    def _submit(self, who: bytes, job: Job) -> Iterator[Action]:
        if self.job is not None:
            yield Tell(
                who,
                Refused(
                    exit_code=JobError.exit_code,
                    text=f"this manager already has job {self.job.name!r}; one manager runs one job",
                ),
            )
            return
        try:
            check_job(job, f"submitted job {job.name}")
        except JobError as error:
            yield Tell(who, Refused(exit_code=error.exit_code, text=str(error)))
            return
        self.job = job
        self._since = None
        yield Tell(who, Welcome(place="", job=job))
        for seat in self.roster.surplus(job):
            self.roster.remove(seat.identity)
            text = f"job {job.name!r} has no place {seat.place}"
            yield Tell(seat.identity, Refused(exit_code=JoinError.exit_code, text=text))
        yield from self._maybe_describe()

    # -- the plan -----------------------------------------------------------------------------------------------------

    def _who_is_missing(self, job: Job) -> str:
        missing = self.roster.missing(job)
        if missing:
            return (
                f"still missing: {listed(missing)}; start them with `zmpsl compute|owner|aggregator --manager ADDRESS`"
            )
        return f"not ready: {listed(seat.place for seat in self.roster if not seat.ready)}"

    def _maybe_describe(self) -> Iterator[Action]:
        if self.job is None or self.phase is not Phase.GATHERING or self.roster.missing(self.job):
            return
        self.phase = Phase.DESCRIBING
        asked = next(seat for seat in self.roster if seat.place == owner_name(0))
        yield Tell(asked.identity, Describe(job=self.job))

    def _described(self, blocks: tuple[Block, ...]) -> Iterator[Action]:
        if self.job is None or self.phase is not Phase.DESCRIBING or self._cutting is not None:
            return
        bounds = check_cuts(self.job, len(blocks))
        if self.job.cuts == "auto" and self.record is not None:
            bounds = self.record.bounds  # a run goes on with the cuts it began with
        elif self.job.cuts == "auto":
            self._cutting = CutPlanning(self.job, blocks, self.roster)
            yield from self._cut(self._cutting, self._cutting.start())
            return
        yield from self._publish(self.job, blocks, bounds)

    def _cut(self, cutting: CutPlanning, asking: Iterator[Action]) -> Iterator[Action]:
        yield from asking
        if cutting.complete and self.plan is None:
            yield from cutting.solve()
            yield from self._publish(cutting.job, cutting.blocks, cutting.bounds)
            self.board.notice(cutting.text)

    def _publish(self, job: Job, blocks: tuple[Block, ...], bounds: tuple[int, ...]) -> Iterator[Action]:
        self._run = self._run or f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        start, digests = self._resume_point(blocks, bounds)
        self.plan = Plan(
            version=1,
            run=self._run,
            job=job,
            blocks=blocks,
            bounds=bounds,
            aggregator=self.roster.peer(AGGREGATOR),
            nodes=tuple(self.roster.peer(node_name(hop)) for hop in range(job.nodes)),
            owners=tuple(self.roster.peer(owner_name(index)) for index in range(job.owners)),
            start_round=start,
            digests=digests,
        )
        if self.record is None:
            self.record = Record(
                run=self._run, job=job, bounds=bounds, fingerprint=fingerprint(blocks), committed={}
            )
        self.record.job = job
        if self.folder is not None:
            write_record(self.folder, self.record)
            write_text(self.folder / "job.yaml", dump_job(job).encode())
            self.board.log_to(self.folder)
        self.board.planned(self.plan)
        self.phase = Phase.BUILDING
        for identity in self._everybody():
            yield Tell(identity, Publish(plan=self.plan))

    def _resume_point(self, blocks: tuple[Block, ...], bounds: tuple[int, ...]) -> tuple[int, dict[str, str]]:
        record = self.record
        if record is None or record.last < 0:
            return 0, {}
        if record.fingerprint != fingerprint(blocks) or record.bounds != bounds:
            raise JobError(
                f"run {record.run} was made with model fingerprint {record.fingerprint} and bounds"
                f" {list(record.bounds)}, now they are {fingerprint(blocks)} and {list(bounds)}; a run can only go on"
                " with the same model and cuts"
            )
        return record.last + 1, record.committed[record.last]

    def _ready(self, seat: Seat, message: Ready) -> Iterator[Action]:
        if self.phase is not Phase.BUILDING or self.plan is None or message.plan != self.plan.version:
            return
        seat.ready = True
        self.board.batches_total += message.batches
        if self._cutting is not None:
            self._cutting.batches[seat.place] = message.batches
        if all(each.ready for each in self.roster):
            self.round = self.plan.start_round
            if self._cutting is not None:
                self.board.expected = self._cutting.expect()
            yield from self._begin_or_finish()

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _begin_or_finish(self) -> Iterator[Action]:
        if self.job is not None and self.round >= self.job.train.rounds:
            yield from self.finish(0, f"{self.job.train.rounds} rounds committed")
            return
        self.phase = Phase.TRAINING
        self._waiting = {seat.place for seat in self.roster}
        self._digests = {}
        self.board.begin(self.round)
        yield from self._tell_all(Begin(round=self.round))

    def _arrived(self, place: str, phase: Phase, round_: int) -> Iterator[Action]:
        if phase is not self.phase or round_ != self.round:
            raise RemoteProtocolError(
                f"{place} speaks of {phase.value} round {round_}, the run is {self.phase.value} round {self.round}"
            )
        self._waiting.discard(place)
        if self._waiting:
            return
        if phase is Phase.TRAINING:
            yield from self._commit()
        else:
            self.board.evaluation_over(self.round)
            self.round += 1
            yield from self._begin_or_finish()

    def _commit(self) -> Iterator[Action]:
        plan, record = self.plan, self.record
        if plan is None or record is None or self.job is None:
            raise RemoteProtocolError("a round cannot end before there is a plan")
        digests = dict(sorted(self._digests.items()))
        record.committed[self.round] = digests
        for old in sorted(record.committed)[: -self.job.keep_checkpoints]:
            del record.committed[old]
        if self.folder is not None:
            write_index(self.folder, plan, self.round, digests)
            write_record(self.folder, record)
        self.board.committed(self.round, digests)
        yield from self._tell_all(Committed(round=self.round, digests=digests))
        every = self.job.evaluate.every
        if every and ((self.round + 1) % every == 0 or self.round + 1 == self.job.train.rounds):
            self.phase = Phase.EVALUATING
            self._waiting = {owner.name for owner in plan.owners}
            yield from self._tell_all(Evaluate(round=self.round))
        else:
            self.round += 1
            yield from self._begin_or_finish()

    def _everybody(self) -> list[bytes]:
        return [*(seat.identity for seat in self.roster), *self._observers]

    def _tell_all(self, message: FromManager) -> Iterator[Action]:
        for identity in self._everybody():
            yield Tell(identity, message)

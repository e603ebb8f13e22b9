"""The manager: hears joins, makes the plan, publishes it, and records which rounds count. It never sees a tensor.

    gathering  -> describing -> building -> training g -> (evaluating g) -> training g + 1 ... -> over
      joins,      block list    all ready   all prepared   all evaluated
      a job                        ^              |
                                   +- recovering <+   a role or a link was lost: all paused, all here again

A round is committed when its record is on disk, after every compute node and the aggregator have stored its weights.
Whatever is lost in between, everybody goes back to the last committed round, under a plan with a new version; work of
older versions is recognised and dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from zmpsl.checkpoint import Record, write_index, write_record, write_text
from zmpsl.errors import JobError, JoinError, LocalProtocolError, RemoteProtocolError, ZmpslError
from zmpsl.job.load import check_job, dump_job
from zmpsl.job.schema import Job, Network
from zmpsl.messages import (
    Accuse,
    Begin,
    Broken,
    Committed,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    FromManager,
    Join,
    Leave,
    Paused,
    Ping,
    Prepared,
    Probe,
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
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.admission import Places
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.recovering import Recovering
from zmpsl.roles.roster import Seat, check_said, listed

__all__ = ["Manager"]

PING_EVERY_S = 0.5


class Manager(Recovering):
    """Places roles, plans, and commits rounds."""

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
        if now - self._pinged_at >= PING_EVERY_S and self.phase is not Phase.OVER:
            self._pinged_at = now
            self.board.tell_progress(self.phase.value, self.round)
            for seat in self.roster:
                yield Tell(seat.identity, Ping())
        yield from self._look_around(now)
        if self.job is None or self.phase not in (Phase.GATHERING, Phase.DESCRIBING, Phase.BUILDING, Phase.RECOVERING):
            return
        if self._since is None:
            self._since = now
        waited_s = now - self._since
        if self.phase is Phase.RECOVERING:
            yield from self._wait(self.job, waited_s)
        elif waited_s > self.job.network.join_timeout_s:
            limit = self.job.network.join_timeout_s
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

    # -- messages -----------------------------------------------------------------------------------------------------

    def _hear(self, who: bytes, message: ToManager) -> Iterator[Action]:
        if isinstance(message, Join):
            yield from self._join(who, message)
            return
        if isinstance(message, Submit):
            yield from self._submit(who, message.job)
            return
        seat = self.roster.get(who)
        if seat is not None:
            seat.heard_at = None
        if isinstance(message, Leave):
            self._observers.discard(who)
            if seat is not None:
                yield from self._gone(seat, "has left")
            return
        if seat is None:
            raise RemoteProtocolError(f"{type(message).__name__} from somebody who has not joined")
        if self.phase is Phase.OVER:
            return
        if isinstance(message, Probe):
            return  # answered by the driver
        check_said(seat, message)
        match message:
            case Accuse():
                yield from self.expel(message.place, f"was sent away, as {seat.place} says: {message.text}")
            case Trouble():
                yield from self.finish(message.exit_code, message.text)
            case Described():
                yield from self._described(message)
            case Ready():
                yield from self._ready(seat, message)
            case Paused():
                seat.paused = max(seat.paused, message.plan)
                yield from self._maybe_describe()
                yield from self._maybe_replan()
            case _ if self.plan is None or message.plan != self.plan.version or self.phase is Phase.RECOVERING:
                return  # of a plan that is void
            case Broken():
                self.recovery.suspect(message.peer, message.text or f"{seat} lost its connection to {message.peer}")
            case Progress():
                if message.round == self.round:
                    self.board.progress(seat.place, message)
            case Trained():
                self.board.trained(seat.place, message)
                yield from self._tell_owners(self._training.done(seat.place), Begin(round=self.round))
                yield from self._arrived(seat.place, Phase.TRAINING, message.round)
            case Prepared():
                self._digests.update(message.digests)
                self.board.prepared(seat.place, message)
                yield from self._arrived(seat.place, Phase.TRAINING, message.round)
            case Evaluated():
                self.board.evaluated(message)
                yield from self._tell_owners(self._evaluating.done(seat.place), Evaluate(round=self.round))
                yield from self._arrived(seat.place, Phase.EVALUATING, message.round)

    def _join(self, who: bytes, join: Join) -> Iterator[Action]:
        if join.role == "observer":
            self._observers.add(who)
            yield Tell(who, Welcome(place="", job=self.job))
            if self.plan is not None:
                yield Tell(who, Publish(plan=self.plan))
            return
        known = self.roster.get(who)
        if known is not None:
            yield from self._back(known, join)
            return
        if join.place:
            yield from self._make_room(join.place)
        try:
            seat = self.roster.add(who, join, self.job)
        except JoinError as error:
            self.board.notice(f"refused {join.role} (process {join.pid} on {join.host}): {error}")
            yield Tell(who, Refused(exit_code=error.exit_code, text=str(error)))
            return
        yield Tell(who, Welcome(place=seat.place, job=self.job))
        yield from self._clear(seat)
        if self.plan is not None:
            self.board.notice(f"{seat} has joined")
        yield from self._maybe_describe()
        yield from self._maybe_replan()

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
        if any(seat.paused < seat.join.plan for seat in self.roster):  # they worked for a manager before this one
            return
        self.phase = Phase.DESCRIBING
        asked = next(seat for seat in self.roster if seat.place == owner_name(0))
        yield Tell(asked.identity, Describe(job=self.job))

    def _described(self, message: Described) -> Iterator[Action]:
        if self.job is None or self.phase is not Phase.DESCRIBING:
            return
        self._described_as, blocks = message, message.blocks
        self._run = self._run or f"{self.job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        # Above every plan of which something may still be under way, when this manager follows one that was lost.
        version = 1 + max(self.record.plan if self.record else 0, *(seat.join.plan for seat in self.roster))
        yield from self._publish(version, blocks, check_cuts(self.job, len(blocks)))

    def _publish(self, version: int, blocks: tuple[Block, ...], bounds: tuple[int, ...]) -> Iterator[Action]:
        if self.job is None or self._run is None:
            raise LocalProtocolError("a plan needs a job")
        start, digests = self._resume_point(blocks)
        joins = {seat.place: seat.join for seat in self.roster}
        places = Places(self.job, blocks, bounds, self._described_as.footprints, joins)
        self._training, self._evaluating = places.training, places.evaluating
        self.plan = Plan(
            version=version,
            run=self._run,
            job=self.job,
            blocks=blocks,
            outputs=self._described_as.outputs,
            bounds=bounds,
            aggregator=self.roster.peer(AGGREGATOR),
            nodes=tuple(self.roster.peer(node_name(hop)) for hop in range(self.job.nodes)),
            owners=tuple(self.roster.peer(owner_name(index)) for index in range(self.job.owners)),
            start_round=start,
            digests=digests,
            stored=self.record.bounds if start and self.record is not None and self.record.bounds != bounds else (),
            footprints=self._described_as.footprints,
            rooms=places.rooms,
            in_flight=places.training.limit,
            recompute=tuple(memory.recompute for memory in places.parts),
        )
        if self.record is None:
            self.record = Record(
                run=self._run, job=self.job, bounds=bounds, fingerprint=fingerprint(blocks), committed={}
            )
        self.record.job, self.record.plan = self.job, version
        if self.folder is not None:
            write_record(self.folder, self.record)
            write_text(self.folder / "job.yaml", dump_job(self.job).encode())
            self.board.log_to(self.folder)
        self.board.planned(self.plan)
        if places.training.limit < len(self.plan.active):
            self.board.notice(str(places))
        self.phase, self._since = Phase.BUILDING, None
        for seat in self.roster:
            if not seat.standby:
                seat.planned, seat.ready, seat.paused = True, False, 0
        for identity in self._everybody():
            yield Tell(identity, Publish(plan=self.plan))

    def _resume_point(self, blocks: tuple[Block, ...]) -> tuple[int, dict[str, str]]:
        record = self.record
        if record is None or record.last < 0:
            return 0, {}
        if record.fingerprint != fingerprint(blocks):
            raise JobError(
                f"run {record.run} was made with model fingerprint {record.fingerprint}, now it is"
                f" {fingerprint(blocks)}; a run can only go on with the same model"
            )
        return record.last + 1, record.committed[record.last]

    def _ready(self, seat: Seat, message: Ready) -> Iterator[Action]:
        if self.phase is not Phase.BUILDING or self.plan is None or message.plan != self.plan.version:
            return
        seat.ready = True
        self.board.batches_total += message.batches
        if all(each.ready for each in self.roster if each.planned):
            self.round = self.plan.start_round
            if self.recovery.unscored == self.round - 1:
                self.round -= 1
                yield from self._evaluate(self.plan)
            else:
                yield from self._begin_or_finish()

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _begin_or_finish(self) -> Iterator[Action]:
        if self.job is not None and self.round >= self.job.train.rounds:
            yield from self.finish(0, f"{self.job.train.rounds} rounds committed")
            return
        if any(not seat.planned and not seat.standby for seat in self.roster):  # who was left out is back
            yield from self._pause_all()
            return
        self.phase = Phase.TRAINING
        self._waiting = {seat.place for seat in self.roster if seat.planned}
        self._digests = {}
        self.board.begin(self.round)
        yield from self._tell_owners(self._training.start(self.round), Begin(round=self.round), all_others=True)

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
            self.recovery.unscored = None
            self.round += 1
            yield from self._begin_or_finish()

    def _commit(self) -> Iterator[Action]:
        plan, record = self.plan, self.record
        if plan is None or record is None or self.job is None:
            raise RemoteProtocolError("a round cannot end before there is a plan")
        digests = dict(sorted(self._digests.items()))
        record.committed[self.round], record.bounds = digests, plan.bounds
        for old in sorted(record.committed)[: -self.job.keep_checkpoints]:
            del record.committed[old]
        if self.folder is not None:
            write_index(self.folder, plan, self.round, digests)
            write_record(self.folder, record)
        self.board.committed(self.round, digests)
        yield from self._tell_all(Committed(round=self.round, digests=digests))
        every = self.job.evaluate.every
        if every and ((self.round + 1) % every == 0 or self.round + 1 == self.job.train.rounds):
            self.recovery.unscored = self.round
            yield from self._evaluate(plan)
        else:
            self.round += 1
            yield from self._begin_or_finish()

    def _evaluate(self, plan: Plan) -> Iterator[Action]:
        self.phase = Phase.EVALUATING
        self._waiting = {plan.owners[index].name for index in plan.active}
        self.board.forget_scores()
        yield from self._tell_owners(self._evaluating.start(self.round), Evaluate(round=self.round))

    def _tell_owners(self, turn: list[str], message: FromManager, *, all_others: bool = False) -> Iterator[Action]:
        for seat in self.roster:
            if seat.place in turn or (all_others and seat.planned and seat.join.role != "owner"):
                yield Tell(seat.identity, message)

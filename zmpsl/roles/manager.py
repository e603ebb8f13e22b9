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

from collections.abc import Iterator

from zmpsl.checkpoint import write_index, write_record
from zmpsl.errors import JobError, JoinError, RemoteProtocolError, ZmpslError
from zmpsl.job.network import Network
from zmpsl.job.rules import check_job
from zmpsl.job.schema import Job
from zmpsl.messages import (
    Accuse,
    Aside,
    Begin,
    Broken,
    Committed,
    Described,
    Evaluate,
    Evaluated,
    Finish,
    Join,
    Leave,
    MaskKeys,
    OfPlan,
    Paused,
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
from zmpsl.plan import Plan
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.planning import CutPlanning
from zmpsl.roles.roster import Seat, check_said
from zmpsl.roles.yielding import Yielding

__all__ = ["Manager"]

PING_EVERY_S = 0.5


class Manager(Yielding):
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
        try:
            yield from self._tick(now)
        except ZmpslError as error:  # such as a plan for the nodes that are left that cannot be
            yield from self.finish(error.exit_code, str(error))

    def _tick(self, now: float) -> Iterator[Action]:
        if now - self._pinged_at >= PING_EVERY_S and self.phase is not Phase.OVER:
            self._pinged_at = now
            self.board.tell_progress(self.phase.value, self.round)
            for identity in [*(seat.identity for seat in self.roster), *self._observers]:  # who is gone is found out
                yield Tell(identity, Ping())
            yield from self._fill_the_chain(now)
            yield from self._give_places(now)
        yield from self._look_around(now)
        if self.job is not None:
            yield from self._keep_time(self.job, now)
        if self.job is None or self.phase not in (Phase.GATHERING, Phase.DESCRIBING, Phase.BUILDING, Phase.RECOVERING):
            return
        if self._since is None:
            self._since = now
        waited_s = now - self._since
        if self.phase is Phase.RECOVERING:
            yield from self._wait(self.job, waited_s)
            return
        if self._follows and self.phase is Phase.GATHERING:
            yield from self._stand_in(self.job, waited_s)
        if waited_s > self.job.network.join_timeout_s:
            if self._may_go_on_without(self.job):
                yield from self._go_on_without(self.job)
                return
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
        check_said(seat, message)
        yield from self._hear_of_member(seat, message)

    def _hear_of_member(self, seat: Seat, message: ToManager) -> Iterator[Action]:
        match message:
            case Accuse():
                yield from self.expel(message.place, f"was sent away, as {seat.place} says: {message.text}")
            case Trouble():
                yield from self.finish(message.exit_code, message.text)
            case Described():
                if seat.place != self._asked:
                    raise RemoteProtocolError(f"{seat.place} describes a model, which it was not asked for")
                yield from self._described(message)
            case Profiled() if self._cutting is not None:
                yield from self._cut(self._cutting, self._cutting.hear(seat, message))
            case Ready():
                yield from self._ready(seat, message)
            case Paused():
                if seat.planned:
                    self.recovery.seal.hear(seat.place, message, self.round)
                seat.paused = max(seat.paused, message.plan)
                yield from self._maybe_describe()
                yield from self._maybe_replan()
            case Progress() | Trained() | Prepared() | Evaluated() | Broken() | Aside():
                plan = self.plan
                if plan is not None and message.plan == plan.version and self.phase is not Phase.RECOVERING:
                    yield from self._hear_of_round(seat, message)

    def _hear_of_round(self, seat: Seat, message: OfPlan) -> Iterator[Action]:
        """Takes what a member says of the current plan; what it says of a void one is not heard."""
        match message:
            case Broken():
                self.recovery.suspect(message.peer, message.text or f"{seat} lost its connection to {message.peer}")
            case Progress():
                self._standstill.hear(seat.place, message)
                if message.round == self.round:
                    self.board.progress(seat.place, message)
            case Trained():
                self.board.trained(seat.place, message)
                yield from self._has_trained(seat.place)
                yield from self._arrived(seat.place, Phase.TRAINING, message.round)
            case Aside():
                if message.round == self.round:
                    yield from self._hear_aside(seat.place, message)
            case Prepared():
                self._digests.update(message.digests)
                self.board.prepared(seat.place, message)
                yield from self._arrived(seat.place, Phase.TRAINING, message.round)
            case Evaluated():
                self.board.evaluated(message)
                yield from self._tell_owners(self._evaluating.done(seat.place), Evaluate(round=self.round))
                yield from self._arrived(seat.place, Phase.EVALUATING, message.round)

    def _join(self, who: bytes, join: Join) -> Iterator[Action]:
        if self.exit is not None:  # perhaps it has not heard
            yield Tell(who, Finish(exit_code=self.exit.exit_code, text=self.exit.text))
            return
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
        yield from self._make_room(join)
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

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _ready(self, seat: Seat, message: Ready) -> Iterator[Action]:
        if self.phase is not Phase.BUILDING or self.plan is None or message.plan != self.plan.version:
            return
        if self.plan.job.privacy.secure_average and seat.join.role == "owner" and len(message.key) != 32:
            raise RemoteProtocolError(f"{seat.place} says it is ready, but with no public key for its masks")
        seat.ready, seat.key = True, message.key
        self.board.batches_total += message.batches
        if self._cutting is not None:
            self._cutting.batches[seat.place] = message.batches
        if all(each.ready for each in self.roster if each.planned):
            self.round = self.plan.start_round
            yield from self._share_keys(self.plan)
            cutting = self._cutting
            known = cutting is not None and cutting.bounds == self.plan.bounds
            self.board.expected = cutting.expect(self._training.limit) if cutting and known else None
            if self.recovery.unscored == self.round - 1:
                self.round -= 1
                yield from self._evaluate(self.plan)
            else:
                yield from self._begin_or_finish()

    def _share_keys(self, plan: Plan) -> Iterator[Action]:
        """Tells owners one another's public keys, for the masks on what they hand in."""
        if not plan.job.privacy.secure_average:
            return
        owners = [seat for seat in self.roster if seat.planned and seat.join.role == "owner"]
        for seat in owners:
            yield Tell(seat.identity, MaskKeys(plan=plan.version, keys={each.place: each.key for each in owners}))

    def _begin_or_finish(self) -> Iterator[Action]:
        if self.job is not None and self.round >= self.job.train.rounds:
            yield from self.finish(0, f"{self.job.train.rounds} rounds committed")
            return
        kept_out = self.recovery.seal.keeps_out
        back = any(not seat.planned and not seat.standby and not kept_out(seat.place) for seat in self.roster)
        if back or self._better is not None:
            # Who was left out is back, or the model is to be cut elsewhere.
            yield from self._pause_all()
            return
        self.phase = Phase.TRAINING
        self._waiting = {seat.place for seat in self.roster if seat.planned}
        self._digests = {}
        self._standstill.restart()
        self.board.begin(self.round)
        self._asides.restart()
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
        if plan.job.optimizer.keeps:
            record.kept = record.kept | dict.fromkeys(plan.active, self.round)
        for old in sorted(record.committed)[: -self.job.keep_checkpoints]:
            del record.committed[old]
        if self.folder is not None:
            write_index(self.folder, plan, self.round, digests)
            write_record(self.folder, record)
        self.recovery.seal.lift()
        self.board.committed(self.round, digests)
        self._learn(plan)
        yield from self._tell_all(Committed(round=self.round, digests=digests))
        every = self.job.evaluate.every
        if every and ((self.round + 1) % every == 0 or self.round + 1 == self.job.train.rounds):
            self.recovery.unscored = self.round
            yield from self._evaluate(plan)
        else:
            self.round += 1
            yield from self._begin_or_finish()

    def _learn(self, plan: Plan) -> None:
        """Expects of the next rounds what this one has told of links and codecs."""
        cutting = self._cutting if self.board.expected is not None else None
        if cutting is not None and cutting.bounds == plan.bounds and cutting.learn(self.board.finals, self.folder):
            self.board.expected = cutting.expect(self._training.limit)
            self._weigh(cutting, plan)

    def _weigh(self, cutting: CutPlanning, plan: Plan) -> None:
        """Says so where other cuts are better by now, and takes them for the next round where the job allows it."""
        self._weighed.add(plan.bounds)
        better = cutting.better(self._training.limit)
        if better is None or better.bounds in self._weighed or self.round + 1 == plan.job.train.rounds:
            return
        self._weighed.add(better.bounds)
        if plan.job.planning.cut_again and self.folder is not None and not plan.job.optimizer.keeps:
            self._better = better
            self.board.notice(f"{better}: the next round begins with them (planning.cut_again)")
        else:
            self.board.notice(f"{better}; planning.cut_again takes them, where all roles can read the run's folder")

    def _evaluate(self, plan: Plan) -> Iterator[Action]:
        self.phase = Phase.EVALUATING
        self._waiting = {plan.owners[index].name for index in plan.active}
        self.board.forget_scores()
        self._standstill.restart()
        yield from self._tell_owners(self._evaluating.start(self.round), Evaluate(round=self.round))

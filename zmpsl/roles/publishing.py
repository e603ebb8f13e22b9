"""The manager makes its plan: asks for the block list, has the cuts solved, and publishes who runs what."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from zmpsl.checkpoint import Record, write_record, write_text
from zmpsl.errors import JobError, LocalProtocolError
from zmpsl.job.emulate import words
from zmpsl.job.load import dump_job
from zmpsl.job.schema import Job
from zmpsl.messages import Describe, Described, Publish, Restrict
from zmpsl.plan import (
    AGGREGATOR,
    Block,
    Footprint,
    Peer,
    Plan,
    Rates,
    check_cuts,
    check_exposure,
    fingerprint,
    micro_samples,
    node_name,
    owner_name,
)
from zmpsl.planner.pieces import with_pieces
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.admission import Places
from zmpsl.roles.asides import Asides, Stalls
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.planning import CutPlanning
from zmpsl.roles.recovering import Recovering
from zmpsl.roles.roster import NEW, listed

__all__ = ["Publishing"]


class Publishing(Recovering):
    """The part of the manager that makes plans."""

    def _who_is_missing(self, job: Job) -> str:
        missing = self.roster.missing(job)
        if missing:
            return (
                f"still missing: {listed(missing)}; start them with `zmpsl compute|owner|aggregator --manager ADDRESS`"
            )
        return f"not ready: {listed(seat.place for seat in self.roster if not seat.ready)}"

    def _maybe_describe(self) -> Iterator[Action]:
        if self.job is None or self.phase is not Phase.GATHERING or self.roster.missing(self.job) - self._absent:
            return
        if any(seat.paused < seat.join.plan for seat in self.roster):  # they worked for a manager before this one
            return
        self.phase, self._cutting = Phase.DESCRIBING, None
        if self.record is not None and self.job.train.micro_batches == "auto":  # decided when the run began
            self.job = with_pieces(self.job, self.record.job.train.pieces)
        here = {seat.place: seat for seat in self.roster}
        asked = next(here[name] for name in map(owner_name, range(self.job.owners)) if name in here)
        self._asked = asked.place
        yield Tell(asked.identity, Describe(job=self.job))

    def _described(self, message: Described) -> Iterator[Action]:
        job, record = self.job, self.record
        if job is None or self.phase is not Phase.DESCRIBING or self._cutting is not None:
            return
        self._described_as = message
        bounds = check_cuts(job, len(message.blocks))
        same = record is not None and len(record.bounds) == len(bounds)
        if job.cuts == "auto" and record is not None and same:
            bounds = record.bounds  # a run goes on with the cuts it began with
        given = () if job.cuts == "auto" and not same else bounds
        self._cutting = CutPlanning(job, message.blocks, self.roster, given)
        if record is not None and given:  # nobody is to wait for measurements again
            self._cutting.recall(self.folder)
            self.job = self._cutting.job
            yield from self._first_plan(bounds)
            return
        yield from self._cut(self._cutting, self._cutting.start())

    def _cut(self, cutting: CutPlanning, asking: Iterator[Action]) -> Iterator[Action]:
        yield from asking
        if cutting.complete and self.plan is None:
            yield from cutting.solve()
            self._described_as = _in_pieces(self._described_as, self.job or cutting.job, cutting.job)
            self.job = cutting.job
            yield from self._first_plan(cutting.bounds)
            if self.folder is not None:
                cutting.keep(self.folder)
            if cutting.text:
                self.board.notice(cutting.text)

    def _first_plan(self, bounds: tuple[int, ...]) -> Iterator[Action]:
        # Above every plan of which something may still be under way, when this manager follows one that was lost.
        version = 1 + max(self.record.plan if self.record else 0, *(seat.join.plan for seat in self.roster))
        yield from self._publish(version, self._described_as.blocks, bounds)

    def _publish(self, version: int, blocks: tuple[Block, ...], bounds: tuple[int, ...]) -> Iterator[Action]:
        job = self.job
        if job is None:
            raise LocalProtocolError("a plan needs a job")
        self._run = self._run or f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._check_exposure(job, blocks, bounds)
        start, digests = self._resume_point(blocks)
        self.recovery.seal.settle()
        joins = {seat.place: seat.join for seat in self.roster}
        cutting = self._cutting if self._cutting is not None and self._cutting.bounds == bounds else None
        pace = None if cutting is None else cutting.batch_s
        places = Places(job, blocks, bounds, self._described_as.footprints, joins, pace)
        self._training, self._evaluating = places.training, places.evaluating
        if cutting is not None:
            cutting.recompute(places.recompute)
            self._training.aim(cutting.to_fill(), more=job.owners_in_flight == "auto")
        plan = replace(self._plan_of(version, job, blocks, bounds, places), start_round=start, digests=digests)
        if start and self.record is not None:
            stored = self.record.bounds if self.record.bounds != bounds else ()
            kept = self.record.kept if job.optimizer.keeps else {}
            plan = replace(plan, stored=stored, kept=kept)
        self.plan = plan
        self._asides = Asides(peer.name for peer in plan.nodes)
        self._stalls = Stalls(job.recover.stalled_s if plan.may_set_aside else "never", job.owners)
        self._store(plan)
        self.board.planned(plan)
        if job.emulate.owners or job.emulate.nodes:
            self.board.notice(words(job))
        if self._training.limit < len(plan.active) or (places.recompute and job.recompute == "auto"):
            self.board.notice(str(places))
        self.phase, self._since, self._late = Phase.BUILDING, None, frozenset()
        for seat in self.roster:
            if self.recovery.seal.keeps_out(seat.place):
                seat.planned, seat.ready, seat.paused = False, False, NEW  # it waits for the next plan
            elif not seat.standby:
                seat.planned, seat.ready, seat.paused = True, False, 0
        for identity in self._everybody():
            yield Tell(identity, Publish(plan=plan))

    def _plan_of(
        self, version: int, job: Job, blocks: tuple[Block, ...], bounds: tuple[int, ...], places: Places
    ) -> Plan:
        """The plan of who is here, from the first round on."""
        owners = tuple(self._owner_peer(owner_name(index)) for index in range(job.owners))
        return Plan(
            version=version,
            run=self._run or "",
            job=job,
            blocks=blocks,
            outputs=self._described_as.outputs,
            bounds=bounds,
            aggregator=self.roster.peer(AGGREGATOR),
            nodes=tuple(self.roster.peer(node_name(hop)) for hop in range(job.nodes)),
            owners=owners,
            footprints=self._described_as.footprints,
            rooms=places.rooms,
            in_flight=places.training.most,
            recompute=tuple(memory.recompute for memory in places.parts),
            rates=self._rates_of(owners),
        )

    def restrict(self, rates: Mapping[str, Rates]) -> Iterator[Action]:
        """Learns what keys may send; tells those who look, where that has changed for an owner of the plan.

        Args:
            rates: By public key, of those that have limits.
        """
        if rates == self.rates:
            return
        before, self.rates, plan = self.rates, rates, self.plan
        if plan is None or self.phase in (Phase.RECOVERING, Phase.OVER):
            return  # the next plan has them
        changed = [peer for peer in plan.owners if rates.get(peer.public) != before.get(peer.public)]
        if not changed:
            return
        for peer in changed:
            now = rates.get(peer.public, "what the job allows")
            self.board.notice(f"the key of {peer.name} may send {now} from now on")
        self.plan = replace(plan, rates=self._rates_of(plan.owners))
        for seat in self.roster:
            if seat.planned and seat.join.role != "owner":
                yield Tell(seat.identity, Restrict(plan=plan.version, rates=self.plan.rates))

    def _rates_of(self, owners: tuple[Peer, ...]) -> dict[int, Rates]:
        return {index: self.rates[peer.public] for index, peer in enumerate(owners) if peer.public in self.rates}

    def _owner_peer(self, place: str) -> Peer:
        return Peer(place, "") if self.recovery.seal.keeps_out(place) else self.roster.peer(place)

    def _check_exposure(self, job: Job, blocks: tuple[Block, ...], bounds: tuple[int, ...]) -> None:
        try:
            check_exposure(job, blocks, bounds)
        except JobError as error:
            if job.cuts == "auto" and self._cutting is not None and self._cutting.text:  # why they are not solved
                raise JobError(f"{error}. {self._cutting.text}") from error
            raise

    def _store(self, plan: Plan) -> None:
        """Notes in the record that this plan may be known to somebody from now on."""
        if self.record is None:
            self.record = Record(
                run=plan.run, job=plan.job, bounds=plan.bounds, fingerprint=fingerprint(plan.blocks), committed={}
            )
        self.record.job, self.record.plan = plan.job, plan.version
        self.record.owners = plan.active if plan.job.privacy.secure_average else ()
        if self.folder is not None:
            write_record(self.folder, self.record)
            write_text(self.folder / "job.yaml", dump_job(plan.job).encode())
            self.board.log_to(self.folder)

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


def _in_pieces(described: Described, before: Job, now: Job) -> Described:
    """Gives what a micro-batch takes, where a description was of one of another size; bytes grow with the samples."""
    old, new = micro_samples(before), micro_samples(now)
    if old == new:
        return described

    def grown(nbytes: int) -> int:
        return -(-nbytes * new // old)

    prints = tuple(
        Footprint(grown(each.inputs), grown(each.outputs), grown(each.saved), each.writes)
        for each in described.footprints
    )
    return replace(described, footprints=prints)

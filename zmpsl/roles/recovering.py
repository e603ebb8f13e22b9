"""The manager and lost roles: everybody pauses, the lost one comes back or is left out, the round is begun again."""

from __future__ import annotations

import math
from collections.abc import Iterator

from zmpsl.errors import JobError, JoinError, PeerLostError
from zmpsl.job.fewer import with_nodes
from zmpsl.job.schema import Job
from zmpsl.messages import Join, Pause, Ping, Refused, Welcome
from zmpsl.plan import AGGREGATOR, check_cuts, node_name
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.asides import Stage
from zmpsl.roles.manager_state import ManagerState, Phase
from zmpsl.roles.roster import NEW, Seat, listed

__all__ = ["Recovering"]


class Recovering(ManagerState):
    """The part of the manager that deals with lost roles."""

    def _back(self, seat: Seat, join: Join) -> Iterator[Action]:
        """A member's connection was cut and is there again: what was said meanwhile may be lost."""
        seat.join = join
        yield Tell(seat.identity, Welcome(place=seat.place, job=self.job))
        yield from self._clear(seat)
        if self.plan is not None and seat.planned:
            yield from self._recover(f"{seat} was cut off from the manager for a moment")
            return
        if self.phase is Phase.DESCRIBING:
            self.phase = Phase.GATHERING
        yield from self._maybe_describe()
        yield from self._maybe_replan()

    def _clear(self, seat: Seat) -> Iterator[Action]:
        """Sees to it that a member that has joined, perhaps again, works on no plan."""
        if seat.join.plan:
            yield Tell(seat.identity, Pause(plan=max(seat.join.plan, self.plan.version if self.plan else 0)))
        else:
            seat.paused = NEW

    def expel(self, place: str, why: str) -> Iterator[Action]:
        """Sends a member away and goes on as if it were lost."""
        seat = self.roster.at(place)
        if seat is not None and self.phase is not Phase.OVER:
            yield Tell(seat.identity, Refused(exit_code=JoinError.exit_code, text=f"{place} {why}"))
            yield from self._gone(seat, why)

    def _make_room(self, join: Join) -> Iterator[Action]:
        """Somebody asks for a place that is taken, or for any where none is free: is who has it still there?"""
        job = self.job
        held = [seat for seat in self.roster if seat.join.role == join.role and not seat.standby]
        wanted = [seat for seat in self.roster if seat.place == join.place]
        if not join.place and job is not None:
            there_are = {"owner": job.owners, "compute": job.nodes, AGGREGATOR: 1}.get(join.role, 0)
            wanted = held if len(held) >= there_are else []
        for seat in wanted:
            yield Tell(seat.identity, Ping())
            if seat.unreachable_since is not None:
                yield from self._gone(seat, "is gone; another process takes its place")

    def _look_around(self, now: float) -> Iterator[Action]:
        """Looks at whose link broke, and at who says nothing any more."""
        for peer, text in self.recovery.due(now).items():
            yield from self._look_at(peer, text)
        yield from self._look_for_work(now)
        limit = self.job.recover.silent_s if self.job is not None else math.inf
        for seat in self.roster:
            waits = self.plan is None or not seat.planned or seat.paused  # it has nothing to do, and nothing to say
            if seat.heard_at is None or waits:
                seat.heard_at = now
            elif now - seat.heard_at > limit:
                how = f"has said nothing for {limit:g} s (recover.silent_s)"
                # It may wake up one day: then it must go.
                yield Tell(seat.identity, Refused(exit_code=PeerLostError.exit_code, text=f"{seat} {how}"))
                yield from self._gone(seat, how)

    def _look_for_work(self, now: float) -> Iterator[Action]:
        """Begins a round again in which nobody has anything to do."""
        job = self.job
        if job is None or self.phase not in (Phase.TRAINING, Phase.EVALUATING):
            return
        if self._standstill.stands((seat.place for seat in self.roster if seat.planned), now, job.recover.still_s):
            self._standstill.restart()
            how = f"nobody has had anything to do for {job.recover.still_s:g} s (recover.still_s)"
            yield from self._recover(f"{how}: something was lost on the way")

    def _keep_time(self, job: Job, now: float) -> Iterator[Action]:
        """Leaves out owners that take too long to train a round, while there are enough others."""
        limit = job.recover.round_s
        if limit is None or self.phase is not Phase.TRAINING:
            self._begun.clear()
            return
        # Who has given up its place must still come back in time; that it waits for one is not its fault.
        queued, passed = self._asides.at(Stage.QUEUED), now - self._kept_time_at
        busy = self._training.flying | self._asides.at(Stage.AWAY) | queued
        self._begun = {place: self._begun.get(place, now) + (passed if place in queued else 0.0) for place in busy}
        self._kept_time_at = now
        late = frozenset(place for place, begun in self._begun.items() if now - begun > limit)
        if not late:
            return
        how = f"{listed(late)} did not finish round {self.round + 1} within {limit:g} s (recover.round_s)"
        if not self.recovery.may_leave_out(job, self.roster.missing(job) | late):
            self._begun = dict.fromkeys(self._begun, now)
            self.board.notice(
                f"{how}; recover.quorum {job.recover.quorum:g} does not hold without, so it is waited for"
            )
            return
        self._late = late
        for seat in [seat for seat in self.roster if seat.place in late]:
            yield Tell(seat.identity, Refused(exit_code=PeerLostError.exit_code, text=how))
            self.roster.remove(seat.identity)
        yield from self._recover(f"{how} and is left out (recover.quorum {job.recover.quorum:g})")

    def _look_at(self, peer: str, text: str) -> Iterator[Action]:
        """A link to a peer broke. Is the peer gone, or was it only the link?"""
        seat = self.roster.at(peer)
        if seat is None or self.phase is Phase.OVER:
            return
        yield Tell(seat.identity, Ping())
        if seat.unreachable_since is not None:
            yield from self._gone(seat, f"is lost: {text}")
        elif self.phase is not Phase.RECOVERING:
            yield from self._recover(text)

    def _gone(self, seat: Seat, how: str) -> Iterator[Action]:
        if self.roster.remove(seat.identity) is None or self.phase is Phase.OVER:
            return
        if self.plan is None:
            self.phase = Phase.GATHERING
            self.board.notice(f"{seat} {how}; its place is free again")
        elif not seat.planned or self.phase is Phase.RECOVERING:
            self.board.notice(f"{seat} {how}", seat.place, seat.join.pid)
        else:
            yield from self._recover(f"{seat} {how}", seat)

    def _recover(self, reason: str, lost: Seat | None = None) -> Iterator[Action]:
        """Makes the plan void: everybody drops its work, whoever is lost may come back."""
        if self.job is None or self.plan is None:
            return
        attempts, settings = self.recovery.again(self.round, reason), self.job.recover
        if settings.wait_s == 0:
            yield from self.finish(PeerLostError.exit_code, reason, lost)
            return
        if attempts > settings.attempts:
            text = f"round {self.round + 1} was begun again {settings.attempts} times (recover.attempts); the last time"
            yield from self.finish(PeerLostError.exit_code, f"{text}: {reason}", lost)
            return
        place, pid = (lost.place, lost.join.pid) if lost is not None else ("", 0)
        self.board.notice(f"{reason}; round {self.round + 1} is begun again when everybody is here", place, pid)
        yield from self._pause_all()

    def _pause_all(self) -> Iterator[Action]:
        if self.phase is Phase.TRAINING and self.plan is not None:
            self.recovery.seal.close(self.plan)
        self.phase = Phase.RECOVERING
        self._since = None
        for seat in self.roster:
            seat.ready = False
            if seat.planned and self.plan is not None:
                yield Tell(seat.identity, Pause(plan=self.plan.version))
        yield from self._maybe_replan()

    def _maybe_replan(self, absent: frozenset[str] = frozenset()) -> Iterator[Action]:
        """Publishes the next plan once everybody is here and has dropped the work of the last."""
        plan, job = self.plan, self.job
        if self.phase is not Phase.RECOVERING or plan is None or job is None:
            return
        left_out = {peer.name for peer in plan.owners if not peer.endpoint}  # nobody waits for them any more
        if self.roster.missing(job) - absent - left_out - self._late:
            return
        if all(seat.paused >= plan.version for seat in self.roster):
            yield from self._publish(plan.version + 1, plan.blocks, self._bounds(plan.bounds))

    def _bounds(self, bounds: tuple[int, ...]) -> tuple[int, ...]:
        """Gives the cuts of the next plan: these, or the better ones."""
        better, self._better = self._better, None
        if better is None or self._cutting is None:
            return bounds
        self._cutting.take(better.bounds)
        return better.bounds

    def _wait(self, job: Job, waited_s: float) -> Iterator[Action]:
        """Somebody is lost: gives the place to a stand-by node after a while, and stops waiting in the end."""
        yield from self._stand_in(job, waited_s)
        if self.phase is Phase.RECOVERING and waited_s > job.recover.wait_s:
            yield from self._stop_waiting(job, self.roster.missing(job))

    def _may_go_on_without(self, job: Job) -> bool:
        """Tells whether a manager that follows a lost one may leave out or plan away who was lost with it."""
        missing = self.roster.missing(job)
        if not missing or not self._follows or self.phase is not Phase.GATHERING or missing <= self._absent:
            return False
        nodes_only = all(place.startswith("node-") for place in missing)
        return self.recovery.may_leave_out(job, missing) or bool(
            job.recover.fewer_nodes and nodes_only and self._nodes_left()
        )

    def _go_on_without(self, job: Job) -> Iterator[Action]:
        missing = self.roster.missing(job)
        self._since = None
        if self.recovery.may_leave_out(job, missing):
            self.board.notice(f"goes on without {listed(missing)} (recover.quorum {job.recover.quorum:g})")
            self._absent = frozenset(missing)
        else:
            nodes = self._nodes_left()
            yield from self._renumber(self._with_nodes(job, nodes), nodes)
        yield from self._maybe_describe()

    def _move(self, seat: Seat, place: str) -> Iterator[Action]:
        seat.place = place
        yield Tell(seat.identity, Welcome(place=place, job=self.job))

    def _stand_in(self, job: Job, waited_s: float) -> Iterator[Action]:
        nodes = sorted(place for place in self.roster.missing(job) if place.startswith("node-"))
        if not nodes or waited_s < job.recover.standby_after_s:
            return
        for place, seat in zip(nodes, self.roster.waiting(), strict=False):
            self.board.notice(f"{seat} takes the place of {place}")
            self.roster.shuffled()
            yield from self._move(seat, place)
        yield from self._maybe_describe()
        yield from self._maybe_replan()

    def _stop_waiting(self, job: Job, missing: set[str]) -> Iterator[Action]:
        stuck = {seat.place for seat in self.roster if self.plan is not None and seat.paused < self.plan.version}
        if missing and not stuck and self.recovery.may_leave_out(job, missing):
            self.board.notice(f"goes on without {listed(missing)} (recover.quorum {job.recover.quorum:g})")
            yield from self._maybe_replan(frozenset(missing))
            return
        nodes = self._nodes_left()
        if not stuck and job.recover.fewer_nodes and nodes and all(place.startswith("node-") for place in missing):
            yield from self._shrink(job, nodes)
            return
        who = f"{listed(missing)} did not come back" if missing else f"{listed(stuck)} did not answer"
        text = f"{self.recovery.reason}; {who} within {job.recover.wait_s:g} s (recover.wait_s)"
        yield from self.finish(PeerLostError.exit_code, text)

    def _shrink(self, job: Job, nodes: list[Seat]) -> Iterator[Action]:
        """Cuts the model anew for the compute nodes that are left; their parts come from the checkpoint."""
        if self.plan is None:
            return
        self._better = None
        fewer = self._with_nodes(job, nodes)
        yield from self._renumber(fewer, nodes)
        bounds = check_cuts(fewer, len(self.plan.blocks))
        if self._cutting is not None:
            try:
                yield from self._cutting.again(fewer)
                self.job = self._cutting.job
                if self._cutting.text:
                    self.board.notice(self._cutting.text)
            except JobError as error:
                self.board.notice(f"{error}; the cuts are even")
            bounds = self._cutting.bounds
        yield from self._publish(self.plan.version + 1, self.plan.blocks, bounds)
        if self.folder is not None and self._cutting is not None:
            self._cutting.keep(self.folder)

    def _with_nodes(self, job: Job, nodes: list[Seat]) -> Job:
        self.board.notice(f"goes on with {len(nodes)} of {job.nodes} compute nodes (recover.fewer_nodes)")
        return with_nodes(job, [int(seat.place.removeprefix("node-")) for seat in nodes])

    def _renumber(self, job: Job, nodes: list[Seat]) -> Iterator[Action]:
        self.job = job
        for hop, seat in enumerate(nodes):
            yield from self._move(seat, node_name(hop))

    def _nodes_left(self) -> list[Seat]:
        nodes = [seat for seat in self.roster if seat.join.role == "compute" and not seat.standby]
        return sorted(nodes, key=lambda seat: int(seat.place.removeprefix("node-")))

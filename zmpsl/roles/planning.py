"""Where the manager gets its cuts: profiles asked for, the exact solver, and what the split is expected to do.

    owner-0 measures the ends, and tells what a sample looks like  ->  one node per host measures the middle  ->  solve

Cuts change no result: training is bit for bit the same wherever the model is cut. Where the cuts are given, the same is
measured, and only what a round is expected to take follows from it. The profiles are kept with the run, for when it
goes on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from zmpsl.errors import JobError, LocalProtocolError
from zmpsl.job.fewer import with_nodes
from zmpsl.job.schema import Job
from zmpsl.messages import Profiled, Welcome
from zmpsl.plan import AGGREGATOR, Block, check_cuts, fingerprint, node_name, owner_name
from zmpsl.planner.from_job import measured_of
from zmpsl.planner.learned import Learned, learn
from zmpsl.planner.measured import Measured
from zmpsl.planner.pieces import Split, choose, in_pieces, mixes_samples, with_pieces
from zmpsl.planner.predict import Prediction, batch_s, owners_to_fill, predict
from zmpsl.planner.solution import Infeasible, Solution
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.admission import rooms_of
from zmpsl.roles.better_cuts import Better, better_cuts
from zmpsl.roles.gathered import Gathered
from zmpsl.roles.learning import Kept, with_links
from zmpsl.roles.roster import Roster, Seat
from zmpsl.roles.solving import cuts_of, solved
from zmpsl.stats import Stats

__all__ = ["CutPlanning"]


class CutPlanning:
    """Gathers profiles, then knows bounds and node order, and predicts rounds.

    Args:
        job: The job.
        blocks: The block list of its model.
        roster: The members, all there.
        given: Bounds of all parts where they are not to be solved.

    Attributes:
        bounds: Of all parts, once `solve` is through.
        solution: The split with its numbers, likewise; None where nothing could be measured.
        text: How the cuts came about, in words.
        batches: Batches of every owner in one round, by place; filled by the manager.
    """

    def __init__(self, job: Job, blocks: tuple[Block, ...], roster: Roster, given: tuple[int, ...] = ()) -> None:
        self.job = job
        self._given = given
        self.blocks = blocks
        self.roster = roster
        self.bounds: tuple[int, ...] = ()
        self.solution: Solution | None = None
        self.text = ""
        self.batches: dict[str, int] = {}
        self._profiles = Gathered()
        self._measured: Measured | None = None
        self._learned = Learned()
        self._hosts: dict[str, list[str]] = {}
        self._pieces = ""  # how many micro-batches a batch is cut into, in words, where the job left it open

    def start(self) -> Iterator[Action]:
        """Asks the first owner; where the job names a file, nobody is asked."""
        yield from self._profiles.start(self.job, self._at(owner_name(0)), self._nodes())

    def hear(self, seat: Seat, message: Profiled) -> Iterator[Action]:
        """Takes a profile; after the owner's asks one node of every host.

        Raises:
            RemoteProtocolError: It was not asked for.
        """
        if message.profile is None:
            self._give_up(f"{seat.place} could not measure ({message.text})")
        else:
            yield from self._profiles.hear(self.job, seat, message.profile, self._nodes)

    @property
    def complete(self) -> bool:
        """Whether all is known that can be."""
        return bool(self.bounds) or self._profiles.complete

    def solve(self) -> Iterator[Action]:
        """Solves the split, and tells nodes whose place in the chain it changes.

        Nodes keep the order of their places where one of them asked for its place by name, or the job names one;
        otherwise the order is part of what is solved.

        Raises:
            JobError: A profile is damaged or of something else, or no split fits.
        """
        if self.bounds:
            return
        if self._given:
            self._keep_given()
            return
        seats = self._nodes()
        # What the job says of node-0 holds for whoever has that place now.
        named = [*self.job.emulate.slow_down, *self.job.planning.named_nodes, *(seat.join.place for seat in seats)]
        fixed = bool(self.job.emulate.nodes) or any(name.startswith("node") for name in named)
        measured, self.solution = self._best(self._take(seats), fixed)
        pieces = self.solution.pieces
        self.bounds, _ = cuts_of(measured, self.solution)
        names = {piece.node: node_name(hop) for hop, piece in enumerate(pieces)}
        nodes = {
            names[node.name]: msgspec.structs.replace(node, name=names[node.name])
            for node in measured.nodes
            if node.name in names
        }
        self.text = "; ".join(filter(None, (self.solution.words, self._pieces)))
        if len(pieces) < len(seats):
            self._leave_out(sorted({seat.place for seat in seats} - set(names)), list(names), fixed)
        kept = tuple(nodes[name] for name in names.values())
        self._measured = msgspec.structs.replace(measured, job=self.job, nodes=kept)
        for seat in seats:
            before = seat.place
            if before in names:
                seat.place = names[before]
            else:
                self.roster.bench(seat)
            if seat.place != before:
                yield Tell(seat.identity, Welcome(place=seat.place, job=self.job))
        self._note_hosts()

    def _best(self, measured: Measured, fixed: bool) -> tuple[Measured, Solution]:
        """Solves; where no split fits, and the job allows it, with nodes that run forward again before backward."""
        try:
            measured = self._decide(measured, lambda one: cuts_of(one, solved(one, self.job, fixed)))
            return measured, solved(measured, self.job, fixed)
        except Infeasible:
            if self.job.recompute != "auto" or measured.recomputes:
                raise
            return self._best(measured.with_recompute(), fixed)

    def recompute(self, nodes: Collection[str]) -> None:
        """Takes in which nodes run forward again, now that it is known what fits."""
        if self._measured is not None:
            self._measured = self._measured.with_recompute(nodes)

    def batch_s(self, in_flight: int, recompute: Collection[str]) -> float | None:
        """Gives seconds per batch with so many owners in flight and nodes that run forward again, None if unknown."""
        if self._measured is None:
            return None
        order = [node.name for node in self._measured.nodes]
        return batch_s(self._measured.with_recompute(recompute), self.bounds, order, in_flight)

    def _leave_out(self, unused: list[str], used: list[str], fixed: bool) -> None:
        """Takes nodes without blocks out of the job; where no node is named, what it says of links is by position."""
        hops = [int(name.removeprefix("node-")) for name in used]
        self.job = with_nodes(self.job, hops if fixed else range(len(hops)))
        self.text += f"; without blocks, so out of the chain and standing by (optional_nodes): {', '.join(unused)}"

    def keep(self, folder: Path) -> None:
        """Leaves the profiles in the run's folder, so that rounds can be predicted when the run goes on."""
        owner = self._profiles.owner
        if owner is not None and self._measured is not None:
            nodes = {seat.place: self._profiles.of(seat) or owner for seat in self._nodes()}
            Kept(owner, nodes, self._learned.moved()).write(folder)

    def recall(self, folder: Path | None) -> None:
        """Takes up the given cuts with the profiles that the run was planned with, where there are any."""
        self.bounds = self._given
        self._settle()
        if folder is None:
            return
        try:
            kept = Kept.read(folder)
            nodes = {name: kept.nodes[name] for name in (node_name(hop) for hop in range(self.job.nodes))}
            measured = with_links(measured_of(self.job, kept.owner, nodes), kept.learned, self._places())
        except (KeyError, JobError):
            return  # older than this file, or another model, batch or number of nodes: nothing is predicted
        if kept.owner.fingerprint == fingerprint(self.blocks):
            self._learned = kept.learned
            self._use(measured)

    def learn(self, stats: Mapping[str, Stats], folder: Path | None) -> bool:
        """Takes in what members told at the end of a round: the next ones are predicted, and cut, with that.

        Returns:
            Whether there was news.
        """
        before, self._learned = self._learned, learn(self._learned, stats, self._places(), self.job.nodes)
        if self._measured is None or self._learned == before:
            return False
        self._measured = with_links(self._measured, self._learned, self._places())
        if folder is not None and self._learned.moved() != before.moved():
            self.keep(folder)
        return True

    def _places(self) -> dict[str, str]:
        """Host of every owner and node of the chain."""
        return {seat.place: seat.join.host for seat in self.roster if not seat.standby and seat.join.role != AGGREGATOR}

    def _keep_given(self) -> None:
        """Takes the cuts as they are; where nothing is known of the blocks, rounds are just not predicted."""
        self.bounds = self._given
        try:
            measured = self._take(self._nodes())
            if self._held_alike(measured):
                names = [node.name for node in measured.nodes]
                measured = self._decide(measured, lambda _: (self.bounds, names))
            self._use(measured)
            self.text = self._pieces
        except JobError as error:
            self.text = f"rounds are not predicted: {error}"
        self._settle()

    def _decide(self, measured: Measured, split: Split) -> Measured:
        """Says how many micro-batches a batch has from now on, where the job leaves it open; cuts the profiles so."""
        if self.job.train.micro_batches != "auto":
            return measured
        pieces, why = 1, "with batch normalisation more would change the model's statistics"
        if not mixes_samples(self.blocks):
            hosts: dict[str, list[str]] = {}
            for seat in self.roster:
                if not seat.standby and seat.join.role != AGGREGATOR:
                    name = "owner" if seat.join.role == "owner" else seat.place
                    hosts.setdefault(seat.join.host, []).append(name)
            pieces, why = choose(measured, split, hosts), "as measured"
        self._settle(pieces)
        self._pieces = f"train.micro_batches: auto takes {pieces} ({why})"
        self._profiles.cut(self.job)
        return in_pieces(measured, pieces)

    def _settle(self, pieces: int = 1) -> None:
        """Puts the number in the job, where it is still open."""
        if self.job.train.micro_batches == "auto":
            self.job = with_pieces(self.job, pieces)

    def _held_alike(self, measured: Measured) -> bool:
        return (measured.first_cut, measured.last_cut) == (self.bounds[1], self.bounds[-2])

    def _use(self, measured: Measured) -> None:
        """Predicts the given cuts, unless owners would hold other blocks than were measured on one."""
        if self._held_alike(measured):
            self._measured = measured
            self._note_hosts()

    def _note_hosts(self) -> None:
        for seat in self.roster:
            name = {"owner": "owner", "compute": seat.place}.get(seat.join.role)
            if name is not None and not seat.standby:
                self._hosts.setdefault(seat.join.host, []).append(name)

    def again(self, job: Job) -> Iterator[Action]:
        """Solves anew for the nodes that are left, from the profiles there are.

        Args:
            job: The job with the number of nodes that are left; they have their new places.

        Raises:
            JobError: No split fits, or there is no profile of a node that is left; `bounds` are even then.
        """
        self.job, self.bounds, self.solution, self._measured, self._hosts = job, (), None, None, {}
        self._learned = self._learned.moved()
        self.text, self._given = "", () if job.cuts == "auto" else check_cuts(job, len(self.blocks))
        if self._given:
            self._keep_given()
            return
        try:
            if self._profiles.owner is None or any(self._profiles.of(seat) is None for seat in self._nodes()):
                raise JobError("there is no profile of every compute node that is left")
            yield from self.solve()
        except JobError:
            self.bounds = check_cuts(job, len(self.blocks))
            raise

    def expect(self, in_flight: int | None = None, bounds: tuple[int, ...] = ()) -> Prediction | None:
        """Predicts a round with at most so many owners at a time; None where nothing is known or can be said."""
        batches = tuple(self.batches.get(owner_name(index), 0) for index in range(self.job.owners))
        if self._measured is None or min(batches) < 1:
            return None
        order = [node.name for node in self._measured.nodes]
        return predict(self._measured, bounds or self.bounds, order, batches, self._hosts, in_flight)

    def better(self, in_flight: int | None = None) -> Better | None:
        """Finds solved cuts that, as far as is known by now, would make rounds clearly shorter."""
        if self._measured is None or self.job.cuts != "auto":
            return None
        return better_cuts(self._measured, self.bounds, lambda bounds: self.expect(in_flight, bounds))

    def take(self, bounds: tuple[int, ...]) -> None:
        """Takes other cuts for nodes in their places; what codecs make of other tensors is not known."""
        self.bounds, self._learned = bounds, self._learned.moved()
        if self._measured is not None:
            self._measured = msgspec.structs.replace(self._measured, packing={})

    def to_fill(self) -> float:
        """Gives how many owners fill the chain, infinitely many where nothing is known or the cuts are given."""
        if self._measured is None or self.solution is None:
            return math.inf
        return owners_to_fill(self._measured, self.bounds, [node.name for node in self._measured.nodes])

    def _give_up(self, why: str) -> None:
        self.bounds = self._given or check_cuts(self.job, len(self.blocks))
        so = "rounds are not predicted" if self._given else "the cuts are even"
        if self.job.train.micro_batches == "auto":
            so += ", and batches stay whole"
        self._settle()
        self.text = f"{why}; {so}. planning.profile takes a profile from a file"

    def _nodes(self) -> list[Seat]:
        return [self._at(node_name(hop)) for hop in range(self.job.nodes)]

    def _at(self, place: str) -> Seat:
        seat = self.roster.at(place)
        if seat is None:
            raise LocalProtocolError(f"{place} is planned for before it has joined")
        return seat

    def _take(self, seats: list[Seat]) -> Measured:
        owner, ours = self._profiles.owner, fingerprint(self.blocks)
        if owner is None or owner.fingerprint != ours:
            raise JobError(
                f"the profile is of a model with fingerprint {owner.fingerprint if owner else 'unknown'}, that of"
                f" {self.job.model.name} is {ours}: profile the job's model"
            )
        found = {seat.place: self._profiles.of(seat) for seat in seats}
        measured = measured_of(self.job, owner, {place: each for place, each in found.items() if each is not None})
        rooms = dict(zip(found, rooms_of(self.job, {seat.place: seat.join for seat in seats}), strict=True))
        nodes = tuple(
            node if node.memory_bytes is not None else msgspec.structs.replace(node, memory_bytes=rooms[node.name])
            for node in measured.nodes
        )
        # As many owners as fit are in flight, so the cuts must leave room for one; or for those the job asks for.
        replicas = 1 if self.job.owners_in_flight == "auto" else self.job.owners_in_flight
        measured = msgspec.structs.replace(measured, nodes=nodes, replicas=replicas)
        if self.job.recompute == "always":
            measured = measured.with_recompute()
        return with_links(measured, self._learned, self._places())

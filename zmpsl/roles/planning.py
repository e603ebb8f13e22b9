"""Where the manager gets its cuts: profiles asked for, the exact solver, and what the split is expected to do.

    owner-0 measures the ends, and tells what a sample looks like  ->  one node per host measures the middle  ->  solve

Nodes on one host count as equal, so the first measures for all. Nobody else works meanwhile, so the figures are those
of a quiet machine. Cuts change no result: training is bit for bit the same wherever the model is cut. Where the cuts
are given, the same is measured, and only what a round is expected to take follows from it. The profiles are kept with
the run, for when it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from zmpsl.errors import JobError, LocalProtocolError, RemoteProtocolError
from zmpsl.job.fewer import with_nodes
from zmpsl.job.schema import Job
from zmpsl.messages import Measure, Profiled, Welcome
from zmpsl.plan import AGGREGATOR, Block, check_cuts, fingerprint, micro_samples, node_name, owner_name
from zmpsl.planner.learned import Learned, learn
from zmpsl.planner.measured import Measured, MeasuredNode, link_of
from zmpsl.planner.pieces import Split, choose, in_pieces, mixes_samples, with_pieces
from zmpsl.planner.predict import Prediction, batch_s, owners_to_fill, predict
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.solution import Infeasible, Solution
from zmpsl.profiles import Profile, cut_profile, read_profile
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.admission import rooms_of
from zmpsl.roles.better_cuts import Better, better_cuts
from zmpsl.roles.learning import Kept, with_links
from zmpsl.roles.roster import Roster, Seat
from zmpsl.roles.solving import cuts_of, solved
from zmpsl.stats import Stats

__all__ = ["CutPlanning", "measured_of"]


def measured_of(job: Job, owner: Profile, nodes: dict[str, Profile]) -> Measured:
    """Puts profiles together with what the job says of nodes and links.

    Args:
        job: The job.
        owner: Profile of an owner's ends.
        nodes: Profile of each compute node, in hop order.

    Raises:
        JobError: A profile is damaged or of something else.
    """
    plan = job.planning
    node_link = None if plan.node_bytes_per_s is None else NodeLink(plan.node_bytes_per_s, plan.latency_s)
    owner_link = None if plan.owner_bytes_per_s is None else NodeLink(plan.owner_bytes_per_s, plan.latency_s)
    found = tuple(
        _imitated(
            job, hop, MeasuredNode(name, profile, plan.node_memory.get(name), node_link, "planning.node_bytes_per_s")
        )
        for hop, (name, profile) in enumerate(nodes.items())
    )
    return Measured(job, found, owner, owner_link, "planning.owner_bytes_per_s")


def _imitated(job: Job, hop: int, node: MeasuredNode) -> MeasuredNode:
    """Gives the node as slow, and its link and memory as small, as the job has it."""
    emulate = job.emulate
    kind, factor = emulate.node(hop), emulate.slow_down.get(node.name, 1.0)
    if kind is not None:
        memory = node.memory_bytes if kind.memory_bytes is None else kind.memory_bytes
        link = link_of(kind, emulate.time_scale)
        node = msgspec.structs.replace(node, memory_bytes=memory, link=link, link_from="imitated")
        factor *= kind.slow_down / emulate.time_scale
    slowed = msgspec.structs.replace(node.profile, slow_down=node.profile.slow_down * factor)
    return msgspec.structs.replace(node, profile=slowed)


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
        self._owner: Profile | None = None
        self._by_host: dict[str, Profile | None] = {}
        self._measured: Measured | None = None
        self._learned = Learned()
        self._hosts: dict[str, list[str]] = {}
        self._pieces = ""  # how many micro-batches a batch is cut into, in words, where the job left it open

    def start(self) -> Iterator[Action]:
        """Asks the first owner; where the job names a file, nobody is asked."""
        if self.job.planning.profile is not None:
            found = read_profile(Path(self.job.planning.profile))
            self._owner = cut_profile(found, self.job, micro_samples(self.job))
            self._by_host = dict.fromkeys((seat.join.host for seat in self._nodes()), self._owner)
            return
        yield Tell(self._at(owner_name(0)).identity, Measure(job=self.job))

    def hear(self, seat: Seat, message: Profiled) -> Iterator[Action]:
        """Takes a profile; after the owner's asks one node of every host.

        Raises:
            RemoteProtocolError: It was not asked for.
        """
        profile = message.profile
        if profile is None:
            self._give_up(f"{seat.place} could not measure ({message.text})")
        elif self._owner is None and seat.place == owner_name(0):
            self._owner = profile
            for node in self._nodes():
                if node.join.host not in self._by_host:
                    self._by_host[node.join.host] = None
                    shape, dtype = profile.input_shape, profile.input_dtype
                    yield Tell(node.identity, Measure(job=self.job, input_shape=shape, input_dtype=dtype))
        elif self._owner is not None and seat.join.role == "compute" and self._by_host.get(seat.join.host, "") is None:
            self._by_host[seat.join.host] = profile
        else:
            raise RemoteProtocolError(f"{seat.place} sends a profile nobody asked it for")

    @property
    def complete(self) -> bool:
        """Whether all is known that can be."""
        if self.bounds:
            return True
        return self._owner is not None and bool(self._by_host) and None not in self._by_host.values()

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
        if self._owner is not None and self._measured is not None:
            nodes = {seat.place: self._by_host.get(seat.join.host) or self._owner for seat in self._nodes()}
            Kept(self._owner, nodes, self._learned.moved()).write(folder)

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
        self._owner = self._cut_all(self._owner)
        self._by_host = {host: self._cut_all(each) for host, each in self._by_host.items()}
        return in_pieces(measured, pieces)

    def _cut_all(self, profile: Profile | None) -> Profile | None:
        return None if profile is None else cut_profile(profile, self.job, micro_samples(self.job))

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
            if self._owner is None or any(self._by_host.get(seat.join.host) is None for seat in self._nodes()):
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
        owner, ours = self._owner, fingerprint(self.blocks)
        if owner is None or owner.fingerprint != ours:
            raise JobError(
                f"the profile is of a model with fingerprint {owner.fingerprint if owner else 'unknown'}, that of"
                f" {self.job.model.name} is {ours}: profile the job's model"
            )
        found = {seat.place: self._by_host.get(seat.join.host) for seat in seats}
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

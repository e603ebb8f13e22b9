"""From profiles to the planner's values: the split problem of a job on its real nodes, and the chain of a split.

All seconds are for one whole batch. A profile is for one micro-batch of b samples, so its seconds count m times, m
being the micro-batches of a batch; an update counts once. Memory is what a node of zmpsl needs, or, with the memory
model `paper`, the d_j of MP-SL (2402.00208) eq. (8): K * (weights + output activations).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from zmpsl.errors import JobError
from zmpsl.job.emulation import NodeClass, OwnerClass, PartSeconds
from zmpsl.job.schema import Job
from zmpsl.plan import held_by_nodes, micro_samples, node_name, owner_name
from zmpsl.planner.learned import Packing
from zmpsl.planner.problem import BlockCost, BlockTime, CutCost, NodeLink, NodeSpec, Problem
from zmpsl.planner.terms import Chain, Owners, PartTime, Transfers
from zmpsl.profiles import BlockProfile, Profile, check_profile, optimizer_name, require

__all__ = [
    "LOOPBACK",
    "Measured",
    "MeasuredNode",
    "chain_of",
    "link_of",
    "own_link",
    "own_link_from",
    "own_s",
    "micro_samples",
    "owners_of",
    "packings_of",
    "problem_of",
    "transfers_of",
]

# What a link is taken for where nobody says and nobody measured: TCP between two processes of one machine, with our own
# work on a message.
LOOPBACK = NodeLink(1e9, 2e-4)
# The accumulator of a float32 state holds two float64 for every element.
ACCUMULATOR = 4


class MeasuredNode(Struct, frozen=True):
    """A compute node with its profile; `memory_bytes` and `link` are None where there is no limit and no news.

    `link_from` says where the link's figures are from; `recompute` whether it runs forward again before backward.
    """

    name: str
    profile: Profile
    memory_bytes: float | None = None
    link: NodeLink | None = None
    link_from: str = ""
    recompute: bool = False


class Measured(Struct, frozen=True):
    """All that is known before a job is cut.

    Attributes:
        job: The job; its first and last cut, batch size, micro-batches and memory model count.
        nodes: The compute nodes.
        owner: Profile of the first and last part on a data owner.
        owner_link: An owner's link, both ways; None is what it measured to itself, else `LOOPBACK`.
        owner_link_from: Where its figures are from.
        owner_links: Links of single owners as they were measured, by name, where `owner_link` is None.
        packing: What codecs make of tensors, by link and direction of the chain, as `owner>node-0`; empty is nothing.
        replicas: Replicas a node holds at a time; None is one per owner.

    Raises:
        JobError: A profile is damaged, or of something else than this job; the message names node and block.
    """

    job: Job
    nodes: tuple[MeasuredNode, ...]
    owner: Profile
    owner_link: NodeLink | None = None
    owner_link_from: str = ""
    owner_links: dict[str, NodeLink] = {}
    packing: dict[str, Packing] = {}
    replicas: int | None = None

    def __post_init__(self) -> None:
        if not self.nodes:
            raise JobError("no compute node has been profiled; give the profile of at least one")
        check_profile(self.owner, "owner")
        first, last, samples = self.first_cut, self.last_cut, micro_samples(self.job)
        optimizer = optimizer_name(self.job.optimizer)
        ends = [*range(first), *range(last, self.owner.model_blocks)]
        require(self.owner, "owner", self.owner.fingerprint, samples, optimizer, ends)
        for node in self.nodes:
            where = f"node {node.name!r}"
            check_profile(node.profile, where)
            required = range(first, last)
            require(node.profile, where, self.owner.fingerprint, samples, optimizer, required)

    @property
    def first_cut(self) -> int:
        """First block that a node may hold."""
        return self._middle.start

    @property
    def last_cut(self) -> int:
        """First block of the owners' last part."""
        return self._middle.stop

    @property
    def _middle(self) -> range:
        return held_by_nodes(self.job, self.owner.model_blocks)

    @property
    def micro_batches(self) -> int:
        """Pieces a batch is cut into."""
        return min(self.job.train.pieces, self.job.train.batch_size)

    @property
    def in_flight(self) -> int:
        """Micro-batches of one owner whose activations a node keeps at a time."""
        gpipe = self.job.train.schedule == "gpipe"
        return self.micro_batches if gpipe else min(self.micro_batches, self.job.parts)

    @property
    def recomputes(self) -> bool:
        """Whether all nodes run forward again before backward, instead of keeping activations."""
        return all(node.recompute for node in self.nodes)

    def with_recompute(self, nodes: Collection[str] | None = None) -> Measured:
        """Gives the same with nodes that run forward again: those named, or all."""
        return replace(
            self,
            nodes=tuple(replace(node, recompute=nodes is None or node.name in nodes) for node in self.nodes),
        )

    def block(self, index: int) -> BlockProfile:
        """Gives a block's bytes, which are the same on every device."""
        found = self.nodes[0].profile.blocks.get(index) or self.owner.blocks.get(index)
        if found is None:
            raise JobError(f"block {index} is in no profile")
        return found


def problem_of(measured: Measured) -> Problem:
    """Gives the split problem of a job: blocks between the owners' parts, on the nodes as they were measured.

    Each node's own median seconds count, its fixed seconds per task, and the link it was given.

    Raises:
        JobError: A number cannot be; the message names block, cut or node.
    """
    job, first, last = measured.job, measured.first_cut, measured.last_cut
    blocks, m = [], measured.micro_batches
    for index in range(first, last):
        one = measured.block(index)
        time = _times(measured.nodes[0].profile, [one], m, measured.nodes[0].recompute)[0]
        need = _memory(measured, one)
        blocks.append(
            BlockCost(one.name, time.forward_s, time.backward_s, time.update_s, need, float(one.parameter_bytes))
        )
    everything = math.fsum(measured.block(index).parameter_bytes for index in range(measured.owner.model_blocks))
    return Problem(
        tuple(blocks),
        tuple(_spec(measured, node) for node in measured.nodes),
        tuple(_cut(measured, index) for index in range(first, last + 1)),
        objective=job.planning.objective,
        first_block=first,
        model_parameter_bytes=everything,
    )


def chain_of(measured: Measured, bounds: Sequence[int], order: Sequence[str]) -> Chain:
    """Gives the chain that a split makes.

    Args:
        measured: What was measured.
        bounds: Of all P parts, P + 1 block numbers.
        order: Names of the nodes, in hop order.
    """
    nodes = {node.name: node for node in measured.nodes}
    pairs = zip(order, range(1, len(bounds) - 2), strict=True)
    parts = tuple(
        _part(
            nodes[name].profile, range(bounds[p], bounds[p + 1]), measured.micro_batches, again=nodes[name].recompute
        )
        for name, p in pairs
    )  # fmt: skip
    links = tuple(nodes[name].link or own_link(nodes[name].profile) for name in order[1:])
    return Chain(parts, links)


def owners_of(measured: Measured, batches: int | tuple[int, ...]) -> Owners:
    """Gives the owners with their own parts and links; `batches` are those of a whole round, of all or of each."""
    m, count = measured.micro_batches, measured.owner.model_blocks
    ends = (
        _part(measured.owner, range(measured.first_cut), m),
        _part(measured.owner, range(measured.last_cut, count), m, back=0),
    )
    emulate = measured.job.emulate
    rows = []
    for index in range(measured.job.owners):
        kind = emulate.owner(index)
        by = emulate.slow_down.get(owner_name(index), emulate.slow_down.get("owner", 1.0))
        if kind is None:
            link = measured.owner_link or measured.owner_links.get(owner_name(index)) or own_link(measured.owner)
            rows.append((*(_slower(part, by) for part in ends), link))
            continue
        by *= kind.slow_down / emulate.time_scale
        each = (
            _slower(part, by) if given is None else _slower(_given(given), 1 / emulate.time_scale)
            for part, given in zip(ends, (kind.first, kind.last), strict=True)
        )
        rows.append((*each, link_of(kind, emulate.time_scale)))
    first, last, links = zip(*rows, strict=True)
    return Owners(measured.job.owners, first, last, links, batches=batches)


def own_s(measured: Measured) -> float:
    """Gives the seconds of a processor that a batch takes on an owner, however slow a device it imitates."""
    first, last = range(measured.first_cut), range(measured.last_cut, measured.owner.model_blocks)
    m = measured.micro_batches
    parts = _part(measured.owner, first, m), _part(measured.owner, last, m, back=0)
    return math.fsum(part.all_s for part in parts) / measured.owner.slow_down


def own_link(profile: Profile) -> NodeLink:
    """Gives a device's link to itself as measured, for want of any news of its links to others."""
    cost = profile.messages
    # What was too little to be told from nothing is taken for 100 GB/s.
    return LOOPBACK if cost is None else NodeLink(1 / max(cost.transit_s_per_byte, 1e-11), cost.transit_s)


def own_link_from(profile: Profile) -> str:
    """Says where the figures of `own_link` are from."""
    return "taken for loopback" if profile.messages is None else f"measured on {profile.host}, to itself"


def link_of(kind: OwnerClass | NodeClass, time_scale: float = 1.0) -> NodeLink:
    """Gives the link of a class of devices, in seconds of a run with that scale; jitter delays by half on average."""
    rate = LOOPBACK.bytes_per_s if kind.bytes_per_s is None else kind.bytes_per_s * time_scale
    return NodeLink(rate, (kind.latency_s + kind.jitter_s / 2) / time_scale)


def _given(part: PartSeconds) -> PartTime:
    return PartTime(part.forward_s, part.backward_s, part.update_s)


def transfers_of(measured: Measured, bounds: Sequence[int]) -> Transfers:
    """Gives what crosses the cuts of a split in one batch, packed where that is known, and the bytes of every part."""
    # Gradients are as large as activations, before any codec.
    cuts = [float(measured.micro_batches * measured.block(cut - 1).output_bytes) for cut in bounds[1:-1]]
    forward, backward = packings_of(measured, len(cuts) - 1)
    parts = [range(start, stop) for start, stop in pairwise(bounds)]
    sizes = tuple(math.fsum(measured.block(index).state_bytes for index in part) for part in parts)
    return Transfers(
        tuple(size * packing.ratio for size, packing in zip(cuts, forward, strict=True)),
        tuple(size * packing.ratio for size, packing in zip(cuts, backward, strict=True)),
        sizes,
    )


def packings_of(measured: Measured, nodes: int) -> tuple[list[Packing], list[Packing]]:
    """Gives what codecs do at every cut of a chain of so many nodes: to activations, and to gradients."""
    places = ["owner", *(node_name(hop) for hop in range(nodes)), "owner"]
    there = [measured.packing.get(f"{a}>{b}", Packing()) for a, b in pairwise(places)]
    return there, [measured.packing.get(f"{b}>{a}", Packing()) for a, b in pairwise(places)]


def _times(profile: Profile, blocks: Sequence[BlockProfile], m: int, again: bool = False) -> list[BlockTime]:
    """Gives seconds of whole batches; with `again` backward runs forward once more."""
    by = profile.slow_down
    return [
        BlockTime(
            by * m * one.forward.median_s,
            by * m * (one.backward.median_s + again * one.forward.median_s),
            by * one.update.median_s,
        )
        for one in blocks
    ]


def _fixed_s(profile: Profile, m: int) -> float:
    """What comes on top of a batch's forward, and of its backward: m tasks, and half a step each."""
    return profile.slow_down * (m * profile.task_s + profile.step_s / 2)


def _part(profile: Profile, indices: range, m: int, back: int = 1, again: bool = False) -> PartTime:
    """Sums a part's blocks; backward is a task of its own, but not in the model's last part (`back` 0)."""
    times = _times(profile, [profile.blocks[index] for index in indices], m, again)
    tasks = profile.slow_down * m * profile.task_s
    return PartTime(
        tasks + math.fsum(time.forward_s for time in times),
        back * tasks + math.fsum(time.backward_s for time in times),
        profile.slow_down * profile.step_s + math.fsum(time.update_s for time in times),
    )


def _slower(part: PartTime, factor: float) -> PartTime:
    return PartTime(factor * part.forward_s, factor * part.backward_s, factor * part.update_s)


def _spec(measured: Measured, node: MeasuredNode) -> NodeSpec:
    blocks = [node.profile.blocks[index] for index in range(measured.first_cut, measured.last_cut)]
    m = measured.micro_batches
    times = _times(node.profile, blocks, m, node.recompute)
    return NodeSpec(
        node.name, memory_bytes=node.memory_bytes, overhead_s=_fixed_s(node.profile, m), link=node.link,
        times=tuple(times), max_share=measured.job.privacy.max_share,
        max_blocks=measured.job.planning.most_blocks(node.name),
        optional=measured.job.planning.may_stay_unused(node.name),
    )  # fmt: skip


def _memory(measured: Measured, block: BlockProfile) -> float:
    """Bytes a node needs for one block.

    Base and accumulator once; weights, gradients, optimiser state and what autograd keeps for every replica, or where
    all nodes run forward again for the one that is being worked on.
    """
    if measured.job.planning.memory_model == "paper":
        output = measured.micro_batches * block.output_bytes
        return float(measured.job.owners * (block.parameter_bytes + output))
    replicas = measured.replicas or measured.job.owners
    replica = block.state_bytes + block.parameter_bytes + block.optimizer_bytes
    saved = block.saved_bytes if measured.recomputes else replicas * measured.in_flight * block.saved_bytes
    return float((1 + ACCUMULATOR) * block.state_bytes + replicas * replica + saved)


def _cut(measured: Measured, cut: int) -> CutCost:
    """What crosses a cut, and the buffers it takes: every micro-batch in flight, received or not yet sent.

    Where nodes run forward again, they keep what they have received besides.
    """
    size = measured.block(cut - 1).output_bytes
    batch = float(measured.micro_batches * size)
    paper = measured.job.planning.memory_model == "paper"
    buffers = 0.0 if paper else float((measured.replicas or measured.job.owners) * measured.in_flight * size)
    return CutCost(batch, batch, (1 + measured.recomputes) * buffers)

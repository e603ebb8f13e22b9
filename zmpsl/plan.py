"""The plan: which blocks run where. Frozen values, published by the manager and the same on every role.

Parts count from 0 to P - 1 (the paper's 1 to P): part 0 and part P - 1 live on every data owner, part p on compute
node p - 1. A part is the half-open block range [bounds[p], bounds[p + 1]).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise

import msgspec
from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.job.schema import Job

__all__ = [
    "AGGREGATOR",
    "Activation",
    "Block",
    "Entry",
    "Footprint",
    "Peer",
    "Plan",
    "Rates",
    "check_cuts",
    "check_exposure",
    "even_cuts",
    "fingerprint",
    "micro_samples",
    "held_by_nodes",
    "middle_blocks",
    "node_name",
    "owner_name",
]

AGGREGATOR = "aggregator"


def owner_name(index: int) -> str:
    """Gives the place name of data owner `index`, counted from 0."""
    return f"owner-{index}"


def node_name(hop: int) -> str:
    """Gives the place name of the compute node at `hop`, counted from 0."""
    return f"node-{hop}"


class Entry(Struct, frozen=True, array_like=True):
    """One tensor of a block's state: its key inside the block, dtype name, shape, and whether it is trained."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product


class Block(Struct, frozen=True, array_like=True):
    """What a plan must know of one atomic block: the name of its class and its state, no code."""

    kind: str
    entries: tuple[Entry, ...]

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(entry.elements for entry in self.entries if entry.trained)


class Footprint(Struct, frozen=True, array_like=True):
    """Bytes that one micro-batch has in a block: its input, its output, and what the block saves for backward.

    With `writes` the block's forward writes its weights, so that it cannot be repeated.
    """

    inputs: int
    outputs: int
    saved: int
    writes: bool = False


class Activation(Struct, frozen=True, array_like=True):
    """What a block puts out for one sample: dtype name, and shape without the batch."""

    dtype: str
    shape: tuple[int, ...]


class Peer(Struct, frozen=True, array_like=True):
    """A role's place in the plan, the address of its PULL socket, and its public key where links are protected."""

    name: str
    endpoint: str
    public: str = ""


class Rates(Struct, frozen=True, array_like=True):
    """What an owner may send to one role at most, per second; None for any."""

    bytes_per_s: float | None = None
    messages_per_s: float | None = None

    def __str__(self) -> str:
        said = [("bytes/s", self.bytes_per_s), ("messages/s", self.messages_per_s)]
        return ", ".join(f"{rate:,.10g} {unit}" for unit, rate in said if rate is not None)


class Plan(Struct, frozen=True, kw_only=True):
    """One published plan.

    Attributes:
        version: Counts up with every plan of a run; travels with every task.
        run: Identity of the run.
        job: The job with all defaults.
        blocks: Summary of the whole model.
        outputs: What each block puts out; empty where that could not be found out.
        bounds: Block indices, P + 1 of them, from 0 to the number of blocks.
        aggregator: Where the owners' parts are averaged.
        nodes: The chain, in hop order.
        owners: The data owners, by index; one that is left out has no endpoint.
        start_round: First round to train; above 0 when a run is resumed.
        digests: Digest of every role's state at `start_round`, empty for a fresh start.
        stored: The bounds under which that state was stored, where they are not this plan's.
        footprints: Of every block, for one micro-batch; empty where they are not known.
        rooms: Bytes each compute node has for its part, by hop; empty where there is no limit.
        in_flight: Most owners that train at a time; 0 for all.
        recompute: Whether each compute node computes activations again instead of keeping them; empty for none.
        kept: With `optimizer.state: keep`, the round whose optimiser state counts, by owner; no owner that has none.
        rates: What the owners' keys may send, by owner; no owner whose key has no limits.
    """

    version: int
    run: str
    job: Job
    blocks: tuple[Block, ...]
    outputs: tuple[Activation, ...] = ()
    bounds: tuple[int, ...]
    aggregator: Peer
    nodes: tuple[Peer, ...]
    owners: tuple[Peer, ...]
    start_round: int = 0
    digests: dict[str, str] = {}
    stored: tuple[int, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    rooms: tuple[int | None, ...] = ()
    in_flight: int = 0
    recompute: tuple[bool, ...] = ()
    kept: dict[int, int] = {}
    rates: dict[int, Rates] = {}

    @property
    def may_set_aside(self) -> bool:
        """Whether a stalled owner's place may go to another one: whether somebody ever waits for a place."""
        stalled_s, thin = self.job.recover.stalled_s, self.job.emulate.thin
        return 0 < self.in_flight < len(self.active) and stalled_s != "never" and not thin

    @property
    def parts(self) -> int:
        """Number of parts P."""
        return len(self.bounds) - 1

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the data owners that take part."""
        return tuple(index for index, peer in enumerate(self.owners) if peer.endpoint)

    def takes_part(self, owner: int) -> bool:
        """Tells whether there is an owner of that index and it takes part."""
        return owner < len(self.owners) and bool(self.owners[owner].endpoint)

    def blocks_of(self, part: int) -> range:
        """Gives the block indices of a part."""
        return range(self.bounds[part], self.bounds[part + 1])

    def entering(self, part: int) -> Activation | None:
        """Gives what enters a part from the one before it, None where that is not known."""
        return self.outputs[self.bounds[part] - 1] if len(self.outputs) == len(self.blocks) else None

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Everybody with a place."""
        return (self.aggregator, *self.nodes, *self.owners)

    def parameters_of(self, part: int) -> int:
        """Gives the number of trained parameters of a part."""
        return sum(self.blocks[index].parameters for index in self.blocks_of(part))


def fingerprint(blocks: tuple[Block, ...]) -> str:
    """Gives a short digest of a block list: class names, state keys, shapes and dtypes.

    Two roles whose imports give different fingerprints would train different models.
    """
    return sha256(msgspec.json.encode(blocks)).hexdigest()[:16]


def micro_samples(job: Job) -> int:
    """Gives the samples of a micro-batch, the larger ones where they differ by one."""
    return -(-job.train.batch_size // min(job.train.pieces, job.train.batch_size))


def middle_blocks(job: Job, blocks: int) -> range:
    """Gives the blocks that compute nodes hold where the job does not list its cuts.

    Args:
        job: Gives number of nodes, first and last cut.
        blocks: Number of blocks of the model.

    Raises:
        JobError: There are fewer blocks between the cuts than compute nodes.
    """
    first = job.first_cut if job.first_cut is not None else 1
    last = job.last_cut if job.last_cut is not None else blocks - 1
    if last - first < job.nodes or not 1 <= first < last < blocks:
        raise JobError(
            f"cuts: {job.cuts}: model {job.model.name} has {blocks} blocks; between first_cut {first} and last_cut"
            f" {last} lie {max(last - first, 0)}, too few for {job.nodes} compute nodes; use fewer nodes or a deeper"
            " model"
        )
    return range(first, last)


def held_by_nodes(job: Job, blocks: int) -> range:
    """Gives the blocks that compute nodes hold, also where the job lists its cuts.

    Raises:
        JobError: There are too few.
    """
    return middle_blocks(job, blocks) if isinstance(job.cuts, str) else range(job.cuts[0], job.cuts[-1])


def even_cuts(job: Job, blocks: int) -> tuple[int, ...]:
    """Deals the blocks between first and last cut evenly to the compute nodes, the earlier ones taking the rest.

    Args:
        job: Gives number of nodes, first and last cut.
        blocks: Number of blocks of the model.

    Returns:
        The P - 1 cuts: the first block of parts 1 to P - 1.

    Raises:
        JobError: There are fewer blocks between the cuts than compute nodes.
    """
    middle = middle_blocks(job, blocks)
    share, rest = divmod(len(middle), job.nodes)
    cuts = [middle.start]
    for hop in range(job.nodes):
        cuts.append(cuts[-1] + share + (hop < rest))
    return tuple(cuts)


def check_exposure(job: Job, blocks: Sequence[Block], bounds: Sequence[int]) -> None:
    """Checks that no compute node holds more of the model than `privacy.max_share` and `planning.max_blocks` allow.

    Raises:
        JobError: One does.
    """
    limit, everything = job.privacy.max_share, sum(block.parameters for block in blocks)
    for hop, (start, stop) in enumerate(pairwise(bounds[1:-1])):
        held = sum(block.parameters for block in blocks[start:stop])
        if limit is not None and held > limit * everything:
            raise JobError(
                f"{node_name(hop)} would hold {held} of {everything} parameters ({held / everything:.1%}; blocks"
                f" {start} to {stop - 1}), more than privacy.max_share {limit:.1%}; use cuts: auto, more compute"
                " nodes, or other cuts"
            )
        most = job.planning.most_blocks(node_name(hop))
        if most is not None and stop - start > most:
            raise JobError(
                f"{node_name(hop)} would hold {stop - start} blocks ({start} to {stop - 1}), more than"
                f" planning.max_blocks {most}; use cuts: auto, more compute nodes, or other cuts"
            )


def check_cuts(job: Job, blocks: int) -> tuple[int, ...]:
    """Gives the bounds of all parts for the job's cuts; for `auto`, which is solved, those of an even split.

    Returns:
        P + 1 block indices from 0 to `blocks`.

    Raises:
        JobError: The cuts do not rise strictly inside the model, or their number is not P - 1.
    """
    cuts = even_cuts(job, blocks) if isinstance(job.cuts, str) else tuple(job.cuts)
    if len(cuts) != job.parts - 1:
        raise JobError(
            f"cuts: {list(cuts)} makes {len(cuts) + 1} parts, but {job.nodes} compute nodes need {job.parts - 1} cuts"
        )
    bounds = (0, *cuts, blocks)
    if any(low >= high for low, high in pairwise(bounds)):
        raise JobError(
            f"cuts: {list(cuts)} must rise strictly between 0 and {blocks}, the number of blocks of {job.model.name}"
        )
    return bounds

"""The split problem: what blocks cost, what nodes can do, and what is to be made small. Frozen values, checked.

Blocks are those between the first and the last cut; the owner's own parts enter as `FixedStage`. All seconds are for
one batch, or for one micro-batch where the objective is `micro`. Source: MP-SL eqs. (6)-(12); 2505.04368.
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from zmpsl.errors import JobError

__all__ = ["BlockCost", "BlockTime", "CutCost", "FixedStage", "NodeLink", "NodeSpec", "Objective", "Problem"]

Objective = Literal["pace", "sum", "micro"]
OBJECTIVES = ("pace", "sum", "micro")


class BlockTime(Struct, frozen=True):
    """Seconds of one block on one device: forward, backward and optimiser step."""

    forward_s: float
    backward_s: float
    update_s: float = 0.0


class BlockCost(Struct, frozen=True):
    """One block on the reference device (slowdown 1).

    `memory_bytes` is everything the node needs for the block: all replicas it holds at a time with gradients,
    optimiser state and saved activations. `parameter_bytes` counts for the exposure limit `max_share` only.
    """

    name: str
    forward_s: float
    backward_s: float
    update_s: float = 0.0
    memory_bytes: float = 0
    parameter_bytes: float = 0


class CutCost(Struct, frozen=True):
    """What crosses a cut for one batch, after the codec, and what a node needs to buffer it (`memory_bytes`)."""

    forward_bytes: float = 0
    backward_bytes: float = 0
    memory_bytes: float = 0


class NodeLink(Struct, frozen=True):
    """The connection of one node: full duplex, `bytes_per_s` each way; `latency_s` delays, but occupies nothing."""

    bytes_per_s: float
    latency_s: float = 0.0


class NodeSpec(Struct, frozen=True):
    """A compute node that may hold one contiguous run of blocks.

    Attributes:
        name: Unique name.
        slowdown: Factor on the reference seconds of every block.
        memory_bytes: Budget; None is no limit.
        optional: May stay unused; all other nodes get at least one block.
        max_blocks: The most blocks the node may see.
        max_share: The largest share of the model's parameter bytes the node may see, in (0, 1].
        overhead_s: Fixed seconds per forward and per backward task.
        link: Connection of the node; None is one that takes no time.
        times: Measured seconds of every block on this node, in place of `slowdown` times the reference.
        holds: Positions (in `Problem.blocks`) of blocks that must be on this node, optional or not.
    """

    name: str
    slowdown: float = 1.0
    memory_bytes: float | None = None
    optional: bool = False
    max_blocks: int | None = None
    max_share: float | None = None
    overhead_s: float = 0.0
    link: NodeLink | None = None
    times: tuple[BlockTime, ...] | None = None
    holds: tuple[int, ...] = ()


class FixedStage(Struct, frozen=True):
    """A stage the split cannot change, such as an owner's own parts or its uplink."""

    name: str
    forward_s: float
    backward_s: float


class Problem(Struct, frozen=True):
    """Which run of blocks each node gets, and in which order the nodes stand.

    Objectives, with f and b the seconds a stage is busy per batch forward and backward (update included):
        pace: max_i (f_i + b_i), the seconds between two batches of a full pipe. One processor does both directions.
        sum: max_i f_i + max_i b_i, the paper's L_fwd + L_back (MP-SL eqs. (9)-(11)).
        micro: T_f + (m - 1) * T_i, one batch in m micro-batches: T_f is the way of the first through all stages and
            links with one update each, T_i = max_i (f_i + b_i) without update (2505.04368).

    Attributes:
        blocks: S blocks in model order.
        nodes: Candidates; their order means nothing, except to the plans of `manual.py`.
        cuts: S + 1 cuts, cut e standing before block e; empty is nothing to send.
        objective: See above.
        micro_batches: m of the objective `micro`.
        fixed: Stages beside the nodes.
        first_block: Number of blocks[0] in the model; solutions count from block 0 of the model.
        model_parameter_bytes: What `max_share` refers to; None is the sum over `blocks`.

    Raises:
        JobError: A number is not finite or out of range; the message names the block, cut or node.
    """

    blocks: tuple[BlockCost, ...]
    nodes: tuple[NodeSpec, ...]
    cuts: tuple[CutCost, ...] = ()
    objective: Objective = "pace"
    micro_batches: int = 1
    fixed: tuple[FixedStage, ...] = ()
    first_block: int = 0
    model_parameter_bytes: float | None = None

    def __post_init__(self) -> None:
        _check_shape(self)
        for number, block in enumerate(self.blocks):
            where = f"block {self.first_block + number} ({block.name!r})"
            for field in ("forward_s", "backward_s", "update_s", "memory_bytes", "parameter_bytes"):
                _at_least_zero(f"{where}: {field}", getattr(block, field))
        for number, cut in enumerate(self.cuts):
            where = f"the cut before block {self.first_block + number}"
            for field in ("forward_bytes", "backward_bytes", "memory_bytes"):
                _at_least_zero(f"{where}: {field}", getattr(cut, field))
        for stage in self.fixed:
            _at_least_zero(f"stage {stage.name!r}: forward_s", stage.forward_s)
            _at_least_zero(f"stage {stage.name!r}: backward_s", stage.backward_s)
        for node in self.nodes:
            _check_node(self, node)

    def times(self, node: NodeSpec) -> tuple[BlockTime, ...]:
        """Gives the seconds of every block on `node`, shape (S,)."""
        if node.times is not None:
            return node.times
        by = node.slowdown
        return tuple(BlockTime(b.forward_s * by, b.backward_s * by, b.update_s * by) for b in self.blocks)

    def parameter_bytes(self) -> float:
        """Gives the parameter bytes that `max_share` refers to."""
        if self.model_parameter_bytes is not None:
            return self.model_parameter_bytes
        return math.fsum(block.parameter_bytes for block in self.blocks)


def _at_least_zero(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise JobError(f"{what} is {value}; it must be a finite number of at least 0: profile the model again")


def _positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise JobError(f"{what} is {value}; it must be a finite number above 0")


def _check_shape(problem: Problem) -> None:
    blocks, nodes = len(problem.blocks), problem.nodes
    if not blocks:
        raise JobError("the profile is empty: there is no block between the first and the last cut to place on a node")
    if not nodes:
        raise JobError(f"there is no compute node to place {blocks} blocks on; name at least one")
    if problem.cuts and len(problem.cuts) != blocks + 1:
        raise JobError(f"{blocks} blocks have {blocks + 1} cuts around them, but the profile gives {len(problem.cuts)}")
    names = [node.name for node in problem.nodes]
    for name in names:
        if names.count(name) > 1:
            raise JobError(f"{names.count(name)} compute nodes are called {name!r}; every node needs a name of its own")
    holders: dict[int, str] = {}
    for node in nodes:
        for number in node.holds:
            if holders.setdefault(number, node.name) != node.name:
                both = f"nodes {holders[number]!r} and {node.name!r}"
                raise JobError(f"{both} must both hold block {number}; only one can")
    if problem.objective not in OBJECTIVES:
        raise JobError(f"objective {problem.objective!r} is unknown; it must be one of {', '.join(OBJECTIVES)}")
    if problem.micro_batches < 1:
        raise JobError(f"micro_batches is {problem.micro_batches}; a batch has at least 1")
    if problem.model_parameter_bytes is not None:
        _at_least_zero("model_parameter_bytes", problem.model_parameter_bytes)


def _check_node(problem: Problem, node: NodeSpec) -> None:
    where, blocks = f"node {node.name!r}", len(problem.blocks)
    _positive(f"{where}: slowdown", node.slowdown)
    _at_least_zero(f"{where}: overhead_s", node.overhead_s)
    if node.memory_bytes is not None:
        _at_least_zero(f"{where}: memory_bytes", node.memory_bytes)
    if node.max_blocks is not None and node.max_blocks < 1:
        raise JobError(f"{where}: max_blocks is {node.max_blocks}; a node that may see no block cannot take part")
    if node.max_share is not None and not 0 < node.max_share <= 1:
        raise JobError(f"{where}: max_share is {node.max_share}; it must be above 0 and at most 1")
    if node.link is not None:
        _positive(f"{where}: bytes_per_s of its link", node.link.bytes_per_s)
        _at_least_zero(f"{where}: latency_s of its link", node.link.latency_s)
    for number in node.holds:
        if not 0 <= number < blocks:
            raise JobError(f"{where}: it must hold block {number}, but the blocks to place are 0 to {blocks - 1}")
    if node.times is None:
        return
    if len(node.times) != blocks:
        raise JobError(f"{where}: its profile has {len(node.times)} blocks, the model has {blocks} to place on nodes")
    for number, time in enumerate(node.times):
        block = f"block {problem.first_block + number} ({problem.blocks[number].name!r})"
        for field in ("forward_s", "backward_s", "update_s"):
            _at_least_zero(f"{where}, {block}: {field}", getattr(time, field))

"""The split problem as arrays: the cost of every run of blocks on every type of node.

Nodes that differ in nothing but their name are one type. Arrays have shape (D, S + 1): entry [d - 1, e] is the run of d
blocks that stops before block e, i.e. [e - d, e); what is not allowed is infinite. D is the longest run worth a look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import JobError
from zmpsl.planner.problem import NodeSpec, Problem

__all__ = ["NodeType", "Stages", "build", "node_types"]

Array = NDArray[np.float64]
Run = tuple[int, int, int]  # type, first block, stop block
Relaxed = Literal["nothing", "memory"]
MOST_ENTRIES = 20_000_000  # 0.8 GB for the five kinds of cost


@dataclass(frozen=True)
class NodeType:
    """Nodes that are alike; `node` stands for all of them."""

    node: NodeSpec
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.names)


@dataclass(frozen=True)
class Stages:
    """Costs of all allowed runs, one array of shape (D_t, S + 1) per type t; fixed stages are already in.

    `weights` has what each of the first e blocks takes on the node that does it fastest, summed; shape (S + 1,).
    """

    blocks: int
    weights: Array
    types: tuple[NodeType, ...]
    forward: tuple[Array, ...]
    backward: tuple[Array, ...]
    pace: tuple[Array, ...]
    way: tuple[Array, ...]
    excess: tuple[Array, ...]

    def cost_of(self, kind: tuple[Array, ...], runs: list[Run]) -> list[float]:
        """Gives the cost of each run."""
        return [float(kind[t][e - a - 1, e]) for t, a, e in runs]


def node_types(problem: Problem) -> tuple[NodeType, ...]:
    """Groups the nodes that differ in nothing but their name, in the order of first appearance."""
    groups: dict[NodeSpec, list[str]] = {}
    for node in problem.nodes:
        groups.setdefault(_without_name(node), []).append(node.name)
    return tuple(NodeType(node, tuple(names)) for node, names in groups.items())


def _without_name(node: NodeSpec) -> NodeSpec:
    # A node with pinned blocks stays on its own: two nodes cannot hold the same block.
    name = node.name if node.holds else ""
    return NodeSpec(
        name, node.slowdown, node.memory_bytes, node.optional, node.max_blocks, node.max_share, node.overhead_s,
        node.link, node.times, node.holds,
    )  # fmt: skip


def build(problem: Problem, limit: float = math.inf, relaxed: Relaxed = "nothing") -> Stages:
    """Computes the costs of all allowed runs.

    Args:
        problem: The problem.
        limit: Runs with more seconds of forward and backward compute are left out: the value of a known plan, since
            every objective is at least that. Keeps arrays small where there are 1,000 blocks.
        relaxed: Whether to ignore the memory limits, `memory`; what a run lacks is in `excess` then.

    Raises:
        JobError: The arrays would not fit in memory.
    """
    types = node_types(problem)
    blocks = len(problem.blocks)
    lengths = [_longest(problem, kind.node, limit) for kind in types]
    if (entries := sum(lengths) * (blocks + 1)) > MOST_ENTRIES:
        raise JobError(
            f"{blocks} blocks on {len(types)} different kinds of nodes give {entries:,} runs, more than"
            f" {MOST_ENTRIES:,}: join blocks or make nodes alike"
        )
    parts = [_arrays(problem, kind.node, length, relaxed) for kind, length in zip(types, lengths, strict=True)]
    forward, backward, pace, way, excess = (tuple(column) for column in zip(*parts, strict=True))
    times = np.array([[(t.forward_s + t.backward_s + t.update_s) for t in problem.times(k.node)] for k in types])
    return Stages(blocks, _sums(times.min(axis=0)), types, forward, backward, pace, way, excess)


def _sums(values: list[float] | Array) -> Array:
    return np.concatenate(([0.0], np.cumsum(np.array(values, dtype=np.float64))))


def _longest(problem: Problem, node: NodeSpec, limit: float) -> int:
    """Length of the longest run within `limit` seconds and the node's `max_blocks`."""
    blocks = len(problem.blocks)
    if limit < math.inf:
        sums = _sums([time.forward_s + time.backward_s for time in problem.times(node)])
        stops = np.searchsorted(sums, sums + limit * (1 + 1e-9), side="right") - 1
        blocks = max(1, int((stops - np.arange(blocks + 1)).max()))
    return blocks if node.max_blocks is None else min(blocks, node.max_blocks)


def _arrays(problem: Problem, node: NodeSpec, length: int, relaxed: Relaxed) -> tuple[Array, ...]:
    """Forward, backward, pace, way and missing bytes of all runs of at most `length` blocks on `node`."""
    e = np.arange(len(problem.blocks) + 1)[None, :]
    start = e - np.arange(1, length + 1)[:, None]
    a = np.maximum(start, 0)
    times = problem.times(node)

    def total(values: list[float]) -> Array:
        sums = _sums(values)
        return np.asarray(sums[e] - sums[a])

    forward = node.overhead_s + total([time.forward_s for time in times])
    backward = node.overhead_s + total([time.backward_s for time in times])
    update = total([time.update_s for time in times])
    busy = forward + backward if problem.objective == "micro" else forward + backward + update
    way, backward = forward + backward + update, backward + update
    if node.link is not None:
        way = way + 2 * node.link.latency_s
        if problem.cuts:
            to_next = np.array([cut.forward_bytes for cut in problem.cuts]) / node.link.bytes_per_s
            to_last = np.array([cut.backward_bytes for cut in problem.cuts]) / node.link.bytes_per_s
            way = way + to_next[a] + to_last[e]
            forward = np.maximum(forward, np.maximum(to_next[a], to_next[e]))
            backward = np.maximum(backward, np.maximum(to_last[a], to_last[e]))
            busy = np.maximum(busy, np.maximum(to_next[a] + to_last[e], to_next[e] + to_last[a]))
    for stage in problem.fixed:
        forward, backward = np.maximum(forward, stage.forward_s), np.maximum(backward, stage.backward_s)
        busy = np.maximum(busy, stage.forward_s + stage.backward_s)
    memory = total([block.memory_bytes for block in problem.blocks])
    if problem.cuts:
        buffers = np.array([cut.memory_bytes for cut in problem.cuts])
        memory = memory + buffers[a] + buffers[e]
    budget = math.inf if node.memory_bytes is None else node.memory_bytes
    excess = np.maximum(memory - budget, 0.0)
    banned = (start < 0) | _exposed(problem, node, total) | _misplaced(problem, node, a, e)
    if relaxed == "nothing":
        banned |= excess > 0
    kinds = (forward, backward, busy, way, excess)
    return tuple(np.where(banned, np.inf, kind) for kind in kinds)


def _exposed(problem: Problem, node: NodeSpec, total: Callable[[list[float]], Array]) -> NDArray[np.bool_]:
    """Runs that show the node more of the model than its `max_share` allows."""
    shown = total([block.parameter_bytes for block in problem.blocks])
    most = math.inf if node.max_share is None else node.max_share * problem.parameter_bytes()
    return np.asarray(shown > most * (1 + 1e-12))


def _misplaced(problem: Problem, node: NodeSpec, a: NDArray[np.int64], e: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Runs that lack a block pinned to the node, or hold one pinned to another."""
    wrong = np.zeros(np.broadcast_shapes(a.shape, e.shape), dtype=np.bool_)
    for other in problem.nodes:
        for block in other.holds:
            inside = (a <= block) & (block < e)
            wrong |= ~inside if block in node.holds else inside
    return wrong

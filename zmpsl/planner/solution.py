"""What a solver answers: the plan with its numbers, or which node lacks how many bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.problem import NodeSpec, Problem

__all__ = ["Infeasible", "Piece", "Shortfall", "Solution", "evaluate", "exposed"]


class Piece(Struct, frozen=True):
    """The blocks [first, stop) of the model on one node, and what they cost there.

    `forward_s` and `backward_s` (update included) are compute time; `stage_s` is what the piece adds to the pace: the
    busiest of the node's processor and the two directions of its link. Source: MP-SL eqs. (8)-(10).
    """

    node: str
    first: int
    stop: int
    forward_s: float
    backward_s: float
    stage_s: float
    memory_bytes: float
    budget_bytes: float | None


class Shortfall(Struct, frozen=True):
    """A node that would need more memory than it has."""

    node: str
    first: int
    stop: int
    needs_bytes: float
    has_bytes: float

    @property
    def lacks_bytes(self) -> float:
        """Bytes missing."""
        return self.needs_bytes - self.has_bytes


class Solution(Struct, frozen=True):
    """A split, in the order in which activations visit the nodes.

    Attributes:
        pieces: One per used node.
        objective: What `value` is.
        value: Seconds; see `Problem`.
        forward_s: Longest forward stage, L_fwd.
        backward_s: Longest backward stage, L_back.
        pace_s: max_i (f_i + b_i); without update where the objective is `micro`.
        way_s: T_f, all stages and links one after the other: what an empty pipe takes.
        optimal: Whether no better split exists, within `proof`.
        proof: In words, why.
        seconds: Time to solve.
        backend: Who solved it.
        short: Nodes whose memory the plan exceeds; always empty in what `solve` returns.
    """

    pieces: tuple[Piece, ...]
    objective: str
    value: float
    forward_s: float
    backward_s: float
    pace_s: float
    way_s: float
    optimal: bool
    proof: str
    seconds: float
    backend: str
    short: tuple[Shortfall, ...] = ()

    @property
    def words(self) -> str:
        """Who got what, for people."""
        pieces = ", ".join(
            f"{piece.node} blocks {piece.first}-{piece.stop - 1} {1e3 * (piece.forward_s + piece.backward_s):.2f} ms"
            for piece in self.pieces
        )
        return f"cuts solved in {self.seconds:.2f} s from measured blocks; per batch {pieces}"

    @property
    def assignment(self) -> tuple[tuple[str, int, int], ...]:
        """Node, first block and stop block of every piece, in order."""
        return tuple((piece.node, piece.first, piece.stop) for piece in self.pieces)


class Infeasible(JobError):
    """No split meets all limits.

    Attributes:
        shortfalls: What the nearest split lacks; empty where memory is not the reason.
    """

    def __init__(self, message: str, shortfalls: tuple[Shortfall, ...] = ()) -> None:
        super().__init__(message)
        self.shortfalls = shortfalls


class Cost(Struct, frozen=True):
    """What blocks [a, e) of the problem cost on one node; the scalar twin of `stages.py`."""

    forward_s: float
    backward_s: float
    forward_stage_s: float
    backward_stage_s: float
    pace_s: float
    way_s: float
    memory_bytes: float


def cost(problem: Problem, node: NodeSpec, a: int, e: int) -> Cost:
    """Gives the cost of the problem's blocks [a, e) on `node`, in seconds and bytes.

    A link is busy with what it receives (activations of cut a, gradients of cut e) and with what it sends; a transfer
    takes the receiver's latency and bandwidth on the way of a batch.
    """
    times = problem.times(node)[a:e]
    forward = node.overhead_s + math.fsum(time.forward_s for time in times)
    backward = node.overhead_s + math.fsum(time.backward_s for time in times)
    update = math.fsum(time.update_s for time in times)
    memory = math.fsum(block.memory_bytes for block in problem.blocks[a:e])
    receive_f = receive_b = send_f = send_b = latency = 0.0
    if problem.cuts:
        left, right = problem.cuts[a], problem.cuts[e]
        memory += left.memory_bytes + right.memory_bytes
        if node.link is not None:
            rate, latency = node.link.bytes_per_s, 2 * node.link.latency_s
            receive_f, receive_b = left.forward_bytes / rate, right.backward_bytes / rate
            send_f, send_b = right.forward_bytes / rate, left.backward_bytes / rate
    elif node.link is not None:
        latency = 2 * node.link.latency_s
    busy = forward + backward + (0.0 if problem.objective == "micro" else update)
    return Cost(
        forward,
        backward + update,
        max(forward, receive_f, send_f),
        max(backward + update, receive_b, send_b),
        max(busy, receive_f + receive_b, send_f + send_b),
        forward + backward + update + latency + receive_f + receive_b,
        memory,
    )


def evaluate(
    problem: Problem, assignment: Sequence[tuple[str, int, int]], backend: str = "given", seconds: float = 0.0
) -> Solution:
    """Gives the numbers of a split that somebody chose.

    Args:
        problem: The problem.
        assignment: Node, first and stop block, in order; blocks are counted as in the model.
        backend: Goes into the solution.
        seconds: Goes into the solution.

    Raises:
        JobError: A block is not on exactly one node, or a node is unknown or named twice.
    """
    nodes = {node.name: node for node in problem.nodes}
    offset, at, pieces, short, costs = problem.first_block, 0, [], [], []
    for name, first, stop in assignment:
        if name not in nodes:
            raise JobError(f"node {name!r} is unknown, or holds two pieces; the nodes are {', '.join(nodes)}")
        a, e = first - offset, stop - offset
        if a != at or not a < e <= len(problem.blocks):
            raise JobError(f"node {name!r}: blocks [{first}, {stop}) do not follow on block {offset + at}")
        node, at = nodes.pop(name), e
        one, budget = cost(problem, node, a, e), node.memory_bytes
        costs.append(one)
        pieces.append(Piece(name, first, stop, one.forward_s, one.backward_s, one.pace_s, one.memory_bytes, budget))
        if budget is not None and one.memory_bytes > budget:
            short.append(Shortfall(name, first, stop, one.memory_bytes, budget))
    if at != len(problem.blocks):
        raise JobError(f"blocks {offset + at} to {offset + len(problem.blocks) - 1} are on no node")
    forward = max([one.forward_stage_s for one in costs] + [stage.forward_s for stage in problem.fixed])
    backward = max([one.backward_stage_s for one in costs] + [stage.backward_s for stage in problem.fixed])
    own = [stage.forward_s + stage.backward_s for stage in problem.fixed]
    pace, way = max([one.pace_s for one in costs] + own), math.fsum([one.way_s for one in costs] + own)
    value = {"pace": pace, "sum": forward + backward, "micro": way + (problem.micro_batches - 1) * pace}
    return Solution(
        tuple(pieces), problem.objective, value[problem.objective], forward, backward, pace, way, False,
        "not solved: a given split", seconds, backend, tuple(short),
    )  # fmt: skip


def exposed(problem: Problem, assignment: Sequence[tuple[str, int, int]]) -> list[str]:
    """Says which nodes would see more of the model than they may, in words.

    Args:
        problem: The problem.
        assignment: Node, first and stop block; blocks are counted as in the model.
    """
    nodes, found = {node.name: node for node in problem.nodes}, []
    for name, first, stop in assignment:
        node, blocks = nodes[name], problem.blocks[first - problem.first_block : stop - problem.first_block]
        if node.max_blocks is not None and len(blocks) > node.max_blocks:
            found.append(f"{name} would see {len(blocks)} blocks, but may see {node.max_blocks}")
        shown = math.fsum(block.parameter_bytes for block in blocks)
        if node.max_share is not None and shown > node.max_share * problem.parameter_bytes() * (1 + 1e-12):
            share = shown / problem.parameter_bytes()
            found.append(f"{name} would see {share:.1%} of the parameters, but may see {node.max_share:.1%}")
    return found

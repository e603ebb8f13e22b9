"""What all backends share: the answer they give, the deadline they keep, and a bound no split can be below."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from zmpsl.planner.bound import Best
from zmpsl.planner.problem import BlockTime, Problem

__all__ = ["SWAP_S", "Answer", "Deadline", "TooLong", "hopeless", "lower_bound"]

SWAP_S = 3.0  # seconds to look for a better order where the optimum is out of reach


@dataclass(frozen=True)
class Answer:
    """The best split a backend found; `proof` says why it is optimal, or why that is not known."""

    best: Best
    optimal: bool
    proof: str


class TooLong(Exception):
    """The time limit is reached."""


@dataclass(frozen=True)
class Deadline:
    """A time limit in seconds from now on; None is none."""

    limit_s: float | None
    start_s: float = field(default_factory=time.perf_counter)

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return math.inf if self.limit_s is None else self.limit_s - (time.perf_counter() - self.start_s)

    @property
    def text(self) -> str:
        """What to say when it is over."""
        return f"the time limit of {self.limit_s} s is reached"

    def ends_s(self, most_s: float, share: float = 0.5) -> float:
        """Gives the `time.perf_counter()` at which a step ends: `most_s` from now, or a share of the time left."""
        return time.perf_counter() + min(most_s, self.left_s * share)

    def check(self) -> None:
        """Raises `TooLong` where no time is left."""
        if self.left_s <= 0:
            raise TooLong(self.text)


def hopeless(reason: str) -> str:
    """Says what to do where no split is known and the problem is too large to search."""
    return (
        f"no split that meets all limits was found over a few node orders, and a search over all is out of reach:"
        f" {reason}. Add memory or nodes, make nodes alike, or join blocks; another backend may also get there"
    )


def lower_bound(problem: Problem) -> float:
    """Gives a value no split can be below: blocks cut at will, no memory limits, no links.

    With m_j the least time of block j on any node and r_i = min_j t_ij / m_j, a node that is busy for L seconds does
    at most L / r_i of sum(m_j); so L >= sum(m_j) / sum(1 / r_i). For `micro` see `_micro`.
    """
    times = [problem.times(node) for node in problem.nodes]
    own = [stage.forward_s + stage.backward_s for stage in problem.fixed]
    if problem.objective == "micro":
        return _micro(problem, times, max(own, default=0.0)) + math.fsum(own)
    if problem.objective == "pace":
        return max([_level([[t.forward_s + t.backward_s + t.update_s for t in row] for row in times]), *own])
    forward_s = _level([[time.forward_s for time in row] for row in times])
    backward_s = _level([[time.backward_s + time.update_s for time in row] for row in times])
    forward_s = max([forward_s, *(stage.forward_s for stage in problem.fixed)])
    return forward_s + max([backward_s, *(stage.backward_s for stage in problem.fixed)])


def _level(values: list[list[float]]) -> float:
    """Seconds that the worst node is busy at least; one row of seconds per node."""
    fastest = [min(column) for column in zip(*values, strict=True)]
    return math.fsum(fastest) / math.fsum(1 / _rate(row, fastest) for row in values)


def _rate(row: list[float], weights: list[float]) -> float:
    """Least seconds per unit of weight."""
    return min((own / weight for own, weight in zip(row, weights, strict=True) if weight > 0), default=1.0)


def _micro(problem: Problem, times: list[tuple[BlockTime, ...]], least_s: float) -> float:
    """Least way plus (m - 1) times the worst stage, W + (m - 1) * L, own stages apart.

    With L given, the way is shortest where the nodes with the fewest seconds of way per weight are busy for L, as many
    as it takes, and every other node that must be used has the lightest block. As L falls, W grows along a convex line
    with a corner where one more node is needed, so one of the corners is the best, or the least L there is.
    """
    way = [[t.forward_s + t.backward_s + t.update_s for t in row] for row in times]
    weights = [min(column) for column in zip(*way, strict=True)]
    whole, least = math.fsum(weights), min(weights)
    nodes = sorted(
        (
            _rate(row, weights),
            _rate([t.forward_s + t.backward_s for t in own], weights),
            0.0 if node.optional else min(least, whole / len(times)),
        )
        for node, row, own in zip(problem.nodes, way, times, strict=True)
    )
    least_s = max(least_s, *(pace * must for _, pace, must in nodes))
    best = math.inf
    for count in range(1, len(nodes) + 1):
        # The first `count` nodes are busy for L, and take all that the rest need not.
        taken = math.fsum(must for _, _, must in nodes[count:])
        speed = math.fsum(1 / pace if pace > 0 else math.inf for _, pace, _ in nodes[:count])
        level_s = max(least_s, (whole - taken) / speed)
        best = min(best, _filled(nodes, level_s, whole) + (problem.micro_batches - 1) * level_s)
    return best


def _filled(nodes: list[tuple[float, float, float]], level_s: float, whole: float) -> float:
    """Shortest way of the weight `whole` where no node is busy for more than `level_s`; infinite where it is too much.

    A node is (way per weight, busy seconds per weight, least weight); cheapest first.
    """
    left = whole - math.fsum(must for _, _, must in nodes)
    way = math.fsum(rate * must for rate, _, must in nodes)
    for rate, pace, must in nodes:
        more = min(left, max(0.0, (level_s / pace if pace > 0 else math.inf) - must))
        way, left = way + rate * more, left - more
    return way if left <= whole * 1e-9 else math.inf

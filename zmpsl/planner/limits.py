"""What all backends share: the answer they give, the deadline they keep, and a bound no split can be below."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from zmpsl.planner.bound import Best
from zmpsl.planner.problem import Problem

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
    at most L / r_i of sum(m_j); so L >= sum(m_j) / sum(1 / r_i).
    """
    times = [problem.times(node) for node in problem.nodes]
    update = problem.objective != "micro"

    def pipe(values: list[list[float]]) -> tuple[float, float]:
        fastest = [min(column) for column in zip(*values, strict=True)]
        whole = math.fsum(fastest)
        share = 0.0
        for row in values:
            ratios = [own / best for own, best in zip(row, fastest, strict=True) if best > 0]
            share += 1 / min(ratios, default=1.0)
        return whole, whole / share

    forward = [[time.forward_s for time in row] for row in times]
    backward = [[time.backward_s + time.update_s for time in row] for row in times]
    busy = [[t.forward_s + t.backward_s + (t.update_s if update else 0.0) for t in row] for row in times]
    own = [stage.forward_s + stage.backward_s for stage in problem.fixed]
    way, pace = pipe(busy)
    pace = max([pace, *own])
    if problem.objective == "pace":
        return pace
    if problem.objective == "micro":
        return way + math.fsum(own) + (problem.micro_batches - 1) * pace
    forward_s = max([pipe(forward)[1]] + [stage.forward_s for stage in problem.fixed])
    return forward_s + max([pipe(backward)[1]] + [stage.backward_s for stage in problem.fixed])

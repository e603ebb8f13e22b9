"""Divides the search by the worst stage: in a narrow range of it few runs are left, and most ranges are soon closed.

pace and micro divide by the worst f + b, sum by the worst forward stage. In a range the runs above its upper end are
out, and the objective pays at least its lower end; with that the prices of `prices.py` close the range, or leave out
runs. What is left narrow or small enough goes to the backend.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from zmpsl.planner.bound import Best
from zmpsl.planner.limits import Deadline
from zmpsl.planner.prices import Prices
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Stages
from zmpsl.planner.tighten import Floors, Weights, keep

__all__ = ["Division", "Range", "divide"]

FIRST_PATHS, MORE_PATHS = 300, 150
TINY = 1e-9  # a split must be better by this share to count


@dataclass(order=True)
class Range:
    """Splits whose worst stage is in [low, high]; `bound` is a value they cannot be below."""

    bound: float
    low: float
    high: float
    stages: Stages = field(compare=False)
    prices: Array = field(compare=False)

    @property
    def runs(self) -> int:
        """How many runs are left."""
        return count(self.stages)


# Solves a range, given a split to beat: gives the best split in it, or none better; and whether that is proven.
Leaf = Callable[[Range, Best], tuple[Best, bool]]


@dataclass(frozen=True)
class Division:
    """The best split, whether it is proven, and how many ranges were looked at and how many the backend solved."""

    best: Best
    proven: bool
    ranges: int
    solved: int


def count(stages: Stages) -> int:
    """Gives the number of runs that are left."""
    return sum(int(np.isfinite(cost).sum()) for cost in stages.pace)


def divide(
    problem: Problem, stages: Stages, floors: Floors, start: Best, leaf: Leaf, few: int, deadline: Deadline
) -> Division:
    """Finds the best split.

    Args:
        problem: The problem.
        stages: Its costs, without runs that are no good.
        floors: Least seconds of the worst stages.
        start: A split.
        leaf: Solves a range.
        few: Runs from which on a range is divided further before it is solved.
        deadline: When to stop.
    """
    kind = stages.forward if problem.objective == "sum" else stages.pace
    values = _values(kind, floors.forward if problem.objective == "sum" else floors.pace)
    open_ = [Range(-math.inf, float(values[0]), float(values[-1]), stages, np.zeros(0))]
    best, proven, looked, solved = start, True, 0, 0
    while open_ and open_[0].bound < best[0] * (1 - TINY):
        if deadline.left_s <= 0:
            return Division(best, False, looked, solved)
        looked += 1
        one = _narrow(problem, heapq.heappop(open_), floors, best[0] * (1 - TINY))
        if one is None:
            continue
        kind = one.stages.forward if problem.objective == "sum" else one.stages.pace
        values = _values(kind, one.low)
        values = values[values <= one.high]
        if one.runs > few and len(values) > 1:
            middle = len(values) // 2
            for ends in (values[:middle], values[middle:]):
                heapq.heappush(open_, Range(one.bound, float(ends[0]), float(ends[-1]), one.stages, one.prices))
            continue
        found, sure = leaf(one, best)
        best, proven, solved = min(best, found, key=lambda split: split[0]), proven and sure, solved + 1
    return Division(best, proven, looked, solved)


def _values(kind: tuple[Array, ...], least: float) -> Array:
    """Gives the costs a worst stage can have, rising, and not below `least`."""
    return np.unique(np.maximum(np.concatenate([cost[np.isfinite(cost)] for cost in kind]), least))


def _narrow(problem: Problem, one: Range, floors: Floors, value: float) -> Range | None:
    """Leaves out the runs that no split of the range below `value` can hold; None where there is no such split."""
    stages, weight = one.stages, problem.micro_batches - 1
    if problem.objective == "sum":
        pairs = zip(stages.forward, stages.backward, strict=True)
        good = [(f <= one.high) & (np.maximum(f, one.low) + b <= value) for f, b in pairs]
    elif problem.objective == "pace":
        good = [pace <= min(one.high, value) for pace in stages.pace]
    else:
        pairs = zip(stages.pace, stages.way, strict=True)
        most = [value - weight * np.maximum(pace, one.low) if weight else value for pace in stages.pace]
        good = [(pace <= one.high) & (way <= rest) for (pace, way), rest in zip(pairs, most, strict=True)]
    stages = keep(stages, good)
    micro = problem.objective == "micro"
    costs = [np.where(np.isfinite(way), way if micro else 0.0, np.inf) for way in stages.way]
    target = value - weight * one.low if micro else 0.0
    if micro and target <= 0:
        return None
    prices, paths = one.prices, MORE_PATHS
    if not prices.size:
        prices, paths = _first(stages, micro), FIRST_PATHS
    ruling = Prices(stages, costs, target).rule(prices, paths)
    if ruling.none:
        return None
    stages = keep(stages, list(ruling.good))
    if not count(stages):
        return None
    least = {"sum": one.low + floors.backward, "pace": one.low}
    bound = least.get(problem.objective, ruling.bound * target + weight * one.low)
    return Range(max(one.bound, bound), one.low, one.high, stages, ruling.prices)


def _first(stages: Stages, micro: bool) -> Array:
    """Prices to start from: none, or where only paths count, the most work a node of the type can take."""
    if micro:
        return np.zeros(len(stages.types))
    weights = Weights(stages)
    most = np.array([weights.most(t, cost, math.inf) for t, cost in enumerate(stages.pace)])
    whole = float(most @ [kind.count for kind in stages.types])
    return np.asarray(most / whole if whole > 0 else np.ones(len(most)) / len(most))

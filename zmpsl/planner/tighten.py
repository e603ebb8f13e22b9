"""Leaves out runs that no split better than a known one can hold, by bounds that need no search.

All bounds weigh blocks (weights add up to W over the model) and ask how much weight a node can take at most when no
stage costs more than a cap: the runs are whole, so this is sharper than dividing the work at will.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Stages

__all__ = ["Floors", "Marks", "Weights", "keep", "tighten"]

ROUNDS = 6
ROUGH = 8  # halvings of the caps before those left are sorted
Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Floors:
    """Seconds that the worst forward stage, backward stage and whole stage take in every split.

    Forward and backward are 0 where the objective does not depend on them.
    """

    forward: float
    backward: float
    pace: float


def tighten(problem: Problem, stages: Stages, value: float) -> tuple[Stages, Floors]:
    """Removes runs, and gives bounds for the rest.

    Args:
        problem: The problem.
        stages: Its costs.
        value: Objective value of a known split, without what is constant; infinite where none is known.

    Returns:
        Costs in which every split of at most `value` is still there, and the floors of such splits.
    """
    weights = Weights(stages)
    value *= 1 + 1e-9
    for _ in range(ROUNDS):
        apart = (stages.forward, stages.backward) if problem.objective == "sum" else ((), ())
        floors = Floors(*(weights.level(kind) if kind else 0.0 for kind in (*apart, stages.pace)))
        if value == math.inf or math.inf in (floors.forward, floors.backward, floors.pace):
            break
        if problem.objective == "sum":
            good = weights.within(stages.forward, value - floors.backward)
            also = weights.within(stages.backward, value - floors.forward)
            good = [one & two for one, two in zip(good, also, strict=True)]
        elif problem.objective == "pace":
            good = weights.within(stages.pace, value)
        else:
            good = weights.short(stages, value, problem.micro_batches - 1, floors.pace)
        before = sum(int(np.isfinite(cost).sum()) for cost in stages.pace)
        stages = keep(stages, good)
        if before == sum(int(np.isfinite(cost).sum()) for cost in stages.pace):
            break
    return stages, floors


def keep(stages: Stages, good: list[Marks]) -> Stages:
    """Leaves out the runs that are not good; arrays end with the longest run left."""
    columns = []
    for t, allowed in enumerate(good):
        kinds = (stages.forward[t], stages.backward[t], stages.pace[t], stages.way[t], stages.excess[t])
        lengths = np.flatnonzero((allowed & np.isfinite(stages.pace[t])).any(axis=1))
        longest = int(lengths[-1]) + 1 if lengths.size else 1
        columns.append([np.where(allowed[:longest], kind[:longest], np.inf) for kind in kinds])
    return Stages(stages.blocks, stages.weights, stages.types, *(tuple(kind) for kind in zip(*columns, strict=True)))


class Weights:
    """Weight of every run: a block weighs what it costs alone on the node that does it fastest."""

    def __init__(self, stages: Stages) -> None:
        sums = stages.weights
        self.total = float(sums[-1])
        self.counts = [kind.count for kind in stages.types]
        self.runs = []
        e = np.arange(stages.blocks + 1)[None, :]
        for cost in stages.way:
            a = np.maximum(e - np.arange(1, len(cost) + 1)[:, None], 0)
            self.runs.append(sums[e] - sums[a])

    def most(self, t: int, cost: Array, cap: float) -> float:
        """Gives the largest weight of a run of type t that costs at most `cap`."""
        return float(np.where(cost <= cap, self.runs[t][: len(cost)], 0.0).max())

    def level(self, kind: tuple[Array, ...]) -> float:
        """Gives the least cap at which the nodes can take all weight; infinite where they never can."""
        need = self.total * (1 - 1e-9)

        def enough(cap: float) -> bool:
            return sum(n * self.most(t, kind[t], cap) for t, n in enumerate(self.counts)) >= need

        low, high = 0.0, max((float(cost[np.isfinite(cost)].max(initial=0.0)) for cost in kind), default=0.0)
        if not enough(high):
            return math.inf
        if enough(low):  # blocks that take no time
            return low
        for _ in range(ROUGH):  # fewer costs are left to sort then
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        caps = np.unique(np.concatenate([cost[(cost >= low) & (cost <= high)] for cost in kind]))
        return float(caps[bisect_left(caps, True, hi=len(caps) - 1, key=enough)])

    def within(self, kind: tuple[Array, ...], cap: float) -> list[Marks]:
        """Marks runs that cost at most `cap` and leave no more weight than the other nodes can take at that."""
        most = [self.most(t, cost, cap) for t, cost in enumerate(kind)]
        whole = sum(n * m for n, m in zip(self.counts, most, strict=True))
        need = self.total * (1 - 1e-9)
        return [(cost <= cap) & (self.runs[t][: len(cost)] + (whole - most[t]) >= need) for t, cost in enumerate(kind)]

    def short(self, stages: Stages, value: float, weight: int, floor: float, most: float = math.inf) -> list[Marks]:
        """Marks runs that may be in a split whose way plus `weight` times the worst stage is at most `value`.

        The worst stage is at least `floor` and at most `most`.
        """
        taken, rest = self._fill(stages, min(value, most), None)
        least_way = float(np.interp(self.total * (1 - 1e-9), rest, taken))
        cap = min(most, (value - least_way) / weight if weight else math.inf)
        good = []
        for t, (pace, own) in enumerate(zip(stages.pace, stages.way, strict=True)):
            taken, rest = self._fill(stages, cap, t)
            left = np.maximum(self.total * (1 - 1e-9) - self.runs[t][: len(own)], 0.0)
            # What the others need at least for the weight that is left; more than they can take cannot be.
            others = np.where(left <= rest[-1], np.interp(left, rest, taken), np.inf)
            least = own + others + (weight * np.maximum(pace, floor) if weight else 0.0)
            good.append((pace <= cap) & (least <= value))
        return good

    def _fill(self, stages: Stages, cap: float, without: int | None) -> tuple[Array, Array]:
        """Gives the least way in seconds and the weight it is for, cheapest nodes first, as two rising arrays.

        Runs cost at most `cap`; one node of the type `without` is taken already.
        """
        parts = []
        for t, (pace, way) in enumerate(zip(stages.pace, stages.way, strict=True)):
            good = pace <= cap
            weights = self.runs[t][: len(way)]
            count = self.counts[t] - (t == without)
            if count and good.any():
                rates = way[good & (weights > 0)] / weights[good & (weights > 0)]
                parts.append((float(rates.min()) if rates.size else 0.0, count * self.most(t, pace, cap)))
        parts.sort()
        amounts = np.cumsum([0.0, *(amount for _, amount in parts)])
        seconds = np.cumsum([0.0, *(rate * amount for rate, amount in parts)])
        return seconds, amounts

"""The objective `micro`: least way plus a multiple of the worst stage, by ranges of the worst stage.

In a range the way of a split is at least the least way with no stage above the range's upper end, and its worst stage
at least the lower end. A range whose two together are no better than a known split is closed; any other is looked at
once more, a little narrower, and halved. Source: 2505.04368, which walks over all thresholds instead.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.tighten import Marks, Weights

__all__ = ["Best", "Finder", "least_micro"]

# Finds the best runs for one kind of cost: (costs per type, op) -> (value, runs).
Finder = Callable[[Sequence[Array], np.ufunc], tuple[float, list[Run]]]
Best = tuple[float, list[Run]]


def least_micro(
    stages: Stages, weight: int, find: Finder, pace: float, until_s: float, known: float, prune: bool
) -> tuple[Best, bool]:
    """Finds the split with the least way plus `weight` times its worst stage.

    Args:
        stages: Costs.
        weight: m - 1 for m micro-batches.
        find: Exact for one kind of cost.
        pace: No split has a lower worst stage.
        until_s: `time.perf_counter()` at which to stop.
        known: Only a split below this value is looked for.
        prune: Whether to leave runs out of a search by bounds first: worth it where a search takes milliseconds.

    Returns:
        The split, infinite and without runs where there is none below `known`; and whether the search came to its end.
    """
    best: Best = (math.inf, [])
    weights = Weights(stages) if prune else None
    # Ranges still to be looked at: the bound of their value, both ends, and a way that none of their splits is below.
    open_ = [(weight * pace, pace, math.inf, 0.0)]
    while open_ and open_[0][0] < min(best[0], known) * (1 - 1e-12):
        if time.perf_counter() > until_s:
            return best, False
        _, low, high, way = heapq.heappop(open_)
        value = min(best[0], known)
        # A split in this range takes at least this way, so its worst stage must make up for it.
        high = min(high, (value - way) / weight if weight else math.inf)
        if high < low:
            continue
        good: list[Marks] = [cost <= high for cost in stages.pace]
        if weights is not None:
            good = weights.short(stages, value * (1 + 1e-9), weight, low, high)
        costs = [np.where(allowed, cost, np.inf) for cost, allowed in zip(stages.way, good, strict=True)]
        way, runs = find(costs, np.add)
        if not runs:
            continue
        worst = max(stages.cost_of(stages.pace, runs))
        best = min(best, (way + weight * worst, runs), key=lambda one: one[0])
        # What is left of the range lies below the worst stage of the shortest way.
        high = math.nextafter(worst, -math.inf)
        middle = (low + high) / 2
        heapq.heappush(open_, (way + weight * low, low, middle, way))
        above = math.nextafter(middle, math.inf)
        heapq.heappush(open_, (way + weight * above, above, high, way))
    return best, True

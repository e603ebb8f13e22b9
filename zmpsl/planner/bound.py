"""Good splits that cost little: the best one for each of a few fixed node orders. Upper bounds for the exact backends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import numpy as np

from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.table import in_order

__all__ = ["Best", "Finder", "least", "orders", "quick"]

# Finds the best runs for one kind of cost: (costs per type, op) -> (value, runs).
Finder = Callable[[Sequence[Array], np.ufunc], tuple[float, list[Run]]]
Best = tuple[float, list[Run]]


def orders(stages: Stages) -> list[list[int]]:
    """Gives a few orders of all nodes by type: as listed, slow to fast and back, little memory to much and back."""
    listed = [t for t, kind in enumerate(stages.types) for _ in range(kind.count)]

    def speed(t: int) -> float:
        # Seconds per block over the shortest runs that are allowed: a node without any comes last.
        row = stages.pace[t][0]
        row = row[np.isfinite(row)]
        return float(row.mean()) if row.size else math.inf

    def room(t: int) -> float:
        budget = stages.types[t].node.memory_bytes
        return math.inf if budget is None else budget

    by_speed, by_room = sorted(listed, key=speed), sorted(listed, key=room)
    found: list[list[int]] = []
    for order in (listed, by_speed, by_speed[::-1], by_room, by_room[::-1]):
        if order not in found:
            found.append(order)
    return found


def least(problem: Problem, stages: Stages, find: Finder) -> Best:
    """Solves the problem exactly, given a finder that is exact for one kind of cost at a time.

    pace: one call for the least worst stage, one more for the shortest way among equals.
    sum: walks down the Pareto front of (worst forward, worst backward), least backward first; a step's best forward is
        below the one before, and must be small enough to beat the best sum. Source: MP-SL eqs. (9)-(11).
    micro: least way with all stages below a threshold, which falls to just under the worst stage just found; the way
        only grows, so the walk may stop as soon as it cannot win. Source: 2505.04368.
    """
    pace, runs = find(stages.pace, np.maximum)
    if not runs:
        return math.inf, []
    _, runs = find(below(stages.way, stages.pace, pace), np.add)
    if problem.objective == "pace":
        return pace, runs
    if problem.objective == "micro":
        return _micro(stages, problem.micro_batches - 1, find, (pace, runs))
    return _sum(stages, find, runs)


def below(costs: Sequence[Array], measure: Sequence[Array], cap: float) -> list[Array]:
    """Gives `costs` without the runs whose `measure` is above the cap."""
    return [np.where(m <= cap, c, np.inf) for c, m in zip(costs, measure, strict=True)]


def _micro(stages: Stages, weight: int, find: Finder, start: Best) -> Best:
    pace, runs = start
    best = math.fsum(stages.cost_of(stages.way, runs)) + weight * pace
    cap, lightest = math.inf, pace
    while cap >= lightest:
        way, found = find(below(stages.way, stages.pace, cap), np.add)
        if not found or way + weight * lightest >= best:
            break
        worst = max(stages.cost_of(stages.pace, found))
        if way + weight * worst < best:
            best, runs = way + weight * worst, found
        # A split on the rest of the walk takes at least this way, so its worst stage must make up for it.
        cap = math.nextafter(worst, -math.inf)
        if weight:
            cap = min(cap, (best - way) / weight)
    return best, runs


def _sum(stages: Stages, find: Finder, runs: list[Run]) -> Best:
    best = max(stages.cost_of(stages.forward, runs)) + max(stages.cost_of(stages.backward, runs))
    lightest, _ = find(stages.forward, np.maximum)
    backward, _ = find(stages.backward, np.maximum)
    cap = best - backward
    while cap >= lightest:
        backward, found = find(below(stages.backward, stages.forward, cap), np.maximum)
        if not found or backward + lightest >= best:
            break
        forward, found = find(below(stages.forward, stages.backward, backward), np.maximum)
        if forward + backward < best:
            best, runs = forward + backward, found
        cap = min(math.nextafter(forward, -math.inf), best - backward)
    return best, runs


def quick(problem: Problem, stages: Stages) -> Best:
    """Gives the best split over a few node orders; infinite and no runs where none of them has one."""
    best: Best = (math.inf, [])
    for order in orders(stages):
        best = min(best, least(problem, stages, partial(in_order, stages, order)))
    return best


def swapped(problem: Problem, stages: Stages, start: Best, deadline_s: float) -> Best:
    """Improves a split by swapping two nodes in its order as long as that helps.

    Args:
        problem: The problem.
        stages: Its costs.
        start: A split; optional nodes it does not use stay unused.
        deadline_s: `time.perf_counter()` after which no more swaps are tried.

    Returns:
        A split at least as good.
    """
    best, better = start, bool(start[1])
    while better:
        better = False
        order = [t for t, _, _ in best[1]]
        for i, j in combinations(range(len(order)), 2):
            if order[i] == order[j] or time.perf_counter() > deadline_s:
                continue
            other = order.copy()
            other[i], other[j] = other[j], other[i]
            found = least(problem, stages, partial(in_order, stages, other))
            if found[0] < best[0] * (1 - 1e-9):
                best, better, order = found, True, other
    return best

"""The walk from one kind of cost to an objective, and good splits that cost little: the best for a few node orders."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np

from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.table import in_order
from zmpsl.planner.thresholds import Best, Finder, least_micro

__all__ = ["Best", "Finder", "least", "orders", "quick", "swapped"]


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


def least(
    problem: Problem,
    stages: Stages,
    find: Finder,
    until_s: float = math.inf,
    known: float = math.inf,
    prune: bool = False,
) -> tuple[Best, bool]:
    """Solves the problem exactly, given a finder that is exact for one kind of cost at a time.

    Gives the best split, and whether the search came to its end before `time.perf_counter()` was `until_s`. Only a
    split below `known` is looked for; where there is none, the answer may be any split, or none. `prune` is for
    finders that take milliseconds: runs that no good split holds are left out before they are called.

    pace: one call for the least worst stage, one more for the shortest way among equals.
    sum: walks down the Pareto front of (worst forward, worst backward), least backward first; a step's best forward is
        below the one before, and must be small enough to beat the best sum. Source: MP-SL eqs. (9)-(11).
    micro: see `thresholds.py`.
    """
    pace, runs = find(stages.pace, np.maximum)
    if not runs:
        return (math.inf, []), True
    if problem.objective == "micro":
        return least_micro(stages, problem.micro_batches - 1, find, pace, until_s, known, prune)
    _, runs = find(below(stages.way, stages.pace, pace), np.add)
    if problem.objective == "pace":
        return (pace, runs), True
    return _sum(stages, find, runs, until_s, known)


def below(costs: Sequence[Array], measure: Sequence[Array], cap: float) -> list[Array]:
    """Gives `costs` without the runs whose `measure` is above the cap."""
    return [np.where(m <= cap, c, np.inf) for c, m in zip(costs, measure, strict=True)]


def _sum(stages: Stages, find: Finder, runs: list[Run], until_s: float, known: float) -> tuple[Best, bool]:
    best = max(stages.cost_of(stages.forward, runs)) + max(stages.cost_of(stages.backward, runs))
    lightest, _ = find(stages.forward, np.maximum)
    backward, _ = find(stages.backward, np.maximum)
    cap = min(best, known) - backward
    while cap >= lightest:
        if time.perf_counter() > until_s:
            return (best, runs), False
        backward, found = find(below(stages.backward, stages.forward, cap), np.maximum)
        if not found or backward + lightest >= min(best, known):
            break
        forward, found = find(below(stages.forward, stages.backward, backward), np.maximum)
        if forward + backward < best:
            best, runs = forward + backward, found
        cap = min(math.nextafter(forward, -math.inf), min(best, known) - backward)
    return (best, runs), True


def quick(problem: Problem, stages: Stages, deadline_s: float = math.inf) -> Best:
    """Gives the best split over a few node orders; infinite and no runs where none of them has one.

    Args:
        problem: The problem.
        stages: Its costs.
        deadline_s: `time.perf_counter()` after which the search ends, once there is a split.
    """
    best: Best = (math.inf, [])
    for order in orders(stages):
        if best[1] and time.perf_counter() > deadline_s:
            break
        best = min(best, least(problem, stages, partial(in_order, stages, order), deadline_s, best[0])[0])
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
            found, _ = least(problem, stages, partial(in_order, stages, other), deadline_s, best[0])
            if found[0] < best[0] * (1 - 1e-9):
                best, better, order = found, True, other
    return best

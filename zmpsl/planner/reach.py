"""The worst stage of many different nodes in any order: how far each set of nodes gets when no stage is above a cap.

Only the farthest block counts, so a set of nodes has one number, not one per block: 16 different nodes have 65,536 of
them. A node may also stand aside, or stop earlier, so the farthest is never too near: where not even all nodes together
get to the last block, no split is within the cap. The order in which they got there is then solved exactly; where its
worst stage is the cap itself, it is the best of all orders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zmpsl.planner.bound import Best, least
from zmpsl.planner.limits import Deadline
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Stages
from zmpsl.planner.table import Table, in_order

__all__ = ["MOST_SETS", "Reach", "solve"]

MOST_SETS = 1 << 18
ROUGH = 12  # caps tried before the costs between the last two are sorted
SAME = 1e-12
Marks = NDArray[np.bool_]


class Reach:
    """Finds out which caps can be met at all.

    Args:
        stages: The problem.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages, self.blocks = stages, stages.blocks
        table = Table(stages.types, stages.blocks)
        self.moves, self.strides, self.used, self.sets = table.moves, table.strides, table.used, table.rows
        self.forward, self.backward, self.pace = (
            [_by_start(cost) for cost in kind] for kind in (stages.forward, stages.backward, stages.pace)
        )

    def order(self, marks: Sequence[Marks]) -> list[int] | None:
        """Gives an order of all nodes that gets to the end, or None where no order does.

        Args:
            marks: Runs within the cap by type, shape (S + 1, D_t): row a has the runs [a, a + d).
        """
        steps = [_farthest(mark) for mark in marks]
        far = np.zeros(self.sets, dtype=np.int64)
        for t, rows in self.moves:
            if rows.size:
                to = rows + self.strides[t]
                far[to] = np.maximum(far[to], steps[t][far[rows]])
        if far[-1] < self.blocks:
            return None
        order, row = [], self.sets - 1
        while row:
            ways = [t for t, used in enumerate(self.used) if used[row]]
            t = next(t for t in ways if steps[t][far[row - self.strides[t]]] == far[row])
            order.append(t)
            row -= self.strides[t]
        return order[::-1]

    def within(self, cap: float) -> list[Marks]:
        """Marks the runs whose stage is at most `cap`."""
        return [cost <= cap for cost in self.pace]

    def between(self, forward: float, backward: float) -> list[Marks]:
        """Marks the runs with stages of at most so much forward and backward."""
        return [(f <= forward) & (b <= backward) for f, b in zip(self.forward, self.backward, strict=True)]


def _by_start(cost: Array) -> Array:
    """Turns costs by length and stop into costs by start and length, shape (S + 1, D)."""
    longest, width = cost.shape
    stops = np.arange(width)[:, None] + np.arange(1, longest + 1)[None, :]
    found = cost[np.arange(longest)[None, :], np.minimum(stops, width - 1)]
    return np.where(stops < width, found, np.inf)


def _farthest(mark: Marks) -> NDArray[np.int64]:
    """Gives, for every block, the farthest that a node may get to from there or from a block before."""
    starts, longest = mark.shape
    lengths = np.where(mark.any(axis=1), longest - mark[:, ::-1].argmax(axis=1), 0)
    return np.maximum.accumulate(np.arange(starts) + lengths)


def solve(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> tuple[Best, bool]:
    """Finds the best split for the objectives pace and sum.

    Args:
        problem: The problem.
        stages: Its costs; what cannot beat `start` may be missing.
        start: A split.
        deadline: When to stop.

    Returns:
        The best split found, and whether it is proven to be the best.
    """
    reach = Reach(stages)
    if problem.objective == "sum":
        return _sum(problem, reach, start, deadline)
    return _pace(problem, reach, start, deadline)


def _in(problem: Problem, stages: Stages, order: list[int], best: Best) -> Best:
    """Solves one order exactly; gives the better of that and what is known."""

    def find(costs: Sequence[Array], op: np.ufunc) -> tuple[float, list[tuple[int, int, int]]]:
        return in_order(stages, order, costs, op)

    return min(best, least(problem, stages, find, known=best[0])[0], key=lambda one: one[0])


def _pace(problem: Problem, reach: Reach, best: Best, deadline: Deadline) -> tuple[Best, bool]:
    low, high = 0.0, best[0]
    for _ in range(ROUGH):
        middle = (low + high) / 2
        order = reach.order(reach.within(middle))
        if order is None:
            low = middle
        else:
            best, high = _in(problem, reach.stages, order, best), middle
        if deadline.left_s <= 0:
            return best, False
    values = np.unique(np.concatenate([cost[(cost > low) & (cost <= best[0])] for cost in reach.pace]))
    first, last = 0, len(values) - 1  # the least cap that can be met is one of these
    while first < last:
        middle_at = (first + last) // 2
        order = reach.order(reach.within(float(values[middle_at])))
        if order is None:
            first = middle_at + 1
        else:
            best, last = _in(problem, reach.stages, order, best), middle_at
    return best, not len(values) or best[0] <= values[first] * (1 + SAME)


def _sum(problem: Problem, reach: Reach, best: Best, deadline: Deadline) -> tuple[Best, bool]:
    """Halves ranges of the worst forward stage until no order gets to the end within what backward may take."""
    values = np.unique(np.concatenate([cost[np.isfinite(cost)] for cost in reach.forward]))
    open_, proven = [(0, len(values) - 1)], True
    while open_:
        first, last = open_.pop()
        low, high = float(values[first]), min(float(values[last]), best[0])
        if deadline.left_s <= 0:
            return best, False
        order = reach.order(reach.between(high, best[0] * (1 - SAME) - low))
        if order is None:
            continue
        better = _in(problem, reach.stages, order, best)
        if better[0] < best[0]:
            best = better
            open_.append((first, last))
        elif first < last:
            middle = (first + last) // 2
            open_ += [(first, middle), (middle + 1, last)]
        else:
            proven = False
    return best, proven

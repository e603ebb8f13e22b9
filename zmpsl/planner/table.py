"""The dynamic programme's table: the best way to place the first e blocks with so many nodes of each type.

Row = how many nodes of each type are used (mixed radix), column = e. All rows of a level (nodes used in total) are
extended by one node of one type at once. Node order and the choice among optional nodes come out of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from zmpsl.planner.stages import Array, NodeType, Run, Stages

__all__ = ["Table", "in_order"]

CHUNK = 1 << 20  # numbers in one intermediate array: 8 MB


class Table:
    """Fills tables for one set of node types; a table is given back as the best runs and their value.

    Args:
        types: Node types; those that are not optional are used up.
        blocks: Number of blocks, S.
    """

    def __init__(self, types: Sequence[NodeType], blocks: int) -> None:
        self.blocks = blocks
        sizes = [kind.count + 1 for kind in types]
        self.strides = self.strides_for(types)
        self.rows = self.rows_for(types)
        rows = np.arange(self.rows)
        self.used = [(rows // stride) % size for stride, size in zip(self.strides, sizes, strict=True)]
        level = np.sum(self.used, axis=0)
        # Rows from which one more node of type t leads on, level by level.
        self.moves = [
            (t, np.flatnonzero((level == number) & (self.used[t] < kind.count)))
            for number in range(sum(kind.count for kind in types))
            for t, kind in enumerate(types)
        ]
        must = [u == kind.count for u, kind in zip(self.used, types, strict=True) if not kind.node.optional]
        self.ends = np.flatnonzero(np.all(must, axis=0)) if must else rows

    @staticmethod
    def rows_for(types: Sequence[NodeType]) -> int:
        """Gives the number of sets of nodes."""
        return math.prod(kind.count + 1 for kind in types)

    @staticmethod
    def strides_for(types: Sequence[NodeType]) -> list[int]:
        """Gives by how much the row grows with one more node of each type."""
        return [math.prod(kind.count + 1 for kind in types[:t]) for t in range(len(types))]

    @staticmethod
    def work(types: Sequence[NodeType], blocks: int, longest: int) -> int:
        """Gives the steps one table takes; about 10**9 a second."""
        return math.prod(kind.count + 1 for kind in types) * len(types) * (blocks + 1) * longest

    def best(self, costs: Sequence[Array], op: np.ufunc) -> tuple[float, list[Run]]:
        """Finds the runs that make the combined cost least.

        Args:
            costs: Per type, shape (D_t, S + 1), infinite where not allowed.
            op: `np.maximum` for the worst stage, `np.add` for the sum of stages.

        Returns:
            The value and the runs in order; infinite and no runs where there is no split.
        """
        value = np.full((self.rows, self.blocks + 1), np.inf)
        value[0, 0] = 0.0
        lengths = [np.flatnonzero(np.isfinite(cost).any(axis=1)) for cost in costs]
        for t, rows in self.moves:
            rows = rows[np.isfinite(value[rows]).any(axis=1)]
            if rows.size and lengths[t].size:
                to = rows + self.strides[t]
                first, last = int(lengths[t][0]), int(lengths[t][-1])
                value[to] = np.minimum(value[to], extend(value[rows], costs[t][first : last + 1], op, first))
        end = int(self.ends[np.argmin(value[self.ends, self.blocks])])
        if not np.isfinite(value[end, self.blocks]):
            return math.inf, []
        return float(value[end, self.blocks]), self._runs(value, end, costs, op)

    def _runs(self, value: Array, row: int, costs: Sequence[Array], op: np.ufunc) -> list[Run]:
        """Walks back from the end over the runs that gave each value."""
        runs: list[Run] = []
        e = self.blocks
        while e > 0:
            ways = [
                (*last_run(value[row - self.strides[t]], costs[t], e, op), t)
                for t, used in enumerate(self.used)
                if used[row]
            ]
            _, d, t = min(ways)
            runs.append((t, e - d, e))
            row, e = row - self.strides[t], e - d
        return runs[::-1]


def last_run(value: Array, cost: Array, e: int, op: np.ufunc) -> tuple[float, int]:
    """Gives the value of the best run that stops before block e after the row `value`, and its length."""
    most = min(e, len(cost))
    ways = op(value[e - most : e][::-1], cost[:most, e])
    d = int(np.argmin(ways))
    return float(ways[d]), d + 1


def extend(value: Array, cost: Array, op: np.ufunc, shorter: int = 0) -> Array:
    """Gives, for every row and e, the least op(value[row, e - d], cost[d - 1 - shorter, e]) over run lengths d.

    Args:
        value: Shape (rows, S + 1).
        cost: Shape (D, S + 1).
        op: `np.maximum` or `np.add`.
        shorter: Lengths before the first one in `cost`, which are not allowed.

    Returns:
        Shape (rows, S + 1).
    """
    rows, columns = value.shape
    longest = shorter + len(cost)
    padded = np.full((rows, longest + columns), np.inf)
    padded[:, longest:] = value
    step = padded.itemsize
    # window[row, d - 1 - shorter, e] = value[row, e - d]
    window: Array = np.ndarray(
        (rows, len(cost), columns), np.float64, padded, (len(cost) - 1) * step, (padded.strides[0], -step, step)
    )
    out = np.empty_like(value)
    size = max(1, CHUNK // cost.size)
    for first in range(0, rows, size):
        op(window[first : first + size], cost[None]).min(axis=1, out=out[first : first + size])
    return out


def in_order(stages: Stages, order: Sequence[int], costs: Sequence[Array], op: np.ufunc) -> tuple[float, list[Run]]:
    """Finds the best runs where the nodes stand in a given order; optional ones may still be passed over.

    Args:
        stages: The problem.
        order: The type of every node.
        costs: Per type, shape (D_t, S + 1).
        op: As for `Table.best`.

    Returns:
        As `Table.best`.
    """
    value = np.full((len(order) + 1, stages.blocks + 1), np.inf)
    value[0, 0] = 0.0
    for k, t in enumerate(order):
        value[k + 1] = extend(value[k : k + 1], costs[t], op)[0]
        if stages.types[t].node.optional:
            value[k + 1] = np.minimum(value[k + 1], value[k])
    e = stages.blocks
    if not np.isfinite(value[-1, e]):
        return math.inf, []
    runs: list[Run] = []
    for k in range(len(order) - 1, -1, -1):
        t = order[k]
        if stages.types[t].node.optional and value[k + 1, e] == value[k, e]:
            continue
        _, d = last_run(value[k], costs[t], e, op)
        runs.append((t, e - d, e))
        e -= d
    return float(value[len(order), stages.blocks]), runs[::-1]
